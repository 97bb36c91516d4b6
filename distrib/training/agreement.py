"""Whether to save, and whether to exit for a preemption: one decision for all ranks.

A single process decides for itself. Of several ranks, any may receive a request to stop, and only
the chief knows whether a save is due. Each rank states its requests before a step; the answer comes
back with the gradients (`gradients/step_payload.py`). Between epochs there are no gradients, so the
ranks agree in a collective of its own. (`model.stop_training` is agreed in `multi_rank_fit.py`.)
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from distrib.cluster import current
from distrib.gradients.step_payload import Request


class Decision(NamedTuple):
    """What every rank does now.

    Attributes:
        preempt: Save and end the process.
        save: Save and go on.
    """

    preempt: bool
    save: bool


class Agreement(Protocol):
    """How decisions are made."""

    def before_step(self, preempt: bool, save: bool) -> None:
        """State what this rank requests after the step that is about to begin."""

    def after_step(self, preempt: bool) -> Decision:
        """Return the decision after the step.

        Args:
            preempt: Whether this rank has been asked to stop by now. Counts at once in a single
                process, and after the next step among several ranks.
        """

    def agree(self, preempt: bool, save: bool) -> Decision:
        """Return the decision between steps, given this rank's requests."""


class OneRank:
    """A single process does what it requests."""

    def __init__(self) -> None:
        self._save = False

    def before_step(self, preempt: bool, save: bool) -> None:
        """See `Agreement`."""
        self._save = save

    def after_step(self, preempt: bool) -> Decision:
        """See `Agreement`."""
        return Decision(preempt, self._save)

    def agree(self, preempt: bool, save: bool) -> Decision:
        """See `Agreement`."""
        return Decision(preempt, save)


class AllRanks:
    """All ranks do what any of them requests."""

    def __init__(self) -> None:
        self._payload = current().step_payload

    def before_step(self, preempt: bool, save: bool) -> None:
        """See `Agreement`: the requests travel with the gradients."""
        self._payload.request(Request.PREEMPT, preempt)
        self._payload.request(Request.SAVE, save)

    def after_step(self, preempt: bool) -> Decision:
        """See `Agreement`. `StepPayload.read` must have been called for this step."""
        agreed = self._payload.agreed
        return Decision(Request.PREEMPT in agreed, Request.SAVE in agreed)

    def agree(self, preempt: bool, save: bool) -> Decision:
        """See `Agreement`: one collective."""
        preempt, save = current().collectives.allreduce(np.array([preempt, save], np.int32), "max")
        return Decision(bool(preempt), bool(save))


def agreement() -> Agreement:
    """Return how this process's job decides."""
    return OneRank() if current().step_payload is None else AllRanks()
