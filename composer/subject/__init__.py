"""Whatever a user names to be judged: a run, a checkpoint, a file of weights, a function of a module, a network of a library; and its judging."""
