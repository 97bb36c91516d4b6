"""Speed of `cluster.dataset` next to `tf.data`, grain and Keras's `PyDataset`.

    python benchmarks/input_pipeline.py                         # all parts, about two minutes
    python benchmarks/input_pipeline.py --only records --repeats 7 --images 4000

| part | what is read |
|---|---|
| records | JPEG images of 100 KB in TFRecord (grain: ArrayRecord) files on the local disk |
| store | the same in an S3 server: moto's on loopback, or that of `AWS_ENDPOINT_URL` |
| python | texts, by a `map` in Python, with 2 worker processes |
| seek | the first batch from the middle of 10 GB |
| arrays | arrays in memory and on disk, and objects with random access |
| steps | a pipeline in `fit`, a step of 1 ms at a time |

The contenders take turns in one process, so other load on the machine affects all of them; compare
the ratios.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

PARTS = ("records", "store", "python", "seek", "arrays", "steps")


def main() -> None:
    # Not above: the processes of grain and Keras import this file anew.
    from pipelines.arrays import compare_arrays
    from pipelines.python_map import compare_python
    from pipelines.records import compare_records
    from pipelines.seek import compare_seek
    from pipelines.step_cost import compare_steps
    from pipelines.store import compare_store

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part [all]")
    parser.add_argument("--images", type=int, default=1500, help="number of JPEG images [1500]")
    parser.add_argument("--texts", type=int, default=2000, help="number of texts [2000]")
    parser.add_argument("--gigabytes", type=float, default=10, help="to seek in [10]")
    parser.add_argument("--examples", type=int, default=60_000, help="rows of arrays [60000]")
    parser.add_argument("--batch-size", type=int, default=64, help="batch size [64]")
    parser.add_argument("--repeats", type=int, default=3, help="time N epochs of each [3]")
    args = parser.parse_args()
    batch, repeats = args.batch_size, args.repeats
    for part in args.only or PARTS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if part == "records":
                compare_records(folder, args.images, batch, repeats)
            elif part == "store":
                compare_store(folder, args.images, batch, repeats)
            elif part == "python":
                compare_python(args.texts, batch, repeats)
            elif part == "seek":
                compare_seek(folder, args.gigabytes, batch)
            elif part == "steps":
                compare_steps(repeats)
            else:
                compare_arrays(folder, args.examples, batch, repeats)


if __name__ == "__main__":
    main()
