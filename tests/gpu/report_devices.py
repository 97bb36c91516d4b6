"""Writes what a rank sees of its devices, and the sum of all ranks' numbers, to `DIR/RANK.json`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

import distrib


def main() -> None:
    cluster = distrib.init("horovod")
    device = "GPU:0" if tf.config.get_visible_devices("GPU") else "CPU:0"
    with tf.device(device):
        total = hvd.allreduce(tf.constant(1.0 + cluster.rank), op=hvd.Sum)
    report: dict[str, Any] = {
        "sum": float(total),
        "device_of_sum": total.device,
        "nccl_built": bool(hvd.nccl_built()),
        "visible": [gpu.name for gpu in tf.config.get_visible_devices("GPU")],
    }
    if device == "GPU:0":
        (gpu,) = tf.config.get_visible_devices("GPU")
        query = ["--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
        lines = subprocess.check_output(["nvidia-smi", *query], text=True).splitlines()
        used, memory = map(int, lines[cluster.local_rank].split(","))
        growth = tf.config.experimental.get_memory_growth(gpu)
        report |= {"memory_growth": growth, "used_by_all": used, "memory": memory}
    Path(sys.argv[1], f"{cluster.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
