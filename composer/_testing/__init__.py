"""Behind composer.testing: made-up tensors, the linear model, and the contracts of each kind."""
