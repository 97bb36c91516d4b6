"""Whether several ranks compute what one process would, and act as one.

The checks themselves are in `rank_checks.py`. One job of 2 ranks makes all of them on Horovod, and
one those on workers that go through code of theirs; `make exhaustive` makes the others there too,
and on 3 ranks those where a third can make a difference.
"""

from __future__ import annotations

import ast
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import JOB, environment, forked, launch, result, undisturbed

from distrib.checkpoint.directory import CheckpointDirectory
from distrib.launch.hosts.probe import free_ports
from distrib.storage.locate import locate

SCRIPT = Path(__file__).with_name("rank_checks.py")
CHECKS = [
    node.name
    for node in ast.parse(SCRIPT.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.decorator_list
]
ON_THREE = [
    "collectives_of_objects",
    "gradients_in_half_precision",
    "gradients_of_embeddings",
    "a_gradient_that_only_one_rank_has",
    "statistics_are_those_of_all_ranks",
    "metrics_are_those_of_all_the_data",
    "losses_of_batches_are_those_of_one_process",
    "a_tf_data_pipeline_is_shared_by_rows_and_resumed",
    "arrays_are_shared",
    "arrays_of_each_ranks_own",
    "any_number_of_arrays_can_be_trained_on",
    "predictions_are_those_of_all_examples",
    "a_stop_on_one_rank_stops_all_after_the_next_batch",
]

# Variations of the check before each of them.
VARIATIONS = [
    "other_optimizers",
    "other_clipping_comes_after_the_reduction",
    "xla_compiles_other_steps",
]

# What either way to join ranks leaves to code that is common to both.
COMMON = {
    *("plain_optimizers", "moving_averages_and_weight_decay", "float64_models", "loss_scaling"),
    *("mixed_precision_is_found_behind_keras", "the_optimizer_is_saved_as_it_was"),
    *("the_chiefs_learning_rate_counts", "every_epoch_costs_the_metrics_one_collective"),
    *("early_stopping_and_plateaus_are_the_same_everywhere", "a_bad_loss_on_one_rank_stops_all"),
    *("a_stop_after_an_epoch_stops_all", "a_stop_at_the_last_batch_stops_all_after_the_epoch"),
    *("nobody_stops_without_a_reason", "shared_data_may_be_rounded_otherwise_on_each_rank"),
    *("arrays_that_cannot_be_shared", "any_number_of_arrays_can_be_trained_on"),
    *("arrays_of_each_ranks_own", "predictions_are_those_of_all_examples"),
    "checkpoints_within_an_epoch_hold_the_loss_of_all_ranks",
    "a_callback_list_and_an_evaluate_of_the_users_own",
    *("a_shuffle_between_epochs_is_the_chiefs", "pydatasets_that_differ_are_refused"),
    "a_step_on_a_pydataset_is_one_on_all_its_examples",
    *("xla_is_chosen_as_in_keras", "a_train_step_of_ones_own_is_not_compiled"),
    "what_methods_have_made_of_a_dataset_is_shared_as_well",
    "metrics_beside_what_a_step_reports_are_those_of_all_the_data",
}
DISTINCT = [check for check in CHECKS if check not in VARIATIONS]
OWN = [check for check in DISTINCT if check not in COMMON]

ON_MPI = ["collectives_of_arrays", "sums_instead_of_averages", "adasum_works_on_mpi_only"]

pytestmark = pytest.mark.slow


def failures(size: int, folder: Path, checks: list[str], backend: str) -> dict[str, Any]:
    path = folder / "report.json"
    done = launch(size, SCRIPT, str(path), *checks, backend=backend)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(path.read_text())
    assert list(report) == checks
    return {check: failure for check, failure in report.items() if failure}


@pytest.mark.parametrize(
    ("backend", "checks"),
    [
        pytest.param("horovod", DISTINCT, id="horovod"),
        pytest.param("multiworker", OWN, id="multiworker"),
        pytest.param("horovod", VARIATIONS, id="horovod-more", marks=pytest.mark.exhaustive),
        pytest.param("multiworker", CHECKS, id="multiworker-all", marks=pytest.mark.exhaustive),
    ],
    indirect=["backend"],
)
def test_two_ranks(backend: str, checks: list[str], tmp_path: Path) -> None:
    assert failures(2, tmp_path, checks, backend) == {}


@pytest.mark.exhaustive
def test_three_ranks(backend: str, tmp_path: Path) -> None:
    assert failures(3, tmp_path, ON_THREE, backend) == {}


def mpirun(size: int, script: Path, *arguments: str) -> subprocess.Popen[str]:
    hvd = pytest.importorskip("horovod.tensorflow", reason="Horovod is not installed")
    if shutil.which("mpirun") is None or not hvd.mpi_built():
        pytest.skip("Horovod was built without MPI: `apt-get install libopenmpi-dev openmpi-bin`")
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "-np", str(size), "--oversubscribe", *forked(script, *arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), **allowed},
    )


# As docs/launching.md has it.
SERVER = """
import sys
from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

server = RendezvousHTTPServer(("127.0.0.1", int(sys.argv[1])), RendezvousHandler, 0)
server.init(get_host_assignments(parse_hosts("localhost:2"), 2))
print("ready", flush=True)
server.serve_forever()
"""


def variables(rank: int, port: int) -> dict[str, str]:
    values: dict[str, Any] = {
        **{"RANK": rank, "SIZE": 2, "LOCAL_RANK": rank, "LOCAL_SIZE": 2},
        **{"CROSS_RANK": 0, "CROSS_SIZE": 1, "HOSTNAME": "localhost"},
        **{"CONTROLLER": "gloo", "CPU_OPERATIONS": "gloo", "GLOO_IFACE": "lo"},
        **{"GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "GLOO_RENDEZVOUS_PORT": port},
    }
    return {f"HOROVOD_{name}": str(value) for name, value in values.items()}


def test_ranks_of_bare_environment_variables(tmp_path: Path) -> None:
    pytest.importorskip("horovod", reason="Horovod is not installed: `distrib horovod build`")
    path, (port,) = tmp_path / "report.json", free_ports(1)
    command = [sys.executable, "-P", "-c", SERVER, str(port)]
    with ExitStack() as stack:
        server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(server.kill)
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        ranks = []
        for rank in range(2):
            command = forked(SCRIPT, str(path), "collectives_of_arrays")
            environs = {**environment(), **variables(rank, port)}
            ranks.append(stack.enter_context(subprocess.Popen(command, env=environs)))
            stack.callback(ranks[-1].kill)
        assert [rank.wait(100) for rank in ranks] == [0, 0]
    assert json.loads(path.read_text()) == {"collectives_of_arrays": None}


def test_ranks_of_mpirun(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    job = mpirun(2, SCRIPT, str(path), *ON_MPI)
    _, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors[-4000:]
    assert json.loads(path.read_text()) == dict.fromkeys(ON_MPI)


def test_the_signal_that_mpirun_hands_on_saves_and_ends_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = mpirun(2, JOB, "--run", str(run))
    while max(CheckpointDirectory(locate(run, "directory")).steps(), default=0) < 9:
        assert job.poll() is None, job.communicate()[1][-4000:]
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=60)
    assert "asked to stop: checkpoint" in errors
    assert launch(2, JOB, "--run", str(run)).returncode == 0
    assert result(run) == undisturbed(ranks=2)
