import io

from distrib.data.files.range_file import RangeFile

CONTENT = bytes(range(100))


def test_it_reads_like_a_file():
    file = RangeFile(lambda start, end: CONTENT[start:end], 100)
    assert file.read(3) == CONTENT[:3]
    assert file.seek(-5, io.SEEK_END) == 95
    assert file.read() == CONTENT[95:]
    assert file.read(1) == b""
    assert file.seek(200) == 200
    assert file.read(1) == b""
    file.seek(10)
    assert file.seek(5, io.SEEK_CUR) == file.tell() == 15
    assert io.BufferedReader(file, 16).read(50) == CONTENT[15:65]


def test_a_window_is_read_once():
    asked = []

    def read(start, end):
        asked.append((start, end))
        return CONTENT[start:end]

    file = RangeFile(read, 100, 20)
    assert [file.read(5) for _ in range(4)] == [CONTENT[i : i + 5] for i in range(0, 20, 5)]
    file.seek(90)
    assert file.read(4) == CONTENT[90:94]
    assert asked == [(0, 20), (90, 100)]
