"""`distrib checkpoints`: a module for each of its commands.

`options.py` has the options that they share, `lookup.py` finds the checkpoints that they name, and
`errors.py` turns what goes wrong into one line.
May import `arguments` and `tables`; no other folder of `launch`.
"""
