"""The example that users try first, run as they run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

DIGITS = Path(__file__).parents[2] / "examples" / "digits.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DIGITS), *arguments], capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_digits_learns_and_leaves_what_it_promises(tmp_path: Path) -> None:
    done = run("--run", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    (accuracy,) = (
        line.split()[-1] for line in done.stdout.splitlines() if "validation accuracy" in line
    )
    assert float(accuracy) > 0.97
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,accuracy,")
    assert len(rows) > 5
    assert (tmp_path / "best.keras").is_file()
    assert (tmp_path / "plots" / "loss.png").stat().st_size > 10_000
    assert len(list((tmp_path / "checkpoints").iterdir())) > 1


@pytest.mark.slow
def test_digits_takes_an_mnist_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, 300, dtype=np.uint8)
    np.savez(
        tmp_path / "mnist.npz",
        x_train=images[:250], y_train=labels[:250], x_test=images[250:], y_test=labels[250:],
    )  # fmt: skip
    done = run("--run", str(tmp_path / "run"), "--data", str(tmp_path / "mnist.npz"), "--epochs=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "validation accuracy" in done.stdout
