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


def test_a_message_is_one_line_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    log.info("resuming.")
    assert capfd.readouterr() == ("", "\ndistrib: resuming.\n")


def test_only_the_chief_shows_messages(capsys: pytest.CaptureFixture[str]) -> None:
    show_chief_only(is_chief=False)
    log.error("a message of all ranks")
    log.info("a message of this rank", extra=ANY_RANK)
    assert capsys.readouterr().err == "\ndistrib: a message of this rank\n"
    show_chief_only(is_chief=True)  # As by a second `init()` in a notebook.
    log.info("a message of all ranks")
    assert capsys.readouterr().err == "\ndistrib: a message of all ranks\n"


def test_users_can_set_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("distrib").setLevel("WARNING")
    log.info("not shown")
    log.warning("shown")
    assert capsys.readouterr().err == "\ndistrib: shown\n"


@pytest.mark.parametrize(
    ("before", "shown"),
    [
        # A handler of the root logger does not show messages twice.
        ("logging.basicConfig(format='root: %(message)s', level=0)", "\ndistrib: x\n"),
        # The user's own handler for this logger replaces the default one.
        (
            "log = logging.getLogger('distrib'); log.addHandler(logging.StreamHandler());"
            "log.setLevel('INFO')",
            "x\n",
        ),
        ("logging.getLogger('distrib').setLevel('ERROR')", ""),
    ],
)
def test_settings_made_before_the_import_are_kept(before: str, shown: str) -> None:
    code = f"import logging; {before}; from distrib.log import log; log.info('x')"
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == shown
