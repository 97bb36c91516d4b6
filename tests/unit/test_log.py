import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from distrib.log import ANY_RANK, log, show_chief_only


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    filters, level = list(log.filters), log.level
    yield
    log.filters[:] = filters
    log.setLevel(level)


def test_a_message_looks_the_same_on_every_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    log.info("resuming.")
    assert capfd.readouterr() == ("", "\ndistrib: resuming.\n")


def test_only_the_chief_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    show_chief_only(is_chief=False)
    log.error("what all ranks know")
    log.info("what this rank knows", extra=ANY_RANK)
    assert capsys.readouterr().err == "\ndistrib: what this rank knows\n"
    show_chief_only(is_chief=True)  # As of a second `init()`, in a notebook.
    log.info("what all ranks know")
    assert capsys.readouterr().err == "\ndistrib: what all ranks know\n"


def test_users_set_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("distrib").setLevel("WARNING")
    log.info("not shown")
    log.warning("shown")
    assert capsys.readouterr().err == "\ndistrib: shown\n"


@pytest.mark.parametrize(
    ("before", "shown"),
    [
        # A handler of the root logger shows nothing twice.
        ("logging.basicConfig(format='root: %(message)s', level=0)", "\ndistrib: x\n"),
        # A handler of the user's for this logger takes the place of ours.
        (
            "log = logging.getLogger('distrib'); log.addHandler(logging.StreamHandler());"
            "log.setLevel('INFO')",
            "x\n",
        ),
        ("logging.getLogger('distrib').setLevel('ERROR')", ""),
    ],
)
def test_settings_made_before_the_import_hold(before: str, shown: str) -> None:
    code = f"import logging; {before}; from distrib.log import log; log.info('x')"
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == shown
