"""`tf.data` pipelines and generators that `fit` is given: start with `feed.py`.

`direct_reader.py` and `batch_readers.py` draw the batches and save the iterator's state; `steps.py`
finds out what of a pipeline can be saved.
"""
