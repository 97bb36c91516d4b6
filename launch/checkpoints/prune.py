"""`distrib checkpoints prune`: removes the checkpoints that no retention policy keeps.

The newest one always stays, as do damaged and superseded ones, which policies do not rate.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from distrib.checkpoint.manifest import Manifest
from distrib.checkpoint.retention import AnyOf, BestN, EveryNSteps, LatestN, RetentionPolicy
from distrib.errors import EXIT_FINISHED, ConfigurationError

from ..arguments import positive
from .lookup import COMMITTED, require_checkpoints
from .options import add_command, open_run
from .rm import locked, remove


def add_commands(commands: Any) -> None:
    """Add `prune`."""
    text = "remove the checkpoints that no --keep option keeps; the newest always stays"
    command = add_command(commands, "prune", _prune, text)
    add = command.add_argument
    add("--keep-last", type=positive, required=True, metavar="N", help="keep the newest N")
    add("--keep-every", type=positive, metavar="N", help="keep the first of every N steps")
    text = "keep the one with the smallest METRIC, or the largest with METRIC:max"
    add("--keep-best", type=_best, metavar="METRIC[:max]", help=text)
    add("--dry-run", action="store_true", help="print what would be removed, and remove nothing")


def _prune(options: argparse.Namespace) -> int:
    directory = open_run(options)
    policies: list[RetentionPolicy] = [LatestN(options.keep_last)]
    if options.keep_every is not None:
        policies.append(EveryNSteps(options.keep_every))
    if options.keep_best is not None:
        policies.append(options.keep_best)
    with nullcontext() if options.dry_run else locked(directory):
        found = require_checkpoints(directory)
        committed = [one for one in found if one.state == COMMITTED and one.stored]
        manifests = [one.stored.manifest for one in committed if one.stored]
        _check_metric(options.keep_best, manifests)
        keep = AnyOf(*policies).keep(manifests)
        chosen = [one for one in committed if one.step not in keep]
        remove(directory, chosen, options.json, options.dry_run)
    return EXIT_FINISHED


def _check_metric(best: BestN | None, manifests: Sequence[Manifest]) -> None:
    """Refuse a misspelled metric, which would keep nothing."""
    if best is None:
        return
    metrics = [manifest.metrics for manifest in manifests]
    if all(math.isnan(values.get(best.metric, math.nan)) for values in metrics):
        known = ", ".join(sorted({name for values in metrics for name in values})) or "none"
        raise ConfigurationError(
            f"Nothing was removed: no checkpoint has the metric {best.metric!r} of --keep-best. "
            f"They have {known}."
        )


def _best(text: str) -> BestN:
    metric, _, mode = text.partition(":")
    if mode not in ("", "min", "max") or not metric:
        raise argparse.ArgumentTypeError(f"{text!r} is not a metric such as val_loss or acc:max")
    return BestN(1, metric, "max" if mode == "max" else "min")
