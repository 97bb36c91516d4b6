"""Prints as JSON what TensorFlow, Keras and Horovod say of themselves, for `frameworks.py`.

It runs in a process of its own, because what is broken may crash it, or hang.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any


def main() -> None:
    """Print the report as the last line of standard output."""
    import tensorflow as tf

    build = tf.sysconfig.get_build_info()
    report = {
        "tensorflow": tf.__version__,
        "cuda": build.get("cuda_version"),
        "gpus": [_name(device) for device in tf.config.list_physical_devices("GPU")],
        "backend": _keras_backend(),
        "horovod": _horovod(),
    }
    print(json.dumps(report), flush=True)


def _name(device: Any) -> str:
    import tensorflow as tf

    details = tf.config.experimental.get_device_details(device)
    return str(details.get("device_name", device.name))


def _keras_backend() -> str:
    import keras

    return str(keras.backend.backend())


def _horovod() -> Mapping[str, Any] | None:
    """Return what Horovod was built with; `None` if it is not installed."""
    if find_spec("horovod") is None:
        return None
    try:
        import horovod.tensorflow as hvd
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "gloo": bool(hvd.gloo_built()),
        "mpi": bool(hvd.mpi_built()),
        "nccl": int(hvd.nccl_built()),
    }


if __name__ == "__main__":
    main()
