"""Cost of a checkpoint, side by side with the checkpoints of Keras, TensorFlow and Orbax.

    python benchmarks/checkpoint.py                           # 604 MB of state
    python benchmarks/checkpoint.py --small                   # a model of a few bytes
    python benchmarks/checkpoint.py --store s3://bucket/bench # throughput of an object store

Each contender trains the same model on the same data in a fresh process; the contenders take turns,
for several rounds. Lower bounds are measured in between: a copy of the state in memory, and `dd` of
the same number of bytes.

- pause: time that the saving step delays the begin of the next one (spent in the callback).
- next step: slowdown of the next step, compared with the steps before the first save. Causes are
  copy-on-write of the state, and a busy disk or core.
- wall: extra time per save of all steps and the wait for the last save, compared with a run without
  saves. It includes background threads, which take cores from training.
- commit: time from the end of the step until the checkpoint has its final name. distrib and Orbax
  flush it to the disk before that; Keras and TensorFlow leave the flush to the kernel.
- memory: peak memory of the process above that of a run without saves.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from checkpoints.jobs import run_job
from checkpoints.store_table import compare_store
from checkpoints.training_tables import compare_large, compare_small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="repeat N times [3]")
    parser.add_argument("--small", action="store_true", help="train a model of a few bytes")
    parser.add_argument("--store", metavar="URL", help="measure throughput of s3:// or gs://")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        run_job(*args.job)
        return
    compare = compare_small if args.small else compare_large
    for line in compare_store(args.rounds, args.store) if args.store else compare(args.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
