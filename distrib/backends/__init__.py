"""How the processes and devices of a job work together: one backend for each way of running it.

Start with `base.py`, the protocol that every backend implements.
May import `gradients`, `environment` and everything below them; `cluster` is above.
"""
