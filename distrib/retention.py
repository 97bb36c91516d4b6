"""Retention policies for `BackupAndRestore(retention=...)`: which checkpoints of a run to keep.

>>> from distrib.retention import BestN
>>> BackupAndRestore("runs/17", keep_last=2, retention=BestN(1, "val_loss"))
"""

from __future__ import annotations

from distrib.checkpoint.retention import (
    AnyOf,
    BestN,
    EveryNHours,
    EveryNSteps,
    KeepIf,
    LatestN,
    RetentionPolicy,
)

__all__ = [
    "AnyOf",
    "BestN",
    "EveryNHours",
    "EveryNSteps",
    "KeepIf",
    "LatestN",
    "RetentionPolicy",
]
