"""Where a run stands between two steps, and what Keras reported last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class TrainingPosition:
    """Where a run stands, between two steps.

    Attributes:
        step: Batches trained since the run began.
        epoch: Epoch in progress, or to begin.
        batch: Batches of it that are done.
        train_done: Whether it needs no more batches, only validation and its end.
        stop: Whether a callback has asked to stop training.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    train_done: bool = False
    stop: bool = False


@dataclass
class Logs:
    """What Keras reported last.

    Attributes:
        batch: After a train batch; values may be tensors.
        epoch: After an epoch; `None` before the first has ended.
    """

    batch: Mapping[str, Any]
    epoch: dict[str, Any] | None
