"""What the NVIDIA driver of this machine says of itself, asked without TensorFlow."""

from __future__ import annotations

import ctypes


def driver_version() -> str | None:
    """Return the newest CUDA version that the driver runs; `None` if there is no driver."""
    driver = _driver()
    version = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def gpu_count() -> int:
    """Return how many GPUs a process may use: as many as `CUDA_VISIBLE_DEVICES` shows."""
    driver = _driver()
    count = ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
