"""Forks jobs from a process that has imported everything already.

Importing TensorFlow, Keras and Orbax takes longer than most test jobs. The nursery does it once and
starts nothing of them; each job is a process of its own, forked from there, with real signals.

It reads one JSON object a line, `{"script", "arguments", "output", "errors"}`, and answers with
the exit status of the job, negative for a signal.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn


def import_all(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    import models  # noqa: F401

    import distrib.callbacks
    import distrib.resume  # noqa: F401
    from distrib.checkpoint import arrays

    arrays._orbax()


def become(script: str, arguments: list[str], output: str, errors: str) -> NoReturn:
    for descriptor, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [script, *arguments]
    code: Any = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        try:
            sys.excepthook(*sys.exc_info())
            code = 1
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    import_all(Path(__file__).parent)
    for line in sys.stdin:
        order = json.loads(line)
        job = os.fork()
        if job == 0:
            become(**order)
        _, status = os.waitpid(job, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
