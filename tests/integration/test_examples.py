"""The examples that users try first, run as they run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from stores import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
from demo import rank_process  # noqa: E402

DIGITS, MNIST = EXAMPLES / "digits.py", EXAMPLES / "mnist.py"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DIGITS), *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=600,
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
def test_digits_takes_an_mnist_file_and_a_store(tmp_path: Path, moto: Server) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, 300, dtype=np.uint8)
    np.savez(
        tmp_path / "mnist.npz",
        x_train=images[:250], y_train=labels[:250], x_test=images[250:], y_test=labels[250:],
    )  # fmt: skip
    folder = f"{moto.bucket()}/run"
    data = ["--data", str(tmp_path / "mnist.npz"), "--epochs=1"]
    done = run("--run", folder, *data, **moto.environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "validation accuracy" in done.stdout
    place = folder.partition("//")[2]
    written = {path.removeprefix(place) for path in moto.filesystem().find(folder)}
    assert {"/best.keras", "/log.csv", "/plots/loss.png"} <= written
    assert [line for line in done.stderr.splitlines() if not line.startswith("distrib:")] == []


@pytest.mark.slow
def test_mnist_goes_on_after_a_rank_was_killed(tmp_path: Path) -> None:
    """Horovod's example, on two ranks; what it leaves opens in plain Keras."""
    pytest.importorskip("horovod", reason="Horovod is not installed: `distrib horovod build`")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (512, 28, 28), np.uint8), np.arange(512) % 10
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels.astype(np.uint8))
    run = tmp_path / "run"
    command = [str(Path(sys.executable).with_name("distrib")), "run", "-np", "2", str(MNIST)]
    command += ["--run", str(run), "--data", str(tmp_path / "mnist.npz"), "--epochs=4"]
    command += ["--batch-size=32"]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoint-01.keras").exists():
        assert job.poll() is None, job.communicate()[1][-3000:]
        time.sleep(0.02)
    os.kill(rank_process(1, str(run)), signal.SIGKILL)
    _, errors = job.communicate(timeout=400)
    assert job.returncode == 0, errors[-3000:]
    assert "rank 1 on localhost was killed by SIGKILL. Starting again now." in errors
    assert errors.count("distrib: resuming from") == 1
    assert sorted(path.name for path in run.glob("*.keras")) == [
        f"checkpoint-0{epoch}.keras" for epoch in range(1, 5)
    ]
    model = keras.models.load_model(run / "checkpoint-04.keras")
    assert type(model.optimizer) is keras.optimizers.Adam
    assert int(model.optimizer.iterations.numpy()) == 4 * 8
