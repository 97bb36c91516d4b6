"""Train a small convolutional net on handwritten digits. Kill it at any time, then run it again.

    python examples/digits.py --run runs/digits

The data set is scikit-learn's 1,797 digits of 8 x 8 pixels, which needs no download. `--data` reads
an `.npz` file in MNIST's format instead (`x_train`, `y_train`, `x_test`, `y_test`).
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import distrib.quiet  # isort: skip  (before Keras: it drops TensorFlow's start-up messages)
import keras
import numpy as np

from distrib.callbacks import (
    BackupAndRestore,
    CSVLogger,
    EarlyStopping,
    LossHistory,
    ModelCheckpoint,
    ReduceLROnPlateau,
)


def load_data(path: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return `x, y, val_x, val_y`: images of shape (n, height, width, 1) and labels."""
    if path is not None:
        with np.load(path) as data:
            x, y, val_x, val_y = (data[k] for k in ("x_train", "y_train", "x_test", "y_test"))
        scale = 255.0
    else:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        x, val_x, y, val_y = train_test_split(
            images.reshape(-1, 8, 8), labels, test_size=0.2, random_state=0, stratify=labels
        )
        scale = 16.0
    x, val_x = ((images / scale).astype("float32")[..., None] for images in (x, val_x))
    return x, y.astype("int64"), val_x, val_y.astype("int64")


def build_model(shape: tuple[int, ...]) -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


def hash_weights(model: keras.Model) -> str:
    """Return the SHA-256 of all weights, to compare two runs bit for bit."""
    sha = hashlib.sha256()
    for value in model.get_weights():
        sha.update(np.ascontiguousarray(value).tobytes())
    return sha.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="runs/digits", help="output folder, or its URL")
    parser.add_argument("--data", type=Path, help="read an .npz in MNIST's format instead")
    parser.add_argument("--epochs", type=int, default=25, help="train for N epochs [25]")
    parser.add_argument("--batch-size", type=int, default=64, help="global batch size [64]")
    parser.add_argument("--seed", type=int, default=7, help="seed of weights and data order [7]")
    parser.add_argument("--backend", choices=("auto", "local", "mirrored"), default="auto")
    parser.add_argument("--devices", type=int, help="use N devices with --backend mirrored [all]")
    args = parser.parse_args()

    cluster = distrib.init(args.backend, devices=args.devices)
    keras.utils.set_random_seed(args.seed)
    x, y, val_x, val_y = load_data(args.data)

    with cluster.scope():
        model = build_model(x.shape[1:])
        model.compile(
            optimizer=cluster.optimizer(keras.optimizers.Adam(1e-3)),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )

    model.fit(
        x,
        y,
        batch_size=args.batch_size,
        validation_data=(val_x, val_y),
        validation_batch_size=256,
        epochs=args.epochs,
        callbacks=[
            BackupAndRestore(args.run, save_freq=10),
            EarlyStopping(monitor="val_accuracy", patience=10, restore_best_weights=True),
            ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=4),
            ModelCheckpoint(f"{args.run}/best.keras", monitor="val_loss", save_best_only=True),
            CSVLogger(f"{args.run}/log.csv", append=True),
            LossHistory(f"{args.run}/plots"),
        ],
    )

    if cluster.is_chief:
        _, accuracy = model.evaluate(val_x, val_y, verbose=0)
        print(f"validation accuracy: {accuracy:.4f}")
        print(f"weights sha256: {hash_weights(model)}")


if __name__ == "__main__":
    main()
