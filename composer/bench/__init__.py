"""Is it fast, and does it do only the work it must? Faithful and hand-pruned plain-PyTorch loops, a pass counter, a timer, a memory meter.

    counter.py     passes of a step: forwards, input gradients, weight gradients, writes of running statistics. Exact, the same on every machine
    memory.py      bytes a step holds at its peak
    timer.py       interleaved timing: a ratio per round, so that a slow minute of the machine slows every variant alike
    floor.py       the least time of a step's products, layer by layer; products.py has the layers, and the ways to compute them
    nets.py        the networks that are timed
    reference/     the methods as their authors run them, redundant passes included
    pruned/        the same arithmetic by hand, without them
    subject.py     the engine's own step on the same network and batch
    run.py         `composer bench`: all of it, with a verdict; gpu.py adds seconds per epoch on a CUDA device
    attacks.py     AutoAttack, exact and fast, beside a direct call of the library; selection.py what validation costs
    machine.py     what it was measured on
"""
