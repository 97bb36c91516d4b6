"""`distrib horovod build`: makes Horovod work with the installed TensorFlow, and proves it.

That a wheel was built says little: it is compiled against headers that were never tried together.
So it counts only once two ranks have added their tensors with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from distrib.errors import EXIT_FINISHED, ConfigurationError

from .wheel import pip, provide, recipe, telling_lines

CHECK_SECONDS = 300.0
# What a rank of the check runs: the operation that distrib needs, the way it is used.
RANK = """
import horovod.tensorflow as hvd
import tensorflow as tf

hvd.init()
reduce = tf.function(lambda tensors: hvd.grouped_allreduce(tensors, op=hvd.Sum))
found = [value.numpy().tolist() for value in reduce([tf.range(3.0) + hvd.rank(), tf.ones([2])])]
if hvd.size() != 2 or found != [[1.0, 3.0, 5.0], [2.0, 2.0]]:
    raise SystemExit(f"rank {hvd.rank()} of {hvd.size()}: the sum over two ranks is {found}")
"""


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to `distrib horovod`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "build",
        help="build it for the installed TensorFlow, install it and try it",
        description="Build Horovod for the installed TensorFlow, install it and try it with two "
        "ranks. The first time takes minutes; after that the wheel is reused. HOROVOD_* build "
        "flags are taken from the environment: see docs/horovod.md.",
    )
    command.add_argument(
        "--cache", type=Path, metavar="DIR", help=f"where wheels are kept ({default_cache()})"
    )
    command.add_argument("--force", action="store_true", help="build even if the wheel is there")
    command.add_argument("--no-install", action="store_true", help="only make the wheel; no check")
    command.add_argument("--no-check", action="store_true", help="do not start the two ranks")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    cache = (options.cache or default_cache()).expanduser().absolute()
    wheel = provide(recipe(os.environ), cache, options.force)
    if not options.no_install:
        install(wheel)
        if not options.no_check:
            check()
    return EXIT_FINISHED


def default_cache() -> Path:
    """Return the user's cache folder for wheels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "distrib" / "horovod"


def install(wheel: Path) -> None:
    """Put a wheel into this Python environment, unless that very wheel is there.

    Raises:
        ConfigurationError: If pip cannot.
    """
    if installed() == hashlib.sha256(wheel.read_bytes()).hexdigest():
        return
    # A wheel of the same version is no reason for pip to replace the one that is there; and what
    # Horovod requires is to be there, not to be replaced.
    for arguments in (["--force-reinstall", "--no-deps"], []):
        done = subprocess.run(
            pip("install", *arguments, str(wheel)), capture_output=True, text=True
        )
        if done.returncode != 0:
            raise ConfigurationError(f"pip cannot install {wheel}:\n{done.stdout}{done.stderr}")
    print(f"installed it in {sys.prefix}", flush=True)


def installed() -> str | None:
    """Return the checksum of the wheel that Horovod was installed from, if it was a file."""
    try:
        origin = metadata.distribution("horovod").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    archive = json.loads(origin).get("archive_info", {}) if origin else {}
    return archive.get("hashes", {}).get("sha256")


def check(seconds: float = CHECK_SECONDS) -> None:
    """Have two ranks add their tensors with Gloo, on this host, as `distrib run` starts them.

    Args:
        seconds: How long it may take.

    Raises:
        ConfigurationError: If they do not get the sum, or nothing at all in time.
    """
    launcher = [sys.executable, "-P", "-m", "distrib.launch.cli", "run", "-np", "2"]
    # Two ranks cannot share one GPU. Importing TensorFlow takes long on a busy machine.
    quiet = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    patient = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "120"}
    try:
        done = subprocess.run(
            [*launcher, sys.executable, "-P", "-c", RANK],
            env={**os.environ, **quiet, **patient},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        fault, output = f"did not end within {seconds:.0f} s", error.output or b""
    else:
        if done.returncode == 0:
            print("checked: two ranks agree on a sum", flush=True)
            return
        fault, output = f"failed (exit code {done.returncode})", done.stdout
    raise ConfigurationError(
        f"Horovod is installed, but two ranks that add their tensors {fault}. The wheel may be of "
        f"another machine: try --force. They said:\n{telling_lines(output.decode())}"
    )
