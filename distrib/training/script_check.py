"""What is said, or refused, when the script of a run has changed since the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from distrib.errors import CheckpointMismatchError
from distrib.log import log
from distrib.state.script_changes import Change

OnChange = Literal["warn", "error", "ignore"]
_MAX_SHOWN = 10


def check_script(changes: Sequence[Change], place: str, on_change: OnChange) -> None:
    """Log what has changed in a script, or refuse it.

    Args:
        changes: The same on all ranks.
        place: Of the checkpoint.
        on_change: As of `BackupAndRestore`.

    Raises:
        CheckpointMismatchError: With `"error"`, if a change bears on what is trained.
    """
    serious = [change for change in changes if not change.harmless]
    harmless = [change for change in changes if change.harmless]
    if serious and on_change == "error":
        raise CheckpointMismatchError(
            f"The script has changed since {place} was written:{_lines(serious)}\n"
            "Nothing was changed. Undo it, give this run its own `directory`, or pass "
            '`on_change="warn"` to go on.'
        )
    if serious and on_change == "warn":
        log.warning(
            f"the script has changed since {place} was written:{_lines(serious + harmless)}"
        )
    elif harmless and on_change != "ignore":
        log.info(f"another start than that of {place}:{_lines(harmless)}")


def _lines(changes: Sequence[Change]) -> str:
    lines = [f"\n  {change}" for change in changes[:_MAX_SHOWN]]
    rest = len(changes) - _MAX_SHOWN
    return "".join(lines) + (f"\n  and {rest} more" if rest > 0 else "")
