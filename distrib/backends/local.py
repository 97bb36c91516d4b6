"""One process, one replica: a laptop, or one GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from distrib.collectives import Collectives, SingleProcess


class LocalBackend:
    """Train in this process, on the device that TensorFlow picks."""

    kind = "local"
    rank = 0
    size = 1
    local_rank = 0
    num_replicas = 1

    def __init__(self) -> None:
        self.collectives: Collectives = SingleProcess()

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context that changes nothing."""
        return nullcontext()

    def optimizer(self, optimizer: Any) -> Any:
        """Return `optimizer` as it is: there is nobody to share gradients with."""
        return optimizer
