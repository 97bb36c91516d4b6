"""Gradients of the global batch: an optimizer that reduces them over all ranks.

`optimizer.py` wraps the user's optimizer, `reduction.py` reduces gradients in the `layout.py` that
the ranks agreed on, and `step_payload.py` adds flags and the loss.
May import `collectives`, `heartbeat`, `keras_compat` and below; knows no model, `fit` or storage.
"""
