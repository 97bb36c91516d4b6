"""Datasets of global batches that can be resumed at any step: `dataset.py`.

`order.py` says which examples make up a batch, `sources.py` where examples come from.
May import nothing of distrib but its errors.
"""
