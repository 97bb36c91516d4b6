"""`distrib checkpoints`: one file for each of its commands.

`lookup.py` finds the checkpoints that a command line names.
May import `arguments` and `tables`; no other folder of `launch`.
"""
