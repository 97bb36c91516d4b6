"""Retention policies for `BackupAndRestore(retention=...)`: which checkpoints of a run to keep.

>>> from distrib.retention import BestN
>>> BackupAndRestore("runs/17", keep_last=2, retention=BestN(n=1, metric="val_loss", mode="min"))
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
