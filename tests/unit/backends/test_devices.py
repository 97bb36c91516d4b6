from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from distrib.backends.devices import pin_gpu
from distrib.errors import ConfigurationError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fake GPUs of TensorFlow, and the settings made for them."""
    fakes = SimpleNamespace(present=[], visible=None, growing=[])

    def set_visible(gpu: str, kind: str) -> None:
        fakes.visible = gpu

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: fakes.present)
    monkeypatch.setattr(tf.config, "set_visible_devices", set_visible)
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, grows: fakes.growing.append(gpu)
    )
    return fakes


def test_without_gpus_nothing_is_set(gpus: Any) -> None:
    pin_gpu(3)
    assert (gpus.visible, gpus.growing) == (None, [])


def test_each_process_is_pinned_to_the_gpu_of_its_number(gpus: Any) -> None:
    gpus.present = ["first", "second"]
    pin_gpu(1)
    assert (gpus.visible, gpus.growing) == ("second", ["first", "second"])


def test_a_process_that_sees_one_gpu_is_pinned_to_it(
    gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.present = ["only"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    pin_gpu(5)
    assert gpus.visible == "only"


def test_more_processes_than_gpus_are_refused(gpus: Any) -> None:
    gpus.present = ["only"]
    with pytest.raises(ConfigurationError, match="Rank 1 of this host has no GPU: TensorFlow sees"):
        pin_gpu(1)
    assert gpus.visible is None
