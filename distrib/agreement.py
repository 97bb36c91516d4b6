"""When to save and when to leave: one decision for all ranks.

A run in one process decides for itself. Of many ranks any may be asked to leave, the chief alone
knows whether a save is due, and all must do it after the same step. They ask before the step, and
the answer comes back with the gradients; between epochs they ask each other directly.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from distrib.cluster import current
from distrib.riders import Wish


class Decision(NamedTuple):
    """What to do now."""

    leave: bool
    save: bool


class Agreement(Protocol):
    """How decisions are made."""

    def before_step(self, leave: bool, save: bool) -> None:
        """Say what this rank wishes for after the step that is about to begin."""

    def after_step(self, leave: bool) -> Decision:
        """Return what all ranks do after the step; a rank alone may wish to leave by now."""

    def ask(self, leave: bool, save: bool) -> Decision:
        """Return what all ranks do now, given what this one wishes for."""


class Alone:
    """One process does what it wishes."""

    def __init__(self) -> None:
        self._save = False

    def before_step(self, leave: bool, save: bool) -> None:
        """Remember the wish."""
        self._save = save

    def after_step(self, leave: bool) -> Decision:
        """Return the wishes."""
        return Decision(leave, self._save)

    def ask(self, leave: bool, save: bool) -> Decision:
        """Return the wishes."""
        return Decision(leave, save)


class Together:
    """All ranks do what any of them wishes."""

    def __init__(self) -> None:
        self._riders = current().riders

    def before_step(self, leave: bool, save: bool) -> None:
        """Send the wishes along with the gradients."""
        self._riders.wish(Wish.LEAVE, leave)
        self._riders.wish(Wish.SAVE, save)

    def after_step(self, leave: bool) -> Decision:
        """Return what came back with the gradients."""
        return Decision(Wish.LEAVE in self._riders.last, Wish.SAVE in self._riders.last)

    def ask(self, leave: bool, save: bool) -> Decision:
        """Ask all ranks, in one collective."""
        leave, save = current().collectives.allreduce(np.array([leave, save], np.int32), "max")
        return Decision(bool(leave), bool(save))


def agreement() -> Agreement:
    """Return the way of this process's job."""
    return Alone() if current().riders is None else Together()
