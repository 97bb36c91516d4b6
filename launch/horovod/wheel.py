"""A Horovod wheel for the installed TensorFlow, built once and cached.

A wheel fits one TensorFlow, one Python and one set of build flags, so its folder in the cache is
named after all of these (`Recipe.key`). The finished wheel moves there in one step: a build that is
killed leaves no wheel.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from distrib.errors import ConfigurationError
from distrib.storage.file_lock import acquire_lock

from .cuda import Cuda
from .linkage import check_linkage
from .log_excerpt import relevant_log_lines
from .pip import pip
from .recipe import SHA256, VERSION, Recipe
from .toolchain import build_variables, find_tools

FULL_BYTES = 1e6  # So little is left on a disk that a build has filled.


def cached_wheel(
    recipe: Recipe, cache: Path, force: bool = False, cuda: Cuda | None = None
) -> Path:
    """Return the path of a sound wheel, and build it unless the cache has it.

    Args:
        recipe: Of the wheel.
        cache: Folder of all wheels; made if it is missing.
        force: Whether to build even if the cache has the wheel. Defaults to `False`.
        cuda: What a build for GPUs uses. Defaults to `None`: a build for CPUs.

    Raises:
        ConfigurationError: If a tool is missing, the build fails, or the cache cannot be written.
    """
    folder = cache / recipe.key
    # Without the lock, which a cache that can only be read has no place for.
    if not force and (wheel := _ready(folder)):
        return wheel
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if not force and (wheel := _ready(folder)):  # Another process has built it meanwhile.
                return wheel
            for damaged in () if force else folder.glob("*.whl"):
                print(f"{damaged} is damaged; building it again", flush=True)
            return _build(recipe, folder, cuda)
    except OSError as error:
        raise ConfigurationError(
            f"--cache {cache}: {error}; give a folder that you can write, with room for 1 GB."
        ) from error


def _ready(folder: Path) -> Path | None:
    """Return the path of a sound wheel; it has its name only when it is complete."""
    wheel = next(filter(_is_sound, folder.glob("*.whl")), None)
    if wheel is not None:
        print(f"reusing {wheel}", flush=True)
    return wheel


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time build the wheel."""
    with path.open("w") as file:
        if not acquire_lock(file.fileno()):
            print("waiting for another build of the same wheel", flush=True)
            acquire_lock(file.fileno(), wait=True)
        yield


def _is_sound(wheel: Path) -> bool:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return False


def _build(recipe: Recipe, folder: Path, cuda: Cuda | None) -> Path:
    tools = find_tools(os.environ, for_gpu=cuda is not None)
    for orphan in folder.glob("scratch-*"):  # Of a build that was killed.
        shutil.rmtree(orphan)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
    log = folder / "build.log"
    print(
        f"building Horovod {VERSION} for TensorFlow {recipe.tensorflow}, which takes minutes\n"
        f"  flags: {' '.join(f'{n}={value}' for n, value in sorted(recipe.flags.items()))}\n"
        f"  log:   {log}",
        flush=True,
    )
    with TemporaryDirectory(prefix="scratch-", dir=folder, ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        variables = build_variables(recipe, scratch, cuda)
        code = _run_pip_wheel(scratch, {**tools, **variables}, log)
        made = list(scratch.glob("*.whl"))
        if code != 0 or not made:
            if shutil.disk_usage(folder).free < FULL_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
            raise ConfigurationError(
                f"building Horovod {VERSION} failed (exit code {code}). The end of {log}:\n"
                + relevant_log_lines(log.read_text(errors="replace"))
            )
        if cuda:
            check_linkage(made[0], scratch)
        wheel = made[0].replace(folder / made[0].name)
    print(f"built {wheel}", flush=True)
    return wheel


def _run_pip_wheel(scratch: Path, variables: dict[str, str], log: Path) -> int:
    """Build the wheel in a folder, and return pip's exit code."""
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"horovod=={VERSION} --hash=sha256:{SHA256}\n")
    # An isolated build environment would have no TensorFlow, and pip's cache ignores the flags.
    arguments = ["--no-build-isolation", "--no-deps", "--no-cache-dir", "--verbose"]
    arguments += ["--wheel-dir", str(scratch), "--requirement", str(requirement)]
    with log.open("w") as output:
        return subprocess.run(
            pip("wheel", *arguments),
            cwd=scratch,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode
