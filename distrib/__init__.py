"""distrib: train Keras 3 models on TensorFlow, and resume them exactly after any crash.

`import distrib` is cheap: TensorFlow, Keras and Orbax are loaded when something needs them.
"""

from __future__ import annotations

from distrib.cluster import Cluster, current
from distrib.errors import (
    CheckpointError,
    CheckpointMismatchError,
    ConfigurationError,
    DistribError,
    LostPeerError,
    NoLoadableCheckpointError,
    NoProgressError,
    Preempted,
    StoreUnavailableError,
    SupersededError,
)
from distrib.runtime import init

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "CheckpointMismatchError",
    "Cluster",
    "ConfigurationError",
    "DistribError",
    "LostPeerError",
    "NoLoadableCheckpointError",
    "NoProgressError",
    "Preempted",
    "StoreUnavailableError",
    "SupersededError",
    "current",
    "init",
]
