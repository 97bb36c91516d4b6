"""Whether TensorFlow computes deterministically, which it has no public function to ask for."""

from __future__ import annotations

from tensorflow.python.framework.config import is_op_determinism_enabled


def is_deterministic() -> bool:
    """Return whether `tf.config.experimental.enable_op_determinism()` was called."""
    return bool(is_op_determinism_enabled())
