"""Checkpoints of a run: file format, commit protocol, retention, and saving in the background.

Start with `commit.py` (when a checkpoint exists) and `directory.py` (the checkpoints of a run).
May import `storage`, `environment` and everything below them; does not depend on Keras or on other
ranks.
"""
