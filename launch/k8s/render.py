"""`distrib k8s render`: prints the manifests of a job, from options."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from distrib.environment import GRACE_VARIABLE, NOTICES_VARIABLE
from distrib.errors import EXIT_FINISHED, UsageError

from ..arguments import positive, whole
from ..hosts.protocol import TOKEN_VARIABLE
from . import manifests
from .lint_rules import find_problems
from .objects import build_objects
from .pod import TOKEN_SECRET
from .settings import (
    ACCESS_MODES,
    SPOT_CLOUDS,
    VARIANTS,
    Settings,
    check_settings,
    min_grace,
)

DEFAULTS = {each.name: each.default for each in fields(Settings)}
# Variables that the manifests set themselves, and the options that change them.
RESERVED_VARIABLES = {
    "RANKS": "--replicas and --slots",
    "SLOTS": "--slots",
    "CHECKPOINT_DIR": "--checkpoint-dir",
    GRACE_VARIABLE: "--grace",
    NOTICES_VARIABLE: "--spot",
    **dict.fromkeys(("HOME", "TMPDIR"), "the read-only root file system"),
    **dict.fromkeys(("JOB_NAME", "JOBSET_NAME"), "--name"),
    TOKEN_VARIABLE: f"the Secret {TOKEN_SECRET}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distrib k8s render`."""
    _add_job_options(parser)
    _add_pod_options(parser)
    _add_time_options(parser)
    _add_storage_options(parser)
    add = parser.add_argument_group("Kueue").add_argument
    add("--queue", metavar="NAME", help="wait in this LocalQueue")
    add("--priority-class", metavar="NAME", help="use this WorkloadPriorityClass")
    parser.add_argument(
        "script",
        nargs=argparse.REMAINDER,
        metavar="script.py ...",
        help="script in the image, and its arguments",
    )
    parser.set_defaults(run=_run)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("job").add_argument
    add("--name", required=True, help="give this name to the job and its objects")
    text = "run this image, which has distrib and the script (k8s/Dockerfile)"
    add("--image", required=True, help=text)
    add("--namespace", help="create the objects in this namespace (kubectl's)")
    text = "run the pods by this kind of workload (job)"
    add("--variant", choices=VARIANTS, default="job", help=text)
    text = "exchange gradients by this backend (horovod)"
    add("--backend", choices=("horovod", "multiworker"), default="horovod", help=text)
    text = "set a variable for the script; may be repeated"
    add("--env", action="append", default=[], metavar="NAME=VALUE", help=text)


def _add_pod_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("pods").add_argument
    add("--replicas", "--nodes", type=positive, default=2, metavar="N", help="run N pods (2)")
    text = "continue with N pods if others are missing (--replicas)"
    add("--min-replicas", type=positive, metavar="N", help=text)
    add("--parallelism", type=positive, metavar="N", help="run N pods at once (--replicas)")
    add("--completions", type=positive, metavar="N", help="finish N pods (--replicas)")
    text = "start N ranks in each pod (one per GPU, or 1)"
    add("--slots", type=positive, metavar="N", help=text)
    add("--gpus", type=whole, default=0, metavar="N", help="request N GPUs for each pod (0)")
    quantities = {
        "cpu": "request this for each pod",
        "memory": "request this for each pod",
        "shm": "limit /dev/shm of each pod to this part of its memory",
    }
    for name, text in quantities.items():
        default = str(DEFAULTS[name])
        add(f"--{name}", default=default, metavar="QUANTITY", help=f"{text} ({default})")
    text = "use this cloud's spot nodes, and save when it announces the end of one"
    add("--spot", choices=SPOT_CLOUDS, help=text)


def _add_time_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("time, in seconds").add_argument
    text = "allow S from SIGTERM to SIGKILL (120, or more if saves need it)"
    add("--grace", type=positive, metavar="S", help=text)
    add("--save-time", type=positive, default=30, metavar="S", help="assume S for a save (30)")
    add("--step-time", type=positive, default=10, metavar="S", help="assume S for a step (10)")
    text = "fail the job after S (a week)"
    add("--deadline", type=positive, default=DEFAULTS["deadline"], metavar="S", help=text)
    text = "wait S for missing pods (%(default)s)"
    add("--join-timeout", type=positive, default=DEFAULTS["join_timeout"], metavar="S", help=text)


def _add_storage_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("storage").add_argument
    text = (
        "save to a URL, such as s3://bucket/runs/17, or to a folder of the claim, such as "
        "/runs/17; the script finds it in $(CHECKPOINT_DIR), also among its arguments"
    )
    add("--checkpoint-dir", required=True, metavar="URL", help=text)
    add("--pvc", metavar="NAME", help="mount this PersistentVolumeClaim at /runs")
    add("--storage", metavar="QUANTITY", help="create the claim with this size")
    text = "create the claim with this access mode (%(default)s)"
    add("--access-mode", choices=ACCESS_MODES, default="ReadWriteMany", help=text)
    text = "allow pods to connect to this port outside the job; may be repeated (443 with a URL)"
    add("--egress-port", type=positive, action="append", default=[], metavar="PORT", help=text)


def _run(options: argparse.Namespace) -> int:
    settings = settings_from(options)
    check_settings(settings)
    objects = build_objects(settings)
    problems = find_problems(objects)
    if problems:
        raise UsageError("these manifests would not work:\n" + "\n".join(problems))
    print(manifests.dump(objects), end="")
    return EXIT_FINISHED


def settings_from(options: argparse.Namespace) -> Settings:
    """Return the settings that options give.

    Args:
        options: As parsed.

    Raises:
        UsageError: If the script is missing, or --env is malformed or sets a reserved variable.
    """
    script = options.script[1:] if options.script[:1] == ["--"] else options.script
    if not script:
        raise UsageError("no script given. For example: ... -- train.py --epochs 10")
    grace = options.grace or max(120, min_grace(options.save_time, options.step_time))
    shared: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            *("name", "image", "namespace", "variant", "backend", "min_replicas", "gpus", "cpu"),
            *("memory", "shm", "spot", "deadline", "join_timeout", "checkpoint_dir", "storage"),
            *("access_mode", "queue"),
        )
    }
    return Settings(
        **shared,
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
            raise UsageError(f"--env {entry}: must have the form NAME=VALUE.")
        if name in RESERVED_VARIABLES:
            raise UsageError(f"--env {name}: already set, by {RESERVED_VARIABLES[name]}.")
        found[name] = value
    return found
