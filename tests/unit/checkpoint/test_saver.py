import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distrib.checkpoint import arrays, manifest
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.saver import Content, Saver
from distrib.errors import CheckpointError


def content(step: int) -> Content:
    return Content(step, 0, step, {"model": {"w": np.full(3, step, np.float32)}}, {"step": step})


def wait_until_idle(saver: Saver) -> None:
    """As the step loop does, which asks once a step."""
    while not saver.idle:
        time.sleep(0.01)


@pytest.fixture
def directory(tmp_path: Path) -> CheckpointDirectory:
    directory = CheckpointDirectory(tmp_path)
    directory.lock()
    return directory


def test_saves_commits_and_prunes(directory: CheckpointDirectory) -> None:
    saver = Saver(directory, keep_last=2)
    for step in (1, 2, 3):
        saver.save(content(step))
    saver.close()
    assert directory.steps() == [2, 3]
    manifest.verify(directory.step_path(3))
    assert arrays.read_training(directory.step_path(3)) == {"step": 3}


def test_works_in_the_background_one_at_a_time(
    directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    write = arrays.write

    def slow(*args: Any) -> None:
        assert go.wait(30)
        write(*args)

    monkeypatch.setattr(arrays, "write", slow)
    saver = Saver(directory, keep_last=None)
    saver.save(content(1))
    assert not saver.idle
    assert directory.steps() == []
    go.set()
    saver.wait()
    assert saver.idle
    saver.close()
    assert directory.steps() == [1]


def test_an_error_reaches_the_step_loop_and_costs_no_checkpoint(
    directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(directory, keep_last=1)
    saver.save(content(1))
    saver.wait()

    def fail(path: Path, *args: Any) -> None:
        path.mkdir()
        (path / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(arrays, "write", fail)
        saver.save(content(2))
        with pytest.raises(CheckpointError, match=r"step 2 .*No space left.*step 1 is intact"):
            wait_until_idle(saver)
    assert [path.name for path in directory.path.iterdir() if path.name[0] != "."] == ["1"]
    saver.save(content(2))
    saver.close()
    assert directory.steps() == [2]


def test_a_saver_left_behind_is_finished_first(directory: CheckpointDirectory) -> None:
    abandoned = Saver(directory, keep_last=None)
    abandoned.save(content(1))
    saver = Saver(directory, keep_last=None)
    assert directory.steps() == [1]
    saver.close()
