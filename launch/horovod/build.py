"""`distrib horovod build`: builds and installs Horovod, and tries it with two ranks.

A wheel that compiles proves little: Horovod was never tested with this TensorFlow. So the command
succeeds only if two ranks sum their tensors.
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

from distrib.environment import GLOO_TIMEOUT_VARIABLE
from distrib.errors import EXIT_FINISHED, ConfigurationError

from .recipe import recipe_for
from .wheel import cached_wheel, pip, relevant_log_lines

CHECK_SECONDS = 300.0
# The script of the two ranks: the operation that distrib uses, as distrib calls it.
RANK_SCRIPT = """
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
        help="build Horovod for the installed TensorFlow, install it and try it",
        description="Build Horovod for the installed TensorFlow, install it and try it with two "
        "ranks. The first build takes minutes; later ones reuse the wheel. HOROVOD_* variables "
        "configure the build: see docs/horovod.md.",
    )
    command.add_argument(
        "--cache", type=Path, metavar="DIR", help=f"keep wheels in this folder ({default_cache()})"
    )
    command.add_argument(
        "--force", action="store_true", help="build even if the cache has the wheel"
    )
    command.add_argument("--no-install", action="store_true", help="build the wheel only")
    command.add_argument("--no-check", action="store_true", help="install, but start no ranks")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    cache = (options.cache or default_cache()).expanduser().absolute()
    wheel = cached_wheel(recipe_for(os.environ), cache, options.force)
    if not options.no_install:
        install(wheel)
        if not options.no_check:
            check()
    return EXIT_FINISHED


def default_cache() -> Path:
    """Return the user's cache folder for wheels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "distrib" / "horovod"


def install(wheel: Path) -> None:
    """Install a wheel into this Python environment, unless this very wheel is installed.

    Raises:
        ConfigurationError: If pip fails.
    """
    if installed_checksum() == hashlib.sha256(wheel.read_bytes()).hexdigest():
        return
    # pip replaces a wheel of the same version only by force, which must not extend to Horovod's
    # requirements; the second call installs those that are missing.
    for arguments in (["--force-reinstall", "--no-deps"], []):
        done = subprocess.run(
            pip("install", *arguments, str(wheel)), capture_output=True, text=True
        )
        if done.returncode != 0:
            raise ConfigurationError(f"pip cannot install {wheel}:\n{done.stdout}{done.stderr}")
    print(f"installed it in {sys.prefix}", flush=True)


def installed_checksum() -> str | None:
    """Return the SHA-256 of the wheel file that Horovod was installed from; `None` if unknown."""
    try:
        origin = metadata.distribution("horovod").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    archive = json.loads(origin).get("archive_info", {}) if origin else {}
    return archive.get("hashes", {}).get("sha256")


def check(seconds: float = CHECK_SECONDS) -> None:
    """Start two ranks on this host with `distrib run`, which sum their tensors with Gloo.

    Args:
        seconds: Timeout in seconds. Defaults to `CHECK_SECONDS`.

    Raises:
        ConfigurationError: If the ranks fail, get another sum, or exceed the timeout.
    """
    launcher = [sys.executable, "-P", "-m", "distrib.launch.cli", "run", "-np", "2"]
    variables = {
        "CUDA_VISIBLE_DEVICES": "-1",  # Two ranks cannot share one GPU.
        "TF_CPP_MIN_LOG_LEVEL": "2",
        GLOO_TIMEOUT_VARIABLE: "120",  # Importing TensorFlow is slow on a busy machine.
    }
    try:
        done = subprocess.run(
            [*launcher, sys.executable, "-P", "-c", RANK_SCRIPT],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        failure, output = f"did not end within {seconds:.0f} s", error.output or b""
    else:
        if done.returncode == 0:
            print("checked: two ranks got the right sum", flush=True)
            return
        failure, output = f"failed (exit code {done.returncode})", done.stdout
    raise ConfigurationError(
        f"Horovod is installed, but its check with two ranks {failure}. The wheel may come from "
        f"another machine: try --force. Output:\n{relevant_log_lines(output.decode())}"
    )
