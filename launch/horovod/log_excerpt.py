"""The lines of a long output that say why something failed."""

from __future__ import annotations

import re

ERROR_LINE = re.compile(r"error: |CMake Error|Error: ")
MAX_ERROR_LINES, LAST_LINES, MAX_COLUMNS = 8, 12, 300


def relevant_log_lines(text: str) -> str:
    """Return the first error lines of a log, which later output may have buried, and its end."""
    lines = [line[:MAX_COLUMNS] for line in text.splitlines()]
    before, last = lines[:-LAST_LINES], lines[-LAST_LINES:]
    errors = [line for line in before if ERROR_LINE.search(line)][:MAX_ERROR_LINES]
    return "\n".join([*errors, *(["..."] if before else []), *last])
