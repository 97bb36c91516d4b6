"""Gradients of the global batch: an optimizer that reduces them over all ranks.

`optimizer.py` wraps the user's optimizer, `reduction.py` reduces gradients in the `layout.py` that
the ranks agreed on, and `step_payload.py` adds flags and the loss.
May import `collectives` and `keras_compat`; knows nothing of the model, of `fit` or of storage.
"""
