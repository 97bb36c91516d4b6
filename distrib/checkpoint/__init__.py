"""Checkpoints on disk: what one consists of, when it counts, and which are kept.

`arrays.py` puts the state into Orbax's format, `manifest.py` is the commit protocol,
`directory.py` knows the checkpoints of a run, and `saver.py` writes in the background.
"""
