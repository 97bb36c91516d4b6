"""Checkpoints of a run: format, commit protocol, retention, and saving in the background.

Start with `commit.py` (when a checkpoint exists) and `directory.py` (the checkpoints of a run).
May import `storage` and everything below it; knows nothing of Keras or of other ranks.
"""
