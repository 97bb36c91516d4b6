"""distrib: train Keras 3 models on TensorFlow, and resume them exactly after any crash.

Importing it is cheap: TensorFlow, Orbax and the rest are loaded when something needs them.
"""

from __future__ import annotations

from distrib.cluster import Cluster, current
from distrib.errors import (
    CheckpointError,
    CheckpointMismatchError,
    ConfigurationError,
    DistribError,
    NoLoadableCheckpointError,
    Preempted,
)
from distrib.runtime import init

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "CheckpointMismatchError",
    "Cluster",
    "ConfigurationError",
    "DistribError",
    "NoLoadableCheckpointError",
    "Preempted",
    "current",
    "init",
]
