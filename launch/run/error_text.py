"""Finds, in what a rank wrote to standard error, the error that ended it.

A traceback is not the last thing that a process writes, and its last line is rarely the exception:
notes and further lines of the message follow, TensorFlow quotes tracebacks within a message, and
C++ reports its errors in other forms. Only text is left of a rank that could not import distrib.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_MAX_LENGTH = 400
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_HEADER = re.compile(r"(  \+ Exception Group )?Traceback \(most recent call last\):$")
# Begins the lines of an exception group; or is such a line, between two exceptions.
_MARGIN = re.compile(r"[ |+-]*[|+](?:-+ \d+ -+$|-+$| ?)")
# Python reports an exception in this way that has not ended the process.
_SURVIVED = re.compile(r"Exception ignored |Exception in thread |Exception in callback ")
_CHAINED = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_MODULES = re.compile(r"^(?:[A-Za-z_]\w*\.)+(?=\w+(?::|$))")
# Keras and TensorFlow say below these lines what is wrong.
_GRAPH_ERROR = "Graph execution error:"
_LAYER_ERROR = "Exception encountered when calling "
_TRACING_ERROR = "in user code:"
# Below the frames that such a message quotes, each with its source line further to the right.
_TRACED = re.compile(r" {4}(?!File )\S")
_GRAPH_DETAILS = re.compile(r"Detected at node|<stack traces|Stack trace for op|Original stack")
_OTHER_FORMS = (
    re.compile(r"(?:SyntaxError|IndentationError|TabError): .+"),
    re.compile(r"[\w./-]+(?: \w+)*: error: .+"),  # argparse
    re.compile(r"\S*python[\d.]*: .+"),  # No such script, no such module.
    re.compile(r"F\d{4} \S+ +\d+ \S+\] (.+)"),  # A failed check in C++, as absl logs it,
    re.compile(r"\d{4}-\d\d-\d\d \S+ F \S+\] (.+)"),  # and as earlier TensorFlow does.
    re.compile(r"terminate called after throwing an instance of '(.+)'"),
    re.compile(r"Fatal Python error: .+"),
)
_FATAL, _WHAT = "Fatal Python error: ", "  what():  "
_NOISE = re.compile(r"distrib: |[IWE]\d{4} |\d{4}-\d\d-\d\d |WARNING|.*Warning: |To enable ")


@dataclass(frozen=True)
class ErrorText:
    """An error as a rank has reported it.

    Attributes:
        line: Type and message in one line; empty if there is no error.
        chain: The same of each exception that led to it, and of the error itself.
    """

    line: str = ""
    chain: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """The exception's type, without its module."""
        return self.line.partition(":")[0]


NO_ERROR = ErrorText()


def find_error(text: str) -> ErrorText:
    """Return the last error in a rank's standard error that may have ended the rank.

    Args:
        text: Standard error, or the end of it.
    """
    lines = [line.rstrip("\r") for line in _COLOURS.sub("", text).split("\n")]
    fatal = found = NO_ERROR
    chain: tuple[str, ...] = ()
    for start, line in _errors(lines):
        if line.startswith(_FATAL):  # faulthandler adds this to an error that C++ has reported.
            fatal = fatal if fatal.line else ErrorText(line, (line,))
            continue
        before = next((each for each in reversed(lines[:start]) if each.strip()), "")
        chain = (*chain, line) if before in _CHAINED else (line,)
        if not (_SURVIVED.match(before) and found.line):
            found = ErrorText(line, chain)
    return found if found.line else fatal


def last_line(text: str) -> str:
    """Return the last line that may say why a process ended without an exception."""
    lines = (line.strip("\r") for line in reversed(_COLOURS.sub("", text).split("\n")))
    return next(
        (line[:_MAX_LENGTH] for line in lines if line[:1].strip() and not _NOISE.match(line)), ""
    )


def _errors(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the errors in some lines, each with the number of the line at which it begins."""
    for number, line in enumerate(lines):
        header = _HEADER.match(line)
        if header:
            error = _group_error(lines, number) if header[1] else _exception(lines, number)
            if error:
                yield number, error
            continue
        for form in _OTHER_FORMS:
            match = form.match(line)
            if match:
                yield number, _other_error(match, lines[number + 1 : number + 2])
                break


def _other_error(match: re.Match[str], following: Sequence[str]) -> str:
    text = match[match.lastindex or 0]
    if following and following[0].startswith(_WHAT):
        text += f": {following[0].removeprefix(_WHAT)}"
    return text[:_MAX_LENGTH]


def _exception(lines: Sequence[str], header: int) -> str:
    """Return the exception below a traceback's header, without its notes."""
    number = _find(lines, header + 1, _is_at_margin)
    if number is None:
        return ""
    return _message(lines, number)


def _message(lines: Sequence[str], number: int) -> str:
    """Return the exception whose type and message begin at a line."""
    line = _MODULES.sub("", lines[number])
    kind, _, message = line.partition(": ")
    if message == _GRAPH_ERROR:
        details = [each for each in lines[number + 1 : _end(lines, number)] if _is_detail(each)]
        line = f"{kind}: {details[-1]}" if details else line
    elif message == _TRACING_ERROR:
        inner = lines[number + 1 : _end(lines, number)]
        start = _find(inner, 0, lambda each: bool(_TRACED.match(each)))
        line = line if start is None else _message([each[4:] for each in inner], start)
    elif message.startswith(_LAYER_ERROR):
        detail = _find(lines, number + 1, lambda each: bool(each.strip()))
        line = line if detail is None else f"{line} {lines[detail].strip()}"
    return line[:_MAX_LENGTH]


def _group_error(lines: Sequence[str], header: int) -> str:
    """Return an exception group and the first exception in it."""
    inner = []
    for line in lines[header + 1 :]:
        margin = _MARGIN.match(line)
        if margin is None:
            break
        inner.append(line[margin.end() :])
    errors = [line for line in inner if _is_at_margin(line) and "Traceback (" not in line]
    return ": ".join(_MODULES.sub("", each) for each in errors[:2])[:_MAX_LENGTH]


def _find(lines: Sequence[str], start: int, matches: Callable[[str], bool]) -> int | None:
    return next((n for n in range(start, len(lines)) if matches(lines[n])), None)


def _end(lines: Sequence[str], start: int) -> int:
    """Return where the message that begins at `start` ends at the latest."""
    end = _find(lines, start + 1, lambda each: bool(_HEADER.match(each)) or each in _CHAINED)
    return len(lines) if end is None else end


def _is_at_margin(line: str) -> bool:
    """Tell whether a line below a header is no frame, no source line, no mark under one."""
    return bool(line[:1].strip()) and bool(line.strip("^~- "))


def _is_detail(line: str) -> bool:
    return _is_at_margin(line) and not _GRAPH_DETAILS.match(line) and not _NOISE.match(line)
