import io
import os
import pickle
import tarfile

import pytest

from distrib.data import TarSource
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, members, format=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def examples(numbers, folder="", size=600):
    for number in numbers:
        yield f"{folder}{number:03}.JPG", b"%d" % number * size
        yield f"{folder}{number:03}.seg.png", b"mask"
        yield f"{folder}{number:03}.cls", b"%d" % number


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "a-0.tar", examples(range(5)))
    write(tmp_path / "a-1.tar", examples(range(5, 12), "deep/" * 60), tarfile.PAX_FORMAT)
    return tmp_path


def test_an_example_is_all_members_of_a_basename(folder):
    source = TarSource(folder / "a-*.tar")
    assert len(source) == 12
    for number in (11, 0, 4, 5):
        key = f"{number:03}" if number < 5 else "deep/" * 60 + f"{number:03}"
        assert source[number] == {
            "__key__": key,
            "jpg": b"%d" % number * 600,
            "seg.png": b"mask",
            "cls": b"%d" % number,
        }
    copied = pickle.loads(pickle.dumps(source))
    assert copied.__getitems__([7, 3]) == [source[7], source[3]]


def test_the_index_is_kept_and_told_from_another_format(folder, caplog):
    first = TarSource(folder / "a-*.tar")
    caplog.clear()
    assert TarSource(folder / "a-*.tar")[6] == first[6]
    assert not caplog.records


def test_a_dataset_takes_a_pattern(folder):
    dataset = make_dataset(f"{folder}/a-*.tar", 4, map=lambda example: int(example["cls"]))
    assert [batch.numpy().tolist() for batch in dataset][1] == [4, 5, 6, 7]


def test_what_is_no_example_does_not_count(folder):
    with tarfile.open(folder / "b.tar", "w") as archive:
        directory = tarfile.TarInfo("x.d")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for name in ("README", "x/.hidden", "x/1.cls", "x/notes", "x/2.cls"):
            archive.addfile(tarfile.TarInfo(name))
    source = TarSource(folder / "b.tar")
    assert [example["__key__"] for example in source.__getitems__([0, 1])] == ["x/1", "x/2"]


def test_an_example_that_lacks_members_is_named(folder):
    write(folder / "b.tar", [*examples(range(2)), ("x/9.cls", b"9"), ("x/9.jpg", b"9")])
    with pytest.raises(ConfigurationError, match=r"'x/9' of .*b.tar has no member seg.png, which"):
        TarSource(folder / "b.tar")
    source = TarSource(folder / "b.tar", optional=["seg.png"])
    assert "seg.png" not in source[2]
    with pytest.raises(ConfigurationError, match=r"optional=\('seg.png',\)"):
        TarSource(folder / "*.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["1.a", "2.a", "1.b"], "members of '1' are not next to each other"),
        (["1.a", "1.A"], "two members 1.a"),
        (["README"], "the tar files have no records"),
    ],
)
def test_members_that_make_no_examples_are_refused(folder, members, message):
    write(folder / "b.tar", [(name, b"") for name in members])
    with pytest.raises(ConfigurationError, match=message):
        TarSource(folder / "b.tar")


def test_links_are_refused(folder):
    with tarfile.open(folder / "b.tar", "w") as archive:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "2.jpg"
        archive.addfile(link)
    with pytest.raises(ConfigurationError, match=r"1.jpg is no regular file"):
        TarSource(folder / "b.tar")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:2000], "truncated"),
        (lambda content: content[: 512 * 10], "truncated: the mark of the archive's end"),
        (lambda content: content[: 512 * 9 + 100], "truncated"),
        (lambda content: content[:3] + b"\1" + content[4:], "no sound tar file"),
        (lambda content: content[:2563] + b"\1" + content[2564:], "damaged at byte 2560"),
        (lambda content: content + content, "something follows the archive's end"),
        (lambda content: b"", "no sound tar file"),
        (lambda content: b"\x1f\x8b" + content, "compressed"),
        (lambda content: b"id,label\n" * 100, "no sound tar file"),
    ],
)
def test_unsound_files_are_named(folder, damage, message):
    content = (folder / "a-0.tar").read_bytes()
    (folder / "b.tar").write_bytes(damage(content))
    with pytest.raises(ConfigurationError, match=f"b.tar cannot be used: .*{message}"):
        TarSource(folder / "b.tar")


def test_a_header_damaged_after_indexing_is_named(folder):
    path = folder / "a-0.tar"
    content, times = bytearray(path.read_bytes()), path.stat().st_mtime
    source = TarSource(path)
    start = source[0]["jpg"]
    content[content.index(b"001.cls")] ^= 1
    path.write_bytes(content)
    os.utime(path, (times, times))
    assert source[0]["jpg"] == start
    with pytest.raises(ValueError, match=r"a-0.tar: the example at byte \d+ is damaged"):
        source[1]
