"""The `distrib` command and the launch scripts.

`cli.py` is the command; each folder except `hosts` and `process` is one of its subcommands.
May import all of `distrib`; no other package imports `launch`.
"""
