"""Policies that say which checkpoints of a run are kept; for `BackupAndRestore(retention=...)`.

>>> from distrib.retention import BestN
>>> BackupAndRestore("runs/17", keep_last=2, retention=BestN("val_loss", n=1, mode="min"))
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
