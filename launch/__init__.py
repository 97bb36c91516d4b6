"""The `distrib` command, and launch scripts beside it.

`cli.py` is the command; each folder but `hosts` and `process` is one of its subcommands.
May import all of `distrib` and nothing imports it.
"""
