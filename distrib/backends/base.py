"""The Protocol that each backend fulfils, and nothing else.

A backend answers who this process is, how many replicas compute a step, and under which scope a
model must be built. Everything above (dataset, callbacks, checkpoints) is written once against it.
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
        """How the processes agree."""

    @property
    def step_payload(self) -> Any:
        """Flags and loss that travel with the gradients; `None` in a single process."""

    def scope(self) -> AbstractContextManager[Any]:
        """Context in which models, optimizers and metrics are created."""

    def optimizer(
        self, optimizer: Any, compression: Any, backward_passes_per_step: int, op: Any
    ) -> Any:
        """Return an optimizer whose gradients are reduced over all replicas."""

    def translate(self, error: BaseException) -> BaseException:
        """Return what an exception means: `LostPeerError` if a peer is gone, else the same."""
