"""`distrib plan`: how often a job should save, and what failures cost it, before it is started.

Two curves: over the interval between saves, which shows how flat the optimum is, and over the
number of nodes, which shows how far a job can grow before failures eat what the nodes add. Each
point is computed twice, by the formula and by simulation, so that neither has to be believed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distrib.errors import EXIT_FINISHED
from distrib.save_policy.interval import MAX_OVERHEAD, Costs, best_interval, daly, goodput
from distrib.units import format_duration

from ..arguments import duration, size
from .simulation import Spent, simulate

STEP_BLOCK = 1.0
_BAR = 40
_DECIMAL = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        label: What it stands for: an interval, or a number of nodes.
        interval: Seconds between saves.
        predicted: Goodput by the formula.
        spent: Where the time goes, by simulation.
        remarks: What is special about it.
    """

    label: str
    interval: float
    predicted: float
    spent: Spent
    remarks: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distrib plan`."""
    parser.description = (
        "Say how often a job should save, and which share of its time saves and failures cost. "
        "Times: 30s 5m 2h 10d 5y, or seconds. Sizes: MB GB TB MiB GiB TiB."
    )
    add = parser.add_argument
    add("--nodes", type=_count, required=True, metavar="N", help="machines in the job")
    add("--mtbf", type=duration, required=True, metavar="TIME", help="between failures of one node")
    add("--checkpoint-size", type=size, required=True, metavar="SIZE", help="such as 1.2TB")
    add("--bandwidth", type=_bandwidth, required=True, metavar="SIZE/s", help="of the storage")
    add("--step-block", type=duration, metavar="TIME", help="a save holds training up (1s)")
    add("--restart-time", type=duration, default=300.0, metavar="TIME", help="but for reading (5m)")
    add("--interval", type=duration, metavar="TIME", help="one of yours, to compare")
    add(
        "--max-overhead",
        type=_share,
        default=MAX_OVERHEAD,
        metavar="SHARE",
        help=f"of the time that saves may take ({MAX_OVERHEAD})",
    )
    add("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    transfer = options.checkpoint_size / options.bandwidth
    costs = Costs(options.step_block or STEP_BLOCK, transfer, options.restart_time + transfer)
    mtbf = options.mtbf / options.nodes
    choice = best_interval(costs, mtbf, options.max_overhead)
    intervals = _over_intervals(costs, mtbf, choice.seconds, options.interval)
    nodes = _over_nodes(costs, options)
    if options.json:
        known = {
            "mtbf": mtbf,
            **asdict(costs),
            "optimum": daly(costs.save_cost, mtbf),
            "interval": choice.seconds,
            "reason": choice.reason,
            "goodput": goodput(choice.seconds, costs, mtbf),
        }
        curves = {"intervals": _rows(intervals), "nodes": _rows(nodes)}
        print(json.dumps({**known, **curves}, indent=1))
        return EXIT_FINISHED
    _print_inputs(options, costs, mtbf)
    share = goodput(choice.seconds, costs, mtbf)
    print(f"\nSave every {format_duration(choice.seconds)}: {choice.reason}.", end=" ")
    print(f"{100 * share:.2f} % of the time is training that lasts.\n")
    _print_table("save every", intervals)
    if any(point.interval < costs.write_time for point in intervals):
        shortest = format_duration(costs.write_time)
        print(f"One save is written at a time: what is below {shortest} acts like {shortest}.")
    print("\nOther numbers of nodes, each with its own interval; all else is the same:\n")
    _print_table("nodes", nodes)
    print("\nLost to: = saves, # work done again, . restarts.")
    return EXIT_FINISHED


def _over_intervals(costs: Costs, mtbf: float, chosen: float, asked: float | None) -> list[Point]:
    optimum = daly(costs.save_cost, mtbf)
    remarks: dict[float, list[str]] = {optimum * 2.0**power: [] for power in range(-4, 5)}
    remarks[optimum].append("Daly's optimum")
    if chosen != optimum:
        remarks.setdefault(chosen, []).append("within the bounds")
    if asked is not None:
        remarks.setdefault(asked, []).append("--interval")
    return [
        _point(format_duration(interval), interval, costs, mtbf, remarks[interval])
        for interval in sorted(remarks)
    ]


def _over_nodes(costs: Costs, options: argparse.Namespace) -> list[Point]:
    points = []
    for count in sorted({max(1, round(options.nodes * 2.0**power)) for power in range(-4, 3)}):
        mtbf = options.mtbf / count
        interval = best_interval(costs, mtbf, options.max_overhead).seconds
        remarks = [f"save every {format_duration(interval)}"]
        if count == options.nodes:
            remarks.append("--nodes")
        points.append(_point(str(count), interval, costs, mtbf, remarks))
    return points


def _point(label: str, interval: float, costs: Costs, mtbf: float, remarks: Sequence[str]) -> Point:
    predicted = goodput(interval, costs, mtbf)
    return Point(label, interval, predicted, simulate(interval, costs, mtbf), tuple(remarks))


def _rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    return [
        {
            "label": point.label,
            "interval": point.interval,
            "goodput": point.predicted,
            "simulated": point.spent.goodput,
            "saves": point.spent.saves / point.spent.total,
            "repeated": point.spent.repeated / point.spent.total,
            "restarts": point.spent.restarts / point.spent.total,
            "remarks": point.remarks,
        }
        for point in points
    ]


def _print_inputs(options: argparse.Namespace, costs: Costs, mtbf: float) -> None:
    size, bandwidth = _decimal_size(options.checkpoint_size), _decimal_size(options.bandwidth)
    assumed = "" if options.step_block else " (assumed; --step-block)"
    print(f"{options.nodes} nodes, each fails every {format_duration(options.mtbf)}: ", end="")
    print(f"the job fails every {format_duration(mtbf)}")
    print(
        f"checkpoints of {size} at {bandwidth}/s: "
        f"{format_duration(costs.write_time)} to write or read"
    )
    print(f"a save holds the training up for {format_duration(costs.save_cost)}{assumed}")
    print(f"a restart takes {format_duration(costs.restart_time)}, reading included")


def _print_table(title: str, points: Sequence[Point]) -> None:
    widest = max(1 - point.spent.goodput for point in points)
    scale = f"lost ({100 * widest:.1f} % is the longest bar)"
    print(f"{title:>10}  {'goodput':>8} {'simulated':>9}  {scale}")
    for point in points:
        bar = _bar(point.spent, _BAR / widest)
        remarks = f"{bar:<{_BAR}}  {', '.join(point.remarks)}" if point.remarks else bar
        simulated = point.spent.goodput
        print(f"{point.label:>10}  {point.predicted:>8.2%} {simulated:>9.2%}  {remarks}")


def _bar(spent: Spent, scale: float) -> str:
    bar, lost = "", 0.0
    for sign, seconds in (("=", spent.saves), ("#", spent.repeated), (".", spent.restarts)):
        lost += seconds / spent.total
        bar += sign * (round(lost * scale) - len(bar))
    return bar


def _decimal_size(size: float) -> str:
    """Return bytes in the powers of ten that storage is sold by."""
    factor, unit = next(each for each in _DECIMAL if size >= each[0] or each is _DECIMAL[-1])
    return f"{size / factor:.4g} {unit}"


def _bandwidth(text: str) -> float:
    try:
        return size(text.removesuffix("/s")) if text.endswith("/s") else size("")
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a bandwidth above 0, such as 500MB/s or 200GB/s"
        ) from None


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of nodes from 1 to 999999999")
    return int(text)


def _share(text: str) -> float:
    match = re.fullmatch(r"0?\.\d{1,12}", text, re.ASCII)
    if not match or float(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1, such as 0.035")
    return float(text)
