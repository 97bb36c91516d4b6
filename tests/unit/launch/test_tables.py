import time

import pytest

from distrib.launch.tables import age, date, print_table


def test_columns_are_as_wide_as_their_cells(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([">step", "state", "x"], [["7", "committed", ""], ["1000", "late", "y"]])
    assert capsys.readouterr().out.splitlines() == [
        "step  state      x",
        "   7  committed",
        "1000  late       y",
    ]


def test_times() -> None:
    now = time.time()
    assert age(now + 100) == "0 s"
    assert age(now - 36_000).endswith(" h")
    assert date(1.0) == "1970-01-01 00:00:01 UTC"
