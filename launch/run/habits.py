"""Options that users of torchrun, mpirun, horovodrun and other launchers type by habit.

An option that means the same as one of `distrib run` is a synonym of it. An option that asks for
what `distrib run` does anyway is accepted. Any other is refused with a hint. The help shows none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Protocol

from distrib.errors import UsageError

from ..arguments import positive

# What `distrib run` does anyway.
ACCEPTED = (
    "--standalone --gloo --disable-cache --oversubscribe -oversubscribe --allow-run-as-root "
    "-allow-run-as-root --tag-output -tag-output"
)
_HOSTS = (
    "name the hosts (-H h0:4,h1:4); or, without ssh, run the same command on each of them: "
    "distrib run --join h0 -np 8 --slots 4 train.py"
)
# Hints, each with the options that it answers.
HINTS = {
    _HOSTS: "--rdzv-backend --rdzv-endpoint --rdzv-id --rdzv-conf --node-rank --master-addr "
    "--master-port --local-addr --num-nodes --num-machines --machine-rank --main-process-ip "
    "--main-process-port",
    "write the number of ranks behind each host's name: -H h0:4,h1:4; on one host: -np 4": "-N "
    "-npernode --npernode -pernode --pernode -ppn --ppn -perhost --perhost --slots-per-host",
    "leave it out; ranks exchange gradients by Gloo; for MPI start with launch/mpirun.sh": "--mpi "
    "--jsrun --mpi-args --mpi-threads-disable --tcp --binding-args --mca -mca --map-by -map-by "
    "--bind-to -bind-to --rank-by -rank-by --report-bindings --display-map --prefix -prefix",
    "submit launch/slurm.sbatch with it: sbatch --nodes=4 --ntasks-per-node=8 "
    "launch/slurm.sbatch train.py": "--nodes --ntasks --ntasks-per-node --gpus-per-node",
    "write the interpreter to pass it an option: distrib run -np 2 python -u train.py": "-u -W -X "
    "-O -B -I -P -s",
    "write -np N for N ranks; to run code: distrib run -np 2 python -c CODE": "-c",
    "write --attempts N, which counts attempts in a row without progress": "--max-restarts "
    "--reset-limit --enable-recovery",
    "write --join-timeout SECONDS": "--elastic-timeout",
    "write --output-dir DIR, which keeps each rank's output in DIR/rank-<n>.log": "--log-dir "
    "--output-filename -output-filename -r --redirects -t --tee --local-ranks-filter",
    "write --hostfile FILE, which is read again before each restart": "--host-discovery-script",
    "leave it out; all hosts are tried again before each restart": "--blacklist-cooldown-range",
    "leave it out; what does not end with .py is run as a command": "--no-python",
    "leave it out; it has no counterpart": "--monitor-interval --start-method --role --run-path "
    "--event-log-handler --logs-specs --multi-gpu --config-file",
    "change the folder before: cd DIR && distrib run ...": "-wd --wd -wdir --wdir",
    "run `distrib horovod build`, which also tries it": "-cb --check-build",
    # Horovod's settings, by the variables that its own launcher sets for them.
    **{
        f"set the environment variable HOROVOD_{variable}": options
        for variable, options in {
            "LOG_LEVEL": "--log-level -v --verbose -verbose",
            "FUSION_THRESHOLD (in bytes)": "--fusion-threshold-mb",
            "CYCLE_TIME": "--cycle-time-ms",
            "CACHE_CAPACITY": "--cache-capacity",
            "HIERARCHICAL_ALLREDUCE": "--hierarchical-allreduce",
            "HIERARCHICAL_ALLGATHER": "--hierarchical-allgather",
            "AUTOTUNE": "--autotune",
            "AUTOTUNE_LOG": "--autotune-log-file",
            "TIMELINE": "--timeline-filename",
            "TIMELINE_MARK_CYCLES": "--timeline-mark-cycles",
            "STALL_CHECK_DISABLE": "--no-stall-check",
            "STALL_CHECK_TIME_SECONDS": "--stall-check-warning-time-seconds",
            "STALL_SHUTDOWN_TIME_SECONDS": "--stall-check-shutdown-time-seconds",
            "NUM_NCCL_STREAMS": "--num-nccl-streams",
            "THREAD_AFFINITY": "--thread-affinity",
            "GLOO_TIMEOUT_SECONDS": "--gloo-timeout-seconds",
        }.items()
    },
}


class Container(Protocol):
    """A parser, or a group of its options."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add an option."""


class OptionGroup:
    """Adds options to a group of a parser, each with its synonyms.

    Args:
        group: The group.
    """

    def __init__(self, group: Container) -> None:
        self._group = group

    def __call__(self, *names: str, synonyms: str = "", **settings: Any) -> None:
        """Add an option, which may also be spelled with `_` for `-`, as torchrun's may.

        Args:
            names: Of the option, as the help shows them.
            synonyms: Other launchers' names for it, separated by spaces. Defaults to `""`.
            settings: Of `add_argument`.
        """
        dest = self._group.add_argument(*names, **settings).dest
        hidden = [name for name in _spellings([*names, *synonyms.split()]) if name not in names]
        if hidden:
            _add_hidden(self._group, hidden, **{**settings, "dest": dest})


def add_habits(parser: Container) -> None:
    """Add the options that are no synonyms."""
    _add_hidden(parser, ["--nproc-per-node", "--num-gpus"], dest="nproc_per_node", type=_ranks)
    _add_hidden(parser, ["--nnodes"], dest="accepted", type=_one_host)
    _add_hidden(parser, ACCEPTED.split(), dest="accepted", action="store_true")
    for hint, names in HINTS.items():
        _add_hidden(parser, names.split(), dest="refused", nargs="?", action=_Refuse, const=hint)


def _add_hidden(parser: Container, names: Sequence[str], **settings: Any) -> None:
    hidden = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    parser.add_argument(*_spellings(names), **{**settings, **hidden})


def _spellings(names: Sequence[str]) -> list[str]:
    spelled = [name[:2] + name[2:].replace("-", "_") for name in names]
    return list(dict.fromkeys([*names, *spelled]))


class _Refuse(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        raise UsageError(f"there is no option {option_string}; {self.const}.")


def _ranks(text: str) -> int:
    """Return torchrun's number of ranks on this host."""
    if text in ("auto", "gpu", "cpu"):
        raise argparse.ArgumentTypeError(
            f"write a number instead of {text!r}, or --backend local: one process with all GPUs"
        )
    return positive(text)


def _one_host(text: str) -> int:
    """Accept torchrun's number of hosts if it is 1."""
    if text not in ("1", "1:1"):
        raise argparse.ArgumentTypeError(f"to run on {text} hosts {_HOSTS}")
    return 1
