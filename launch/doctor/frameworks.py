"""TensorFlow, Keras, Horovod and the NVIDIA driver, and whether they fit together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..horovod.nvidia_driver import driver_version
from .finding import OK, PROBLEM, WARNING, Finding
from .packages import installed_version

REPORT_SECONDS = 180.0  # Imports from a network disk are slow.
NCCL_PACKAGE = "nvidia-nccl-cu12"
_KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
_BUILD = "distrib horovod build"


def check_frameworks() -> Iterator[Finding]:
    """Import TensorFlow, Keras and Horovod in another process, and check what they report."""
    command = [sys.executable, "-P", "-m", "distrib.launch.doctor.frameworks_report"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=REPORT_SECONDS)
    except subprocess.TimeoutExpired:
        text = f"its import has not ended in {REPORT_SECONDS:g} s"
        yield Finding(PROBLEM, "TensorFlow", text, "look at the disk that Python is installed on")
        return
    if done.returncode != 0:
        yield _import_failure(done.returncode, done.stderr)
        return
    report = json.loads(done.stdout.splitlines()[-1])
    yield from check_tensorflow(report)
    yield from check_gpus(report, driver_version(), _dlopen_error(done.stderr))
    yield from check_horovod(report, installed_version(NCCL_PACKAGE))


def check_tensorflow(report: Mapping[str, Any]) -> Iterator[Finding]:
    """Check TensorFlow and the backend of Keras."""
    cuda = f", built for CUDA {report['cuda']}" if report["cuda"] else ""
    yield Finding(OK, "TensorFlow", f"{report['tensorflow']}{cuda}")
    if report["backend"] != "tensorflow":
        set_by = "KERAS_BACKEND" if "KERAS_BACKEND" in os.environ else "~/.keras/keras.json"
        text = f"the backend is {report['backend']}, by {set_by}; distrib needs tensorflow"
        yield Finding(PROBLEM, "Keras", text, "export KERAS_BACKEND=tensorflow")


def check_gpus(
    report: Mapping[str, Any], driver: str | None, dlopen_error: str
) -> Iterator[Finding]:
    """Check whether TensorFlow uses the GPUs that the driver has.

    Args:
        report: See `frameworks_report.py`.
        driver: The newest CUDA version that the driver runs; `None` without a driver.
        dlopen_error: What TensorFlow says of libraries that it cannot load; may be empty.
    """
    gpus, cuda = report["gpus"], report["cuda"]
    if driver is None:
        if not _KERNEL_DRIVER.exists():
            yield Finding(OK, "GPUs", "no NVIDIA driver: ranks train on CPUs")
            return
        text = "this machine has a driver, whose library libcuda.so.1 is not found here"
        remedy = "start the container with NVIDIA's runtime and the capability `compute`"
        yield Finding(PROBLEM, "GPUs", text, remedy)
    elif gpus:
        yield Finding(OK, "GPUs", f"{', '.join(gpus)}; driver for CUDA {driver}")
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        text = f"none is visible: CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}"
        yield Finding(WARNING, "GPUs", text, "unset it, or train on CPUs")
    elif cuda and _version(driver) < _version(cuda)[:1]:
        text = f"the driver runs CUDA {driver} at most, TensorFlow is built for {cuda}"
        yield Finding(PROBLEM, "GPUs", text, "install a newer NVIDIA driver")
    else:
        why = dlopen_error or ("" if cuda else "this TensorFlow is built without CUDA")
        text = f"TensorFlow sees none, though there is a driver{f': {why}' if why else ''}"
        yield Finding(PROBLEM, "GPUs", text, "pip install 'distrib[gpu]'")


def check_horovod(report: Mapping[str, Any], nccl: str | None) -> Iterator[Finding]:
    """Check what Horovod was built with.

    Args:
        report: See `frameworks_report.py`.
        nccl: Version of the package with NCCL; `None` if it is not installed.
    """
    horovod = report["horovod"]
    if horovod is None:
        text = "not installed: one process, all devices of a machine, or --backend multiworker"
        yield Finding(OK, "Horovod", text)
        return
    if "error" in horovod:
        text = f"cannot be imported: {horovod['error'].splitlines()[0]}"
        yield Finding(PROBLEM, "Horovod", text, f"{_BUILD} --force")
        return
    names = {"gloo": "Gloo", "mpi": "MPI", "nccl": "NCCL"}
    built = [name for key, name in names.items() if horovod[key]]
    yield Finding(OK, "Horovod", f"built with {', '.join(built) or 'nothing to reduce with'}")
    if not horovod["gloo"]:
        text = "`distrib run` starts ranks with Gloo, which this Horovod is built without"
        yield Finding(WARNING, "Horovod", text, f"HOROVOD_WITH_GLOO=1 {_BUILD} --force")
    if report["gpus"] and not horovod["nccl"]:
        text = "there are GPUs, but gradients travel through the memory of the CPU"
        yield Finding(WARNING, "Horovod", text, f"{_BUILD} --gpu")
    if horovod["nccl"] and nccl and horovod["nccl"] > _nccl_code(nccl):
        text = f"built with NCCL {horovod['nccl']}, newer than the installed {nccl}"
        yield Finding(PROBLEM, "Horovod", text, f"{_BUILD} --gpu --force")


def _import_failure(code: int, errors: str) -> Finding:
    lines = [line for line in errors.splitlines() if line.strip()] or ["no message"]
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (it needs a CPU with AVX)" if name == "SIGILL" else ""
        return Finding(
            PROBLEM, "TensorFlow", f"its import ends with {name}{hint}", "reinstall tensorflow"
        )
    return Finding(
        PROBLEM, "TensorFlow", f"cannot be imported: {lines[-1]}", "pip install 'distrib'"
    )


def _dlopen_error(errors: str) -> str:
    """Return TensorFlow's line on libraries that it could not load."""
    lines = (line for line in errors.splitlines() if "Cannot dlopen" in line)
    return next(lines, "").partition("] ")[2]


def _nccl_code(version: str) -> int:
    """Return a version as NCCL does: 22707 for 2.27.7."""
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    return 10000 * major + 100 * minor + patch


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
