"""Messages to the user, through the Python logger `distrib`.

By default the chief alone logs, from level INFO up, one line a message on stderr (Keras draws its
progress bar on stdout) that begins with `distrib:`. Users can change level, handlers and format:

>>> logging.getLogger("distrib").setLevel("WARNING")
>>> logging.getLogger("distrib").handlers = [logging.FileHandler("distrib.log")]
"""

from __future__ import annotations

import logging
import sys

log = logging.getLogger("distrib")
# Pass as `extra` for a message that concerns this rank alone, so that every rank shows it.
ANY_RANK = {"any_rank": True}


class _StderrHandler(logging.Handler):
    """Writes to the current `sys.stderr`, which a notebook or a test may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None:  # Closed by who started Python; `print` would take stdout instead.
            return
        try:
            # Keras's progress bar leaves the cursor in the middle of a line.
            print(f"\n{self.format(record)}", file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


class ChiefOnly(logging.Filter):
    """Drops messages on all ranks but the chief, except those logged with `ANY_RANK`.

    Args:
        is_chief: Whether this process is the chief.
    """

    def __init__(self, is_chief: bool) -> None:
        super().__init__()
        self._is_chief = is_chief

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to show the message."""
        return self._is_chief or getattr(record, "any_rank", False)


def show_chief_only(is_chief: bool) -> None:
    """Show messages on the chief only; replaces the filter of an earlier call."""
    for old in list(log.filters):
        if isinstance(old, ChiefOnly):
            log.removeFilter(old)
    log.addFilter(ChiefOnly(is_chief))


def _set_defaults() -> None:
    """Set level and handler, unless the user has set them before importing distrib."""
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    if not log.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("distrib: %(message)s"))
        log.addHandler(handler)
        log.propagate = False  # A handler on the root logger would show every message twice.


_set_defaults()
