"""Horovod's best-known Keras example, a convolutional net on MNIST, as a distrib script.

    distrib run -np 4 examples/mnist.py         # or horovodrun, mpirun, or python alone

Model and training are the original's: Adam's learning rate is scaled by the number of ranks and
warmed up for three epochs, and every epoch saves a model. distrib does what a Horovod script does
by hand: it picks each rank's GPU, broadcasts weights, averages metrics, and lets only the chief
write. Callbacks can be in any order. In addition, a killed run resumes at the last checkpoint.

Keras downloads the data; `--data` reads an `.npz` file (`x_train`, `y_train`) instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import distrib.quiet  # isort: skip  (before Keras: it drops TensorFlow's start-up messages)
import keras
import numpy as np
from keras import layers

from distrib.callbacks import BackupAndRestore, LearningRateWarmup, ModelCheckpoint

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--run", default="runs/mnist", help="output folder, or its URL")
parser.add_argument("--data", type=Path, help="read an .npz in MNIST's format [download]")
parser.add_argument("--epochs", type=int, default=24, help="train for N epochs [24]")
parser.add_argument("--batch-size", type=int, default=128, help="batch size of each rank [128]")
args = parser.parse_args()

cluster = distrib.init()
keras.utils.set_random_seed(7)

if args.data is not None:
    with np.load(args.data) as data:
        x, y = data["x_train"], data["y_train"]
else:  # Each rank downloads a file of its own: concurrent writes would damage a shared one.
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
        ModelCheckpoint(f"{args.run}/checkpoint-{{epoch:02d}}.keras"),
        BackupAndRestore(args.run, save_freq=100),
    ],
)
