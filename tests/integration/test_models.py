"""Every kind of Keras model resumes exactly in the middle of an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import kill_and_finish, undisturbed
from models import RECIPES

# Orders of the callbacks, so that each model also tries another one.
ALL = [(name, "local", order) for order, name in enumerate(RECIPES)] + [
    ("two_ways", "mirrored", 100),
    ("ema", "mirrored", 101),
    ("mixed_precision", "mirrored", 102),
]
# Local runs of models that others cover by and large: `two_ways` is resumed on two replicas.
VARIATIONS = {
    *("small", "subclassed", "two_optimizers", "ema_on_epoch", "lr_schedule"),
    *("steps_per_execution", "steady", "eager", "auc", "two_ways"),
    *("jit_mixed_precision", "jit_accumulation", "steady_jit"),
}


def is_variation(model: str, backend: str) -> bool:
    return model in VARIATIONS if backend == "local" else model != "two_ways"


CASES = [
    pytest.param(*case, marks=[pytest.mark.exhaustive] if is_variation(*case[:2]) else [])
    for case in ALL
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "backend", "order"), CASES)
def test_resumes_exactly(model: str, backend: str, order: int, tmp_path: Path) -> None:
    arguments = ["--model", model, "--backend", backend, "--order", str(order)]
    calm = undisturbed(*arguments)
    killed = kill_and_finish(tmp_path / "killed", ["after_step:27"], *arguments)
    assert killed == calm
    _assert_trained(calm)


def _assert_trained(result: dict[str, Any]) -> None:
    """A comparison of two runs that did nothing would prove nothing."""
    assert len(result["epochs"]) >= 3
    assert len(set(result["history"]["loss"])) == len(result["epochs"])
