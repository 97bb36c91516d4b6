from distrib.launch.horovod.log_excerpt import relevant_log_lines


def test_a_short_log_is_shown_whole() -> None:
    assert relevant_log_lines("a\nb\n") == "a\nb"


def test_errors_that_later_output_has_buried_come_first() -> None:
    log = ["begin", "a.cc:1: fatal error: b.h", *["more"] * 99, "end"]
    assert relevant_log_lines("\n".join(log)).splitlines() == [
        *("a.cc:1: fatal error: b.h", "..."),
        *["more"] * 11,
        "end",
    ]


def test_long_lines_and_many_errors_are_cut() -> None:
    lines = relevant_log_lines("\n".join(["error: " + "x" * 999] * 99)).splitlines()
    assert len(lines) == 8 + 1 + 12
    assert max(map(len, lines)) == 300
