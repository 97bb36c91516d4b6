"""Processes that run users' slow Python code: start with `pool.py`.

`program.py` is what a worker runs, `process.py` the parent's side of one worker, and `messages.py`
how the two talk. `pickling.py` takes the user's objects to the workers. `example_pool.py` makes
batches of examples with all of it.

A worker imports neither the user's script nor TensorFlow, so what it needs of this package does not
import TensorFlow either.
"""
