"""`tf.data` pipelines and generators that `fit` is given: start with `feed.py`.

`batch_readers.py` draws the batches and saves the iterator's state; `steps.py` finds out what of a
pipeline can be saved.
"""
