"""A short chaos run, of random kinds of faults. `make chaos` is the long one."""

from __future__ import annotations

import random
from pathlib import Path

import chaos
import hosts
import pytest

pytest.importorskip("horovod", reason="Horovod is not installed: `distrib horovod build`")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(hosts.missing() is not None, reason=str(hosts.missing())),
]


def test_a_plan_follows_from_its_seed() -> None:
    assert chaos.plan(1, 100) == chaos.plan(1, 100)
    assert chaos.plan(1, 100) != chaos.plan(2, 100)
    assert {fault.kind for fault in chaos.plan(1, len(chaos.KINDS))} == set(chaos.KINDS)


@pytest.mark.exhaustive
def test_a_job_survives_some_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "PODS", 2)
    seed = random.SystemRandom().randrange(10**6)
    told: list[str] = [f"seed {seed}"]
    faults = chaos.plan(seed, 4)
    expected = chaos.calm(len(faults))
    try:
        got, left = chaos.disturbed(tmp_path, faults, told.append)
    finally:
        print("\n".join(told))
    assert got == expected
    assert left == []
