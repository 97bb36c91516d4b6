"""Finds ranks that wait in vain: outside of `fit` too, and long before any timeout.

All ranks have to call the same collectives in the same order. A script that lets only the chief
evaluate a shared dataset, or train, breaks that rule: the chief waits in a collective while the
others wait in another one, or have ended. No restart mends that.

A rank may also wait for one that is busy, such as a chief that writes a large file before a
barrier. That is no error, but after a minute it is worth a line. Within `fit`, where all ranks are
silent meanwhile, it may also be a collective on one rank only while another waits in the exchange
of gradients, which is not reported: there it is worth a line sooner.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from distrib.heartbeat import OUTSIDE, TRAINING

from ..hosts.names import rank_name, rank_names
from ..hosts.placement import RankPlacement
from .hang_detector import RankHeartbeat

# A rank that has ended may be about to raise an error on those that wait for it. And the report
# that a collective was left may be on its way.
DEADLOCK_SECONDS = 4.0
WAIT_SECONDS = 60.0
FIT_WAIT_SECONDS = 8.0

SAME_CALLS = (
    "All ranks must train to the end, and make the same calls of `fit`, of `evaluate` on a "
    "cluster.dataset, and of collectives, in the same order (docs/ranks.md)"
)


class DeadlockDetector:
    """Looks at the collectives in which the ranks of one attempt are.

    Args:
        heartbeats: The last heartbeats by rank, as they arrive.
    """

    def __init__(self, heartbeats: Mapping[int, RankHeartbeat]) -> None:
        self._heartbeats = heartbeats
        self._reported_waits: set[tuple[int, int]] = set()
        self._reported_places: set[str] = set()

    def find(
        self, running: Sequence[RankPlacement], finished: Collection[RankPlacement]
    ) -> str | None:
        """Return a message if a running rank waits for something that cannot happen.

        Args:
            running: The ranks that have not ended.
            finished: The ranks that have ended with exit code 0.
        """
        waiting = [p for p in running if self._waits_for(p) > DEADLOCK_SECONDS]
        if waiting and finished:
            first = min(finished, key=lambda p: self._number(p.rank))
            last = max(waiting, key=lambda p: self._number(p.rank))
            if self._number(first.rank) < self._number(last.rank):
                return (
                    f"{_name(first)} has ended with exit code 0, but {_name(last)} waits "
                    f"for it {self.place_of(last.rank)}"
                )
        numbers = {self._number(placement.rank) for placement in waiting}
        collectives = {self._collective(p.rank): p for p in waiting}
        if len(waiting) < len(running) or len(numbers) > 1 or len(collectives) < 2:
            return None
        return "the ranks wait for each other in different collectives: " + ", ".join(
            f"{_name(p)} {self.place_of(p.rank)}".rstrip() + f", in {collective}"
            for collective, p in collectives.items()
        )

    def find_long_wait(self, running: Sequence[RankPlacement]) -> str | None:
        """Return a message if a rank has waited long for a rank that is in no collective.

        Args:
            running: The ranks that have not ended.
        """
        return self._find_long_wait_outside(running) or self._find_long_wait_in_fit(running)

    def _find_long_wait_outside(self, running: Sequence[RankPlacement]) -> str | None:
        busy = [p for p in running if not self._collective(p.rank)]
        for placement in running:
            rank = placement.rank
            key = (rank, self._number(rank))
            is_long = self._waits_for(placement) > WAIT_SECONDS
            if busy and is_long and self._is_outside(rank) and key not in self._reported_waits:
                self._reported_waits |= {(p.rank, self._number(p.rank)) for p in running}
                return (
                    f"{_name(placement)} has waited for {WAIT_SECONDS:g} s "
                    f"{self.place_of(rank)}, for {rank_names(busy)}. That is no error while those "
                    "are at work, such as writing files"
                )
        return None

    def _find_long_wait_in_fit(self, running: Sequence[RankPlacement]) -> str | None:
        others = [p for p in running if not self._collective(p.rank)]
        silent = [p for p in running if self._is_silent_in_fit(p.rank)]
        if not others or len(silent) < len(running):
            return None
        for placement in running:
            place = self.place_of(placement.rank)
            if self._collective(placement.rank) and place not in self._reported_places:
                self._reported_places.add(place)
                return (
                    f"{_name(placement)} has waited for {FIT_WAIT_SECONDS:g} s {place}, for "
                    f"{rank_names(others)}. If those are not at work in a callback, they "
                    f"wait too. {SAME_CALLS}"
                )
        return None

    def _is_silent_in_fit(self, rank: int) -> bool:
        heartbeat = self._heartbeats.get(rank)
        if heartbeat is None or heartbeat.facts.get("phase") != TRAINING:
            return False
        return time.monotonic() - heartbeat.received > FIT_WAIT_SECONDS

    def place_of(self, rank: int) -> str:
        """Return where a rank waits or was last; empty if it has not reported that."""
        facts = self._facts(rank)
        if facts.get("collective"):
            return facts["place"] and f"at {facts['place']}"
        return f"after step {facts['step']}" if "step" in facts else ""

    def _facts(self, rank: int) -> Mapping[str, Any]:
        heartbeat = self._heartbeats.get(rank)
        return {} if heartbeat is None else heartbeat.facts

    def _collective(self, rank: int) -> str:
        return str(self._facts(rank).get("collective") or "")

    def _number(self, rank: int) -> int:
        return int(self._facts(rank).get("collectives", 0))

    def _is_outside(self, rank: int) -> bool:
        return self._facts(rank).get("phase") == OUTSIDE

    def _waits_for(self, placement: RankPlacement) -> float:
        """Return for how many seconds a rank has been in its collective."""
        if not self._collective(placement.rank):
            return 0.0
        return time.monotonic() - self._heartbeats[placement.rank].received


def _name(placement: RankPlacement) -> str:
    return rank_name(placement.rank, placement.hostname)
