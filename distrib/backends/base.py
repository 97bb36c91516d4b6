"""The protocol that every backend implements.

A backend knows this process's rank, how many replicas share a step, and the scope in which a model
must be built. Dataset, callbacks and checkpoints are written once, against this protocol.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from distrib.collectives import Collectives


class Backend(Protocol):
    """One way to run a training job."""

    @property
    def kind(self) -> str:
        """Name of the backend, as `distrib.init` takes it."""

    @property
    def rank(self) -> int:
        """This process's number, 0 to `size - 1`."""

    @property
    def size(self) -> int:
        """Number of processes."""

    @property
    def local_rank(self) -> int:
        """This process's number among those on its host."""

    @property
    def num_replicas(self) -> int:
        """Copies of the model that share each global batch, over all processes."""

    @property
    def collectives(self) -> Collectives:
        """Collectives between the processes of the job."""

    @property
    def step_payload(self) -> Any:
        """Flags and loss that travel with the gradients; `None` in a single process."""

    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which to create models, optimizers and metrics."""

    def optimizer(
        self, optimizer: Any, compression: Any, backward_passes_per_step: int, op: Any
    ) -> Any:
        """Return an optimizer whose gradients are reduced over all replicas."""

    def translate_error(self, error: BaseException) -> BaseException:
        """Return a `LostPeerError` for an exception that a lost peer causes, else `error`."""
