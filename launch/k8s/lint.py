"""`distrib k8s lint`: what is wrong with manifests, whoever wrote them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from distrib.errors import EXIT_CONFIGURATION, EXIT_FINISHED, UsageError

from . import manifests
from .lint_rules import pods_of, problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distrib k8s lint`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="YAML; - is standard input")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    found = [each for file in options.files for each in _read(file)]
    # What `kubectl get` writes is a List.
    objects = [item for each in found for item in (each.get("items") or [each])]
    if not any(True for each in objects for _ in pods_of(each)):
        raise UsageError(f"{' '.join(options.files)}: no Job, JobSet, TrainingRuntime or MPIJob.")
    wrong = problems(objects)
    for line in wrong:
        print(line, file=sys.stderr)
    return EXIT_CONFIGURATION if wrong else EXIT_FINISHED


def _read(file: str) -> list[dict[str, Any]]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        documents = manifests.load(text)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{file} is no YAML: {error}") from error
    if not all(isinstance(document, dict) for document in documents):
        raise UsageError(f"{file}: not all of its documents are objects.")
    return documents
