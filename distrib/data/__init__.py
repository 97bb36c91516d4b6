"""Datasets of global batches that can be resumed at any step: start with `make_dataset.py`.

`order.py` computes which examples make up a batch; `sources.py` and `readers.py` fetch them.
May import nothing of distrib but its errors.
"""
