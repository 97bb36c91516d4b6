import datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distrib.launch.doctor import stores
from distrib.launch.doctor.finding import OK, PROBLEM, WARNING
from distrib.launch.doctor.stores import check_store


class Careless(MemoryFileSystem):
    """A store that ignores conditions, and whose clock is an hour fast."""

    protocol = "careless"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> Any:
        return super().pipe_file(path, value, mode="overwrite", **options)

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)


@pytest.mark.parametrize("place", ["{}/new", "memory://doctor/run"])
def test_a_store_that_will_do(place: str, tmp_path: Path) -> None:
    url = place.format(tmp_path)
    (finding,) = check_store(url)
    assert (finding.level, finding.subject) == (OK, url)


def test_nothing_is_left_in_it(tmp_path: Path) -> None:
    list(check_store(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = check_store(str(tmp_path / "file" / "run"))
    assert finding.level == PROBLEM
    assert finding.text.startswith("cannot write to ")
    assert finding.remedy


def test_a_protocol_without_its_package() -> None:
    (finding,) = check_store("nosuch://bucket/run")
    assert finding.level == PROBLEM


def test_a_careless_store() -> None:
    fsspec.register_implementation("careless", Careless, clobber=True)
    written, conditions, clock = check_store("careless://bucket/run")
    assert (written.level, conditions.level, clock.level) == (OK, WARNING, WARNING)
    assert "conditional writes" in conditions.text
    assert "differ by 60 min" in clock.text


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LEAST_DISK", 1e18)
    _, finding = check_store(str(tmp_path))
    assert (finding.level, finding.text.split()[-1]) == (WARNING, "free")
