"""`distrib horovod build`: builds and installs Horovod, and tries it."""

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

from .check import check
from .cuda import find_cuda, wants_gpu
from .pip import pip
from .recipe import recipe_for
from .wheel import cached_wheel


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
    command.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        help="reduce tensors in GPU memory with NCCL; without a CUDA compiler, install one for the "
        "build (default: if this machine has an NVIDIA driver and a CUDA compiler)",
    )
    command.add_argument("--no-install", action="store_true", help="build the wheel only")
    command.add_argument("--no-check", action="store_true", help="install, but start no ranks")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    cache = (options.cache or default_cache()).expanduser().absolute()
    cuda = find_cuda(os.environ) if wants_gpu(options.gpu, os.environ) else None
    recipe = recipe_for(os.environ, cuda.versions if cuda else None)
    wheel = cached_wheel(recipe, cache, options.force, cuda)
    if not options.no_install:
        install(wheel)
        if not options.no_check:
            check(for_gpu=cuda is not None)
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
