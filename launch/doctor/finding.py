"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"
LEVELS = (OK, WARNING, PROBLEM)  # The exit code of the worst finding is its place here.


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: `"ok"`; `"warning"` for what costs time or hurts some jobs; `"problem"` for what jobs
            fail of.
        subject: What was checked.
        text: What was found.
        remedy: What to do; empty if there is nothing to do.
    """

    level: str
    subject: str
    text: str
    remedy: str = ""
