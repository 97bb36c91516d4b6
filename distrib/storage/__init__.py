"""Files on the local disk and in object stores: `location.py` does what both can do.

`locate.py` makes a `Location` of a URL; `errors.py` says what a store's errors mean.
May import nothing of distrib but `errors`, `log` and `units`.
"""
