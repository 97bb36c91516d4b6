"""`distrib k8s lint`: prints the faults of manifests, rendered or written by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from distrib.errors import EXIT_CONFIGURATION, EXIT_FINISHED, UsageError

from . import manifests
from .lint_rules import find_problems
from .pod_group import pod_groups


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distrib k8s lint`."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="read this YAML file (- for standard input)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    documents = [document for file in options.files for document in _read(file)]
    # `kubectl get` writes a List.
    objects = [item for each in documents for item in (each.get("items") or [each])]
    if not any(True for each in objects for _ in pod_groups(each)):
        raise UsageError(f"{' '.join(options.files)}: no Job, JobSet, TrainingRuntime or MPIJob.")
    problems = find_problems(objects)
    for line in problems:
        print(line, file=sys.stderr)
    return EXIT_CONFIGURATION if problems else EXIT_FINISHED


def _read(file: str) -> list[dict[str, Any]]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        documents = manifests.load(text)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{file} is not YAML: {error}") from error
    if not all(isinstance(document, dict) for document in documents):
        raise UsageError(f"{file}: not all documents are objects.")
    return documents
