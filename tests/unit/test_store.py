from pathlib import Path

import pytest

from distrib.errors import ConfigurationError
from distrib.store import local_path, replacing, write_text


def test_local_paths_and_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_path("run", "directory") == tmp_path / "run"
    assert local_path(tmp_path / "run", "directory") == tmp_path / "run"
    assert local_path(f"file://{tmp_path}/run", "directory") == tmp_path / "run"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/run", "directory") == tmp_path / "run"


@pytest.mark.parametrize("url", ["s3://bucket/run", "gs://bucket/run", "memory://run"])
def test_other_storage_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"`log_dir='.*'` names"):
        local_path(url, "log_dir")


def test_empty_path_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`directory` is empty"):
        local_path("", "directory")


def test_replacing_makes_folders_and_keeps_suffixes(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "model.weights.h5"
    with replacing(target) as temporary:
        assert temporary.name.endswith(".weights.h5")
        assert temporary.parent == target.parent
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_failed_replacement_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "log.csv"
    write_text(target, "old")

    def fail() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "a\r\nb\n")
    assert (tmp_path / "t").read_bytes() == b"a\r\nb\n"
