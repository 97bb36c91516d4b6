import os
import resource
from pathlib import Path

import pytest

from distrib.launch.doctor.finding import OK, PROBLEM, WARNING
from distrib.launch.doctor.machine import (
    check_disk,
    check_machine,
    check_open_files,
    check_shared_memory,
)


def files(root: Path, **contents: str) -> Path:
    """Return a folder like `/`, with files by path, `__` for `/`."""
    for name, text in contents.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    memory = "MemTotal: 100 kB\nMemAvailable: 50 kB\n"
    return files(tmp_path, proc__meminfo=memory, proc__self__cgroup="0::/\n")


def level_of(subject: str, root: Path) -> tuple[str, str]:
    (finding,) = (each for each in check_machine(root) if each.subject == subject)
    return finding.level, finding.text


def test_memory(root: Path) -> None:
    assert level_of("memory", root)[0] == OK
    files(root, proc__meminfo="MemTotal: 100 kB\nMemAvailable: 5 kB\n")
    assert level_of("memory", root)[0] == WARNING


@pytest.mark.parametrize(
    ("names", "level", "text"),
    [
        ({"sys__fs__cgroup__cpu_DOT_max": "50000 100000\n"}, WARNING, "the time of 0.5"),
        ({"sys__fs__cgroup__cpu_DOT_max": "max 100000\n"}, OK, "for this process"),
        (
            {
                "sys__fs__cgroup__cpu__cpu_DOT_cfs_quota_us": "50000\n",
                "sys__fs__cgroup__cpu__cpu_DOT_cfs_period_us": "100000\n",
            },
            WARNING,
            "the time of 0.5",
        ),
        (
            {
                "sys__fs__cgroup__cpu__cpu_DOT_cfs_quota_us": "-1\n",
                "sys__fs__cgroup__cpu__cpu_DOT_cfs_period_us": "100000\n",
            },
            OK,
            "for this process",
        ),
    ],
)
def test_a_limit_of_cpu_time(root: Path, names: dict[str, str], level: str, text: str) -> None:
    found = level_of("CPU cores", files(root, **names))
    assert found[0] == level
    assert text in found[1]
    assert str(len(os.sched_getaffinity(0))) in found[1]


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_shared_memory(tmp_path).level == OK
    assert check_shared_memory(tmp_path / "none").level == WARNING
    usage = (67_108_864, 0, 67_108_864)  # Docker's default.
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    assert check_shared_memory(tmp_path).level == WARNING


def test_open_files() -> None:
    assert check_open_files(resource.RLIM_INFINITY).level == OK
    assert check_open_files(1048576).level == OK
    assert check_open_files(1024).level == WARNING


def test_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_disk(tmp_path).level == OK
    assert check_disk(tmp_path / "none").level == PROBLEM
    assert check_disk(Path("/proc")).level == PROBLEM  # Not even root can write there.
    monkeypatch.setattr("distrib.launch.doctor.machine.LEAST_DISK", 1e18)
    assert check_disk(tmp_path).level == WARNING
