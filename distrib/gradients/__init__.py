"""Gradients of the global batch: an optimizer that reduces them over all ranks.

`optimizer.py` wraps the user's, `reduction.py` exchanges, `step_payload.py` adds flags and loss.
May import `collectives` and `keras_compat`; knows nothing of the model, of `fit` or of storage.
"""
