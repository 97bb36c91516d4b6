"""`distrib checkpoints rm` and `prune`: checkpoints that nobody needs any more.

The newest one is what a run goes on from: `prune` never takes it, and `rm` only if told to. Damaged
ones are no business of `prune`, and what was set aside is none of either.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from distrib.checkpoint import commit
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.retention import AnyOf, BestN, EveryNSteps, LatestN, RetentionPolicy
from distrib.errors import EXIT_FINISHED, ConfigurationError
from distrib.units import format_size

from ..arguments import positive
from .lookup import (
    COMMITTED,
    Found,
    add_command,
    existing,
    newest,
    open_run,
    pick,
    plainly,
    step_number,
)


def add_commands(commands: Any) -> None:
    """Add `rm` and `prune`."""
    command = add_command(commands, "rm", _remove, "remove checkpoints")
    command.add_argument("step", nargs="+", type=step_number, metavar="STEP", help="which ones")
    command.add_argument("--force", action="store_true", help="the newest one, too")
    text = "remove the checkpoints that are not to be kept; the newest always is"
    command = add_command(commands, "prune", _prune, text)
    add = command.add_argument
    add("--keep-last", type=positive, required=True, metavar="N", help="keep the newest N")
    add("--keep-every", type=positive, metavar="N", help="keep the first of every N steps")
    text = "keep the one with the least METRIC, or the largest with METRIC:max"
    add("--keep-best", type=_best, metavar="METRIC[:max]", help=text)
    add("--dry-run", action="store_true", help="only print what would be removed")


def _remove(options: argparse.Namespace) -> int:
    directory = open_run(options)
    with _alone_in(directory):
        found = existing(directory)
        chosen = [pick(directory, found, step) for step in sorted(set(options.step))]
        last = newest(found) or found[-1]
        if last in chosen and not options.force:
            raise ConfigurationError(
                f"Nothing was removed: {last.place} is the newest checkpoint, which the run goes "
                "on from. Remove it with --force."
            )
        return _finish(directory, chosen, options.json, dry_run=False)


def _prune(options: argparse.Namespace) -> int:
    directory = open_run(options)
    policies: list[RetentionPolicy] = [LatestN(options.keep_last)]
    if options.keep_every is not None:
        policies.append(EveryNSteps(options.keep_every))
    if options.keep_best is not None:
        policies.append(options.keep_best)
    with nullcontext() if options.dry_run else _alone_in(directory):
        counting = [one for one in existing(directory) if one.state == COMMITTED and one.stored]
        manifests = [one.stored.manifest for one in counting if one.stored]
        _check_metric(options.keep_best, counting)
        keep = AnyOf(*policies).keep(manifests)
        going = [one for one in counting if one.step not in keep]
        return _finish(directory, going, options.json, options.dry_run)


def _finish(
    directory: CheckpointDirectory, chosen: Sequence[Found], as_json: bool, dry_run: bool
) -> int:
    """Remove checkpoints, and say so of each as soon as it is gone."""
    if not chosen and not as_json:
        print("Nothing is to be removed.")
    rows = []
    for one in chosen:
        if not dry_run:
            with plainly(one.place):
                commit.remove(directory.location, one.step)
        size = one.stored.manifest.size if one.stored else 0
        rows.append({"step": one.step, "path": str(one.place), "bytes": size})
        if not as_json:
            done = "would remove" if dry_run else "removed"
            print(f"{done} {one.place} ({format_size(size)})")
    if as_json:
        print(json.dumps(rows, indent=1))
    return EXIT_FINISHED


@contextmanager
def _alone_in(directory: CheckpointDirectory) -> Iterator[None]:
    """Keep training processes of this machine out, or be kept out by one."""
    try:
        directory.lock()
    except ConfigurationError as error:
        raise ConfigurationError(f"Nothing was removed. {error}") from error
    try:
        yield
    finally:
        directory.unlock()


def _check_metric(best: BestN | None, counting: Sequence[Found]) -> None:
    """Refuse a misspelt metric, which would keep nothing."""
    if best is None:
        return
    metrics = [one.stored.manifest.metrics for one in counting if one.stored]
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
