from pathlib import Path

import pytest

from distrib.launch.spare.memory import become_first_victim, free_share, restore_score


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MACHINE = {"proc/meminfo": "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n"}


def test_this_machine() -> None:
    assert 0 < free_share() <= 1


@pytest.mark.parametrize("path", ["/", "/jobs/1", "/of/another/view"])
def test_the_limit_of_a_control_group(tmp_path: Path, path: str) -> None:
    group = "sys/fs/cgroup" + ("/jobs" if path == "/jobs/1" else "")
    write(tmp_path, MACHINE | {"proc/self/cgroup": f"0::{path}\n"})
    files = {"memory.max": "400\n", "memory.current": "300\n", "memory.stat": "inactive_file 20\n"}
    write(tmp_path, {f"{group}/{name}": text for name, text in files.items()})
    assert free_share(tmp_path) == pytest.approx(0.3)
    (tmp_path / group / "memory.max").write_text("max\n")
    assert free_share(tmp_path) == 0.6


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/job"
    write(tmp_path, MACHINE | {"proc/self/cgroup": "5:cpu:/x\n4:memory:/job\n0::/\n"})
    files = {
        "memory.limit_in_bytes": "400\n",
        "memory.usage_in_bytes": "380\n",
        "memory.stat": "cache 9\ntotal_inactive_file 60\n",
    }
    write(tmp_path, {f"{group}/{name}": text for name, text in files.items()})
    assert free_share(tmp_path) == pytest.approx(0.2)


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    write(tmp_path, MACHINE | {"proc/self/cgroup": ""})
    assert free_share(tmp_path) == 0.6


def test_the_kernel_kills_spares_first() -> None:
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text()
    restore = become_first_victim()
    try:
        assert score.read_text() == "1000\n"
    finally:
        restore_score(restore)
    assert score.read_text() == before
