"""One process with one replica, on a CPU or one GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from distrib.collectives import Collectives, SingleProcess


class LocalBackend:
    """Trains in this process, on the device that TensorFlow picks."""

    kind = "local"
    rank = 0
    size = 1
    local_rank = 0
    num_replicas = 1
    step_payload = None

    def __init__(self) -> None:
        self.collectives: Collectives = SingleProcess()

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context that does nothing."""
        return nullcontext()

    def optimizer(
        self, optimizer: Any, compression: Any, backward_passes_per_step: int, op: Any
    ) -> Any:
        """Return `optimizer`, made to accumulate gradients; a single replica reduces nothing."""
        from distrib.gradients.optimizer import accumulate

        return accumulate(optimizer, backward_passes_per_step)

    def translate_error(self, error: BaseException) -> BaseException:
        """Return `error`: a single process has no peers to lose."""
        return error
