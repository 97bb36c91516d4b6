"""`distrib k8s render`: the manifests of a job from options."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from distrib.environment import GRACE_VARIABLE, NOTICES_VARIABLE
from distrib.errors import EXIT_FINISHED, UsageError

from ..arguments import positive, whole
from ..hosts.protocol import TOKEN_VARIABLE
from . import manifests
from .lint_rules import problems
from .objects import objects
from .pod import TOKEN_SECRET
from .settings import (
    ACCESS_MODES,
    SPOT_CLOUDS,
    VARIANTS,
    Settings,
    refuse_what_cannot_work,
    shortest_grace,
)

# What argparse takes when an option is left out, where `Settings` has it.
DEFAULTS = {each.name: each.default for each in fields(Settings)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distrib k8s render`."""
    job = parser.add_argument_group("job").add_argument
    job("--name", required=True, help="of the job, and of all that belongs to it")
    job("--image", required=True, help="with distrib and the script (k8s/Dockerfile)")
    job("--namespace", help="where it goes (kubectl's)")
    job("--variant", choices=VARIANTS, default="job", help="who runs the pods (job)")
    job("--backend", choices=("horovod", "multiworker"), default="horovod", help="(horovod)")
    job(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable for the script; may be repeated",
    )

    pods = parser.add_argument_group("pods").add_argument
    pods("--replicas", "--nodes", type=positive, default=2, metavar="N", help="pods (2)")
    pods("--min-replicas", type=positive, metavar="N", help="go on with so few if pods are missing")
    pods("--parallelism", type=positive, metavar="N", help="pods at once (--replicas)")
    pods("--completions", type=positive, metavar="N", help="pods that must finish (--replicas)")
    pods("--slots", type=positive, metavar="N", help="ranks in each pod (one for each GPU, or 1)")
    pods("--gpus", type=whole, default=0, metavar="N", help="of each pod (0)")
    for name, what in (("cpu", "each pod"), ("memory", "each pod"), ("shm", "it in /dev/shm")):
        default = str(DEFAULTS[name])
        pods(f"--{name}", default=default, metavar="QUANTITY", help=f"of {what} ({default})")
    pods("--spot", choices=SPOT_CLOUDS, help="on a cloud's spot machines, and heed their notices")

    time = parser.add_argument_group("time, in seconds").add_argument
    time("--grace", type=positive, metavar="S", help="from SIGTERM to SIGKILL (120, or more)")
    time("--save-time", type=positive, default=30, metavar="S", help="how long a save takes (30)")
    time("--step-time", type=positive, default=10, metavar="S", help="how long a step takes (10)")
    time("--deadline", type=positive, default=DEFAULTS["deadline"], metavar="S", help="(a week)")
    time(
        "--join-timeout",
        type=positive,
        default=DEFAULTS["join_timeout"],
        metavar="S",
        help="how long missing pods are waited for (%(default)s)",
    )

    storage = parser.add_argument_group("storage").add_argument
    storage(
        "--checkpoint-dir",
        required=True,
        metavar="URL",
        help="s3://bucket/runs/17, or a folder of the claim: /runs/17. The script finds it as "
        "$(CHECKPOINT_DIR), also among its arguments",
    )
    storage("--pvc", metavar="NAME", help="mount this PersistentVolumeClaim at /runs")
    storage("--storage", metavar="QUANTITY", help="make the claim, of this size")
    storage(
        "--access-mode",
        choices=ACCESS_MODES,
        default="ReadWriteMany",
        help="of the claim (%(default)s)",
    )
    storage(
        "--egress-port",
        type=positive,
        action="append",
        default=[],
        metavar="PORT",
        help="of what pods may reach outside; may be repeated (443 if a URL is given)",
    )

    kueue = parser.add_argument_group("Kueue").add_argument
    kueue("--queue", metavar="NAME", help="the LocalQueue to wait in")
    kueue("--priority-class", metavar="NAME", help="the WorkloadPriorityClass")
    parser.add_argument(
        "script",
        nargs=argparse.REMAINDER,
        metavar="script.py ...",
        help="what the image runs, and its arguments",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    refuse_what_cannot_work(settings)
    made = objects(settings)
    wrong = problems(made)
    if wrong:
        raise UsageError("this cannot work:\n" + "\n".join(wrong))
    print(manifests.dump(made), end="")
    return EXIT_FINISHED


def settings_of(options: argparse.Namespace) -> Settings:
    """Return what options mean.

    Args:
        options: As parsed.

    Raises:
        UsageError: If they say nothing that can be meant.
    """
    script = options.script[1:] if options.script[:1] == ["--"] else options.script
    if not script:
        raise UsageError("which script? For example: ... -- train.py --epochs 10")
    grace = options.grace or max(120, shortest_grace(options.save_time, options.step_time))
    same: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            *("name", "image", "namespace", "variant", "backend", "min_replicas", "gpus", "cpu"),
            *("memory", "shm", "spot", "deadline", "join_timeout", "checkpoint_dir", "storage"),
            *("access_mode", "queue"),
        )
    }
    return Settings(
        **same,
        script=script,
        completions=options.completions or options.replicas,
        parallelism=options.parallelism or options.replicas,
        slots=options.slots or options.gpus or 1,
        grace=grace,
        save_seconds=options.save_time,
        step_seconds=options.step_time,
        claim=options.pvc,
        egress_ports=options.egress_port,
        priority=options.priority_class,
        environment=_environment(options.env),
    )


def _environment(entries: list[str]) -> dict[str, str]:
    found = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            raise UsageError(f"--env {entry}: not of the form NAME=VALUE.")
        if name in TAKEN:
            raise UsageError(f"--env {name}: that is set already, by {TAKEN[name]}.")
        found[name] = value
    return found


TAKEN = {
    "RANKS": "--replicas and --slots",
    "SLOTS": "--slots",
    "CHECKPOINT_DIR": "--checkpoint-dir",
    GRACE_VARIABLE: "--grace",
    NOTICES_VARIABLE: "--spot",
    **dict.fromkeys(("HOME", "TMPDIR"), "what can be written to"),
    **dict.fromkeys(("JOB_NAME", "JOBSET_NAME"), "--name"),
    TOKEN_VARIABLE: f"the Secret {TOKEN_SECRET}",
}
