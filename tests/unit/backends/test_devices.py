from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from distrib.backends.devices import take_gpu
from distrib.errors import ConfigurationError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand-ins for TensorFlow's GPUs, and what was done to them: there are none here."""
    done = SimpleNamespace(present=[], visible=None, growing=[])

    def show(gpu: str, kind: str) -> None:
        done.visible = gpu

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: done.present)
    monkeypatch.setattr(tf.config, "set_visible_devices", show)
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, grows: done.growing.append(gpu)
    )
    return done


def test_without_gpus_nothing_is_done(gpus: Any) -> None:
    take_gpu(3)
    assert (gpus.visible, gpus.growing) == (None, [])


def test_each_process_takes_the_gpu_of_its_number(gpus: Any) -> None:
    gpus.present = ["first", "second"]
    take_gpu(1)
    assert (gpus.visible, gpus.growing) == ("second", ["second"])


def test_a_process_that_is_shown_one_gpu_takes_it(
    gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.present = ["only"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    take_gpu(5)
    assert gpus.visible == "only"


def test_more_processes_than_gpus_are_refused(gpus: Any) -> None:
    gpus.present = ["only"]
    with pytest.raises(ConfigurationError, match="Rank 1 of this host has no GPU: TensorFlow sees"):
        take_gpu(1)
    assert gpus.visible is None
