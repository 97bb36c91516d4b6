import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distrib.checkpoint import attempts, saver
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.saver import Content
from distrib.errors import CheckpointError
from distrib.save_policy.schedule import SaveSchedule
from distrib.state.training_position import Logs, TrainingPosition
from distrib.storage.locate import locate
from distrib.training.save_controller import SaveController

LOGS = Logs({}, None)


class State:
    """One number."""

    def __init__(self) -> None:
        self.captured: list[int] = []

    def capture(self, position: TrainingPosition, logs: Logs, before: Any) -> Content:
        self.captured.append(position.step)
        held = {"position": {"step": position.step, "epoch": 0, "batch": 0}}
        arrays = {"model": {"w": np.full(3, position.step, np.float32)}}
        return Content(position.step, 0, position.step, arrays, held, 1, "finger", {})


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def saves(tmp_path: Path, state: State) -> SaveController:
    directory = CheckpointDirectory(locate(tmp_path, "directory"))
    controller = SaveController(directory, SaveSchedule(steps=5), None)
    assert controller.load_newest() is None
    controller.begin(state, 0)  # type: ignore[arg-type]
    return controller


def steps(tmp_path: Path) -> list[int]:
    checkpoints = CheckpointDirectory(locate(tmp_path, "directory")).checkpoints()
    return sorted(checkpoint.manifest.step for checkpoint in checkpoints)


def test_a_step_is_saved_once(tmp_path: Path, saves: SaveController, state: State) -> None:
    for _ in range(2):
        saves.save(TrainingPosition(step=5), LOGS, wait=True)
    saves.close(attempts.FINISHED)
    assert state.captured == [5]
    assert steps(tmp_path) == [5]
    assert saves.last_checkpoint.name == "5"


def test_a_resumed_step_is_saved_already(
    tmp_path: Path, saves: SaveController, state: State
) -> None:
    saves.resumed(7)
    saves.save(TrainingPosition(step=7), LOGS, wait=True)
    assert state.captured == []
    assert not saves.is_due(9)
    assert saves.is_due(10)
    saves.close(attempts.FINISHED)


def test_a_save_that_would_have_to_wait_is_skipped(
    saves: SaveController, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    may_write = threading.Event()
    write = saver.transfer.write
    monkeypatch.setattr(saver.transfer, "write", lambda *args: (may_write.wait(), write(*args))[1])
    saves.save(TrainingPosition(step=5), LOGS)
    assert not saves.is_due(10)
    assert not saves.is_due(15)
    assert capsys.readouterr().err.count("skipped the checkpoint of step 10") == 1
    may_write.set()
    saves.wait()
    assert saves.is_due(20)
    saves.close(attempts.FINISHED)


def test_an_error_of_the_writer_is_kept_until_it_is_raised(
    saves: SaveController, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saver.transfer, "write", full)
    saves.save(TrainingPosition(step=5), LOGS)
    saves.wait()
    assert saves.failed
    saves.save(TrainingPosition(step=10), LOGS)  # Nothing is written after a failure.
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no space is left"):
            saves.raise_failure()


def test_a_folder_that_cannot_be_tidied_up_is_no_reason_to_fail(
    tmp_path: Path, saves: SaveController, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Any, number: int) -> None:
        raise PermissionError(13, "Permission denied")

    saves.save(TrainingPosition(step=5), LOGS, wait=True)
    monkeypatch.setattr(CheckpointDirectory, "remove_orphans", denied)
    with pytest.warns(UserWarning, match=r"Could not tidy up .*Nothing is lost"):
        saves.close(attempts.FINISHED)
    assert steps(tmp_path) == [5]


def test_checkpoints_are_deleted_on_request_only(tmp_path: Path, saves: SaveController) -> None:
    saves.save(TrainingPosition(step=5), LOGS, wait=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saves.close(attempts.FINISHED)
    saves.release(delete=False)
    assert steps(tmp_path) == [5]
    saves.release(delete=True)
    assert steps(tmp_path) == []
