"""`distrib plan`: recommends an interval between saves, and predicts the goodput of a job.

The command prints two curves. Goodput over the interval shows how flat the optimum is; goodput
over the number of nodes shows how far a job can grow before failures cost more than nodes add. Each
point is computed twice, by the formula and by simulation, as a check of both.
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
from .simulation import TimeBreakdown, simulate

DEFAULT_STEP_BLOCK = 1.0  # Seconds.
_BAR_WIDTH = 40
_DECIMAL_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        label: The interval, or the number of nodes.
        interval: Seconds between saves.
        predicted: Goodput by the formula.
        simulated: Where the time goes, by simulation.
        remarks: To print beside the point.
    """

    label: str
    interval: float
    predicted: float
    simulated: TimeBreakdown
    remarks: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distrib plan`."""
    parser.description = (
        "Recommend an interval between saves, and predict the share of time that saves and "
        "failures cost. Times: 30s 5m 2h 10d 5y, or seconds. Sizes: MB GB TB MiB GiB TiB."
    )
    add = parser.add_argument
    text = "plan for N machines"
    add("--nodes", type=_count, required=True, metavar="N", help=text)
    text = "assume this mean time between failures of one node"
    add("--mtbf", type=duration, required=True, metavar="TIME", help=text)
    text = "assume checkpoints of this size, such as 1.2TB"
    add("--checkpoint-size", type=size, required=True, metavar="SIZE", help=text)
    text = "assume this bandwidth of the storage, such as 200GB/s"
    add("--bandwidth", type=_bandwidth, required=True, metavar="SIZE/s", help=text)
    text = "assume that a save blocks training for TIME (1s)"
    add("--step-block", type=duration, metavar="TIME", help=text)
    text = "assume that a restart takes TIME, besides reading the checkpoint (5m)"
    add("--restart-time", type=duration, default=300.0, metavar="TIME", help=text)
    add("--interval", type=duration, metavar="TIME", help="compare this interval, too")
    add(
        "--max-overhead",
        type=_share,
        default=MAX_OVERHEAD,
        metavar="SHARE",
        help=f"limit the time of saves to this share ({MAX_OVERHEAD})",
    )
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    transfer = options.checkpoint_size / options.bandwidth
    costs = Costs(
        options.step_block or DEFAULT_STEP_BLOCK, transfer, options.restart_time + transfer
    )
    mtbf = options.mtbf / options.nodes
    choice = best_interval(costs, mtbf, options.max_overhead)
    intervals = _interval_curve(costs, mtbf, choice.seconds, options.interval)
    nodes = _node_curve(costs, options)
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
    print(f"Expected goodput: {100 * share:.2f} %.\n")
    _print_table("save every", intervals)
    if any(point.interval < costs.write_time for point in intervals):
        shortest = format_duration(costs.write_time)
        print(f"One save is written at a time: intervals below {shortest} act like {shortest}.")
    print("\nOther numbers of nodes, each with its best interval; all else equal:\n")
    _print_table("nodes", nodes)
    print("\nLost to: = saves, # repeated work, . restarts.")
    return EXIT_FINISHED


def _interval_curve(
    costs: Costs, mtbf: float, chosen: float, compared: float | None
) -> list[Point]:
    optimum = daly(costs.save_cost, mtbf)
    remarks: dict[float, list[str]] = {optimum * 2.0**power: [] for power in range(-4, 5)}
    remarks[optimum].append("Daly's optimum")
    if chosen != optimum:
        remarks.setdefault(chosen, []).append("within the bounds")
    if compared is not None:
        remarks.setdefault(compared, []).append("--interval")
    return [
        _point(format_duration(interval), interval, costs, mtbf, remarks[interval])
        for interval in sorted(remarks)
    ]


def _node_curve(costs: Costs, options: argparse.Namespace) -> list[Point]:
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
            "simulated": point.simulated.goodput,
            "saves": point.simulated.saves / point.simulated.total,
            "repeated": point.simulated.repeated / point.simulated.total,
            "restarts": point.simulated.restarts / point.simulated.total,
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
    print(f"a save blocks training for {format_duration(costs.save_cost)}{assumed}")
    print(f"a restart takes {format_duration(costs.restart_time)}, including the read")


def _print_table(title: str, points: Sequence[Point]) -> None:
    widest = max(1 - point.simulated.goodput for point in points)
    scale = f"lost (longest bar: {100 * widest:.1f} %)"
    print(f"{title:>10}  {'goodput':>8} {'simulated':>9}  {scale}")
    for point in points:
        bar = _bar(point.simulated, _BAR_WIDTH / widest)
        remarks = f"{bar:<{_BAR_WIDTH}}  {', '.join(point.remarks)}" if point.remarks else bar
        simulated = point.simulated.goodput
        print(f"{point.label:>10}  {point.predicted:>8.2%} {simulated:>9.2%}  {remarks}")


def _bar(time: TimeBreakdown, scale: float) -> str:
    bar, lost = "", 0.0
    for sign, seconds in (("=", time.saves), ("#", time.repeated), (".", time.restarts)):
        lost += seconds / time.total
        bar += sign * (round(lost * scale) - len(bar))
    return bar


def _decimal_size(size: float) -> str:
    """Return bytes in decimal units, as storage is sold."""
    factor, unit = next(
        each for each in _DECIMAL_UNITS if size >= each[0] or each is _DECIMAL_UNITS[-1]
    )
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
