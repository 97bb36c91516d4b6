"""Horovod's best-known Keras example, a convolutional net on MNIST, as a distrib script.

    distrib run -np 4 examples/mnist.py         # or horovodrun, mpirun, or python alone

The net and its training are those of the original: Adam's learning rate grows with the number of
ranks, after a warm-up of three epochs, and every epoch leaves a model. What a Horovod script does
by hand is gone: no rank picks its GPU, broadcasts weights, averages metrics or asks whether it may
write, and callbacks stand in any order. New is that a killed run goes on where it was.

Keras downloads the data; `--data` takes them from an `.npz` file (`x_train`, `y_train`) instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
from keras import layers

import distrib
from distrib.callbacks import BackupAndRestore, LearningRateWarmup, ModelCheckpoint

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--run", type=Path, default=Path("runs/mnist"), help="output folder")
parser.add_argument("--data", type=Path, help="MNIST-format .npz")
parser.add_argument("--epochs", type=int, default=24)
parser.add_argument("--batch-size", type=int, default=128, help="of each rank")
args = parser.parse_args()

cluster = distrib.init()
keras.utils.set_random_seed(7)

if args.data is not None:
    with np.load(args.data) as data:
        x, y = data["x_train"], data["y_train"]
else:  # A file for each rank, so that no two write the same one.
    (x, y), _ = keras.datasets.mnist.load_data(f"mnist-{cluster.rank}.npz")

with cluster.scope():
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        optimizer=cluster.optimizer(keras.optimizers.Adam(0.001 * cluster.num_replicas)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )

model.fit(
    cluster.dataset(
        ((x / 255.0).astype("float32")[..., None], y.astype("int64")),
        batch_size=args.batch_size * cluster.num_replicas,
        shuffle=True,
    ),
    epochs=args.epochs,
    callbacks=[
        LearningRateWarmup(warmup_epochs=3, verbose=1),
        ModelCheckpoint(args.run / "checkpoint-{epoch:02d}.keras"),
        BackupAndRestore(args.run, save_freq=100),
    ],
)
