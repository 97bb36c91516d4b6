"""Files on the local disk and in object stores: `location.py` has the operations of both.

`locate.py` turns a URL into a `Location`; `errors.py` classifies the errors of a store.
May import nothing of distrib but `errors`, `log` and `units`.
"""
