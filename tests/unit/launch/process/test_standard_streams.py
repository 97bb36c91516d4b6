"""A caller may close standard streams; the launcher then has the null device there."""

import os
import subprocess
import sys

import pytest

CALL = [sys.executable, "-P", "-c", "import sys; from distrib.launch.cli import main; main()"]
JOB = ["run", "-np", "1", "--backend", "multiworker", "sh", "-c", "echo out; echo err >&2"]


@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [
        ("<&- >&- 2>&-", "", ""),
        (">&-", "", "err\n"),
        ("2>&-", "out\n", ""),
        ("<&-", "out\n", "err\n"),
    ],
)
def test_closed_streams(closed: str, out: str, err: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *CALL, *JOB], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, out, err)


def test_characters_that_the_output_cannot_encode() -> None:
    code = (
        "import sys; from distrib.launch.process import standard_streams as streams\n"
        "streams.escape_unprintable(); print(chr(233))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True)
    assert done.stdout == rb"\xe9" b"\n"
