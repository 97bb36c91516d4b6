import json
from typing import Any

import pytest

from distrib.launch.cli import main
from distrib.launch.plan.simulation import simulate
from distrib.save_policy.interval import Costs, best_interval, daly, goodput

JOB = {"--nodes": "4096", "--mtbf": "5y", "--checkpoint-size": "1.2TB", "--bandwidth": "200GB/s"}
YEAR = 365.25 * 86400


def plan(**changes: str) -> list[str]:
    options = {**JOB, **{f"--{name.replace('_', '-')}": value for name, value in changes.items()}}
    return ["plan", *(part for option in options.items() for part in option)]


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(**changes: str) -> str:
        assert main(plan(**changes)) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(**changes: str) -> Any:
        assert main([*plan(**changes), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def row(text: str, label: str) -> str:
    (line,) = (line for line in text.splitlines() if line.strip().startswith(f"{label}  "))
    return line


def test_the_inputs_come_first(out: Any) -> None:
    assert out().splitlines()[:4] == [
        "4096 nodes, each fails every 5 y: the job fails every 10.7 h",
        "checkpoints of 1.2 TB at 200 GB/s: 6 s to write or read",
        "a save blocks training for 1 s (assumed; --step-block)",
        "a restart takes 306 s, including the read",
    ]


def test_given_values_are_not_marked_as_assumed(out: Any) -> None:
    text = out(step_block="1", restart_time="1h", checkpoint_size="64GiB", bandwidth="500MB/s")
    assert "a save blocks training for 1 s\n" in text
    assert "checkpoints of 68.72 GB at 500 MB/s: 137 s to write or read" in text
    assert "a restart takes 62.3 min, including the read" in text


def test_the_recommended_interval(out: Any) -> None:
    text = out()
    share = goodput(daly(1, 5 * YEAR / 4096), Costs(1, 6, 306), 5 * YEAR / 4096)
    assert "Save every 277 s: the least loss to be expected." in text
    assert f"Expected goodput: {100 * share:.2f} %." in text
    assert row(text, "277 s").endswith("Daly's optimum")
    assert row(text, "4096").endswith("save every 277 s, --nodes")


def test_json_has_both_curves(answer: Any) -> None:
    found = answer()
    mtbf, costs = 5 * YEAR / 4096, Costs(1, 6, 306)
    assert found["mtbf"] == mtbf
    assert [found[name] for name in ("save_cost", "write_time", "restart_time")] == [1, 6, 306]
    assert found["interval"] == found["optimum"] == daly(1, mtbf)
    assert found["goodput"] == goodput(daly(1, mtbf), costs, mtbf)
    ratios = [point["interval"] / found["optimum"] for point in found["intervals"]]
    assert ratios == pytest.approx([2.0**power for power in range(-4, 5)])
    for point in found["intervals"]:
        time = simulate(point["interval"], costs, mtbf)
        assert point["goodput"] == goodput(point["interval"], costs, mtbf)
        assert point["simulated"] == time.goodput
        assert point["saves"] == time.saves / time.total
        lost = point["saves"] + point["repeated"] + point["restarts"]
        assert lost == pytest.approx(1 - point["simulated"])
    assert max(point["goodput"] for point in found["intervals"]) == found["goodput"]
    nodes = [256, 512, 1024, 2048, 4096, 8192, 16384]
    assert [point["label"] for point in found["nodes"]] == [str(count) for count in nodes]
    for point, count in zip(found["nodes"], nodes, strict=True):
        interval = best_interval(costs, 5 * YEAR / count).seconds
        assert point["interval"] == interval
        assert point["goodput"] == goodput(interval, costs, 5 * YEAR / count)


def test_bars_show_lost_time(out: Any, answer: Any) -> None:
    text, found = out(), answer()
    widest = max(1 - point["simulated"] for point in found["intervals"])
    assert f"lost (longest bar: {100 * widest:.1f} %)" in text
    for label, point in (("17.3 s", found["intervals"][0]), ("73.8 min", found["intervals"][-1])):
        line = row(text, label)
        for sign, part in (("=", "saves"), ("#", "repeated"), (".", "restarts")):
            signs = line.split("%")[-1].count(sign)
            assert signs == pytest.approx(40 * point[part] / widest, abs=1)


def test_a_given_interval_is_compared(out: Any) -> None:
    lines = out(interval="10m").splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.endswith("--interval"))
    assert lines[at].startswith("    10 min")
    assert lines[at - 1].startswith("     554 s")


def test_a_given_interval_that_is_the_optimum(out: Any) -> None:
    # An MTBF of 2 s and saves of 4 s: the optimum is the MTBF.
    text = out(nodes="1", mtbf="2s", step_block="4", interval="2", max_overhead="0.9999")
    assert "Daly's optimum, --interval" in text


def test_a_bound_overrides_the_optimum(out: Any, answer: Any) -> None:
    text = out(step_block="10m")
    assert "would be best, but saves would take more than 3.5 % of the time" in text
    assert row(text, "4.76 h").endswith("within the bounds")
    found = answer(step_block="10m", max_overhead="0.05")
    assert found["interval"] == pytest.approx(12000)
    assert found["interval"] > found["optimum"]


def test_intervals_below_a_write_are_explained(out: Any) -> None:
    text = out(bandwidth="3GB/s")
    assert "277 s would be best, but a save is committed only after 400 s" in text
    assert "intervals below 400 s act like 400 s." in text
    assert row(text, "17.3 s").split()[2] == row(text, "400 s").split()[2]
    assert "act like" not in out()


def test_bounds_hold_for_other_numbers_of_nodes(answer: Any) -> None:
    intervals = [point["interval"] for point in answer(bandwidth="3GB/s")["nodes"]]
    assert intervals[0] == daly(1, 5 * YEAR / 256) > 400
    assert intervals[-3:] == [400, 400, 400]


def test_a_job_of_one_node(answer: Any) -> None:
    assert [point["label"] for point in answer(nodes="1")["nodes"]] == ["1", "2", "4"]


def test_a_job_without_progress(out: Any) -> None:
    assert "Expected goodput: 0.00 %." in out(mtbf="1s")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30s", 30), ("5m", 300), ("1.5h", 5400), ("10d", 864000), ("2y", 2 * YEAR)],
)
def test_times(text: str, seconds: float, answer: Any) -> None:
    assert answer(nodes="1", mtbf=text)["mtbf"] == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("3MB", 3e6), ("3GB", 3e9), ("0.5TB", 5e11)),
        *(("3MiB", 3 * 2**20), ("3GiB", 3 * 2**30), ("3TiB", 3 * 2**40)),
    ],
)
def test_sizes(text: str, size: float, answer: Any) -> None:
    assert answer(checkpoint_size=text, bandwidth="1MB/s")["write_time"] == size / 1e6
    assert answer(checkpoint_size="1TB", bandwidth=f"{text}/s")["write_time"] == 1e12 / size


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("nodes", text) for text in ("0", "-1", "4k", "1.5", "", "1" + "0" * 9)),
        *(
            ("mtbf", text)
            for text in ("5 y", "5w", "0s", "-5y", "y", "nan", "1e3s", "9" * 13 + "y")
        ),
        *(("checkpoint-size", text) for text in ("1.2", "0GB", "1.2tb", "1.2TB/s", "1.2 TB")),
        *(("bandwidth", text) for text in ("200GB", "200Gb/s", "0GB/s", "GB/s")),
        *(("step-block", text) for text in ("0", "fast")),
        *(("restart-time", text) for text in ("0", "5min")),
        *(("interval", text) for text in ("0m", "epoch")),
        *(("max-overhead", text) for text in ("0", "0.0", "1", "3.5", "3.5%", "-0.1")),
    ],
)
def test_wrong_values_name_their_option(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part for part in plan() if part not in ("--" + option, JOB.get("--" + option))]
    assert main([*arguments, f"--{option}={value}"]) == 64
    assert f"argument --{option}: {value!r} is not a" in capsys.readouterr().err


@pytest.mark.parametrize("option", list(JOB))
def test_required_options(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [part for part in plan() if part not in (option, JOB[option])]
    assert main(arguments) == 64
    assert f"required: {option}" in capsys.readouterr().err
