"""Which GPU each process uses, how much of its memory, and what reduces gradients between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import launch

REPORT = Path(__file__).with_name("report_devices.py")


def reports_of(ranks: int, folder: Path) -> list[dict[str, Any]]:
    done = launch(ranks, REPORT, str(folder), backend="horovod")
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.gpu
def test_ranks_add(tmp_path: Path, devices: str) -> None:
    (report,) = reports_of(1, tmp_path)
    assert report["sum"] == 1.0
    assert len(report["visible"]) == (devices == "gpu")


@pytest.mark.gpu(2)
def test_two_ranks_add(tmp_path: Path, devices: str) -> None:
    reports = reports_of(2, tmp_path)
    assert [report["sum"] for report in reports] == [3.0, 3.0]
    assert [len(report["visible"]) for report in reports] == [devices == "gpu"] * 2


@pytest.mark.gpu(1, only=True)
def test_memory_grows_as_needed(tmp_path: Path) -> None:
    (report,) = reports_of(1, tmp_path)
    assert report["memory_growth"] is True
    assert report["used_by_all"] < report["memory"] / 2


@pytest.mark.gpu(1, only=True)
def test_reduces_by_nccl(tmp_path: Path) -> None:
    (report,) = reports_of(1, tmp_path)
    assert report["nccl_built"], "Horovod was built without NCCL: `distrib horovod build --gpu`"
    assert "GPU" in report["device_of_sum"]


@pytest.mark.gpu(2, only=True)
def test_each_rank_has_a_gpu_of_its_own(tmp_path: Path) -> None:
    reports = reports_of(2, tmp_path)
    assert [len(report["visible"]) for report in reports] == [1, 1]
    assert reports[0]["visible"] != reports[1]["visible"]
