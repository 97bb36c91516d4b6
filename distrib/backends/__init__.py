"""How the processes and devices of a job work together: one module for each way of running it.

Start with `base.py`, the protocol that every backend fulfils.
May import `gradients` and everything below it; `cluster` is above.
"""
