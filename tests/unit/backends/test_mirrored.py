"""Runs in a process of its own: the CPU can be divided only before TensorFlow starts."""

import subprocess
import tempfile
import textwrap
from pathlib import Path

import pytest
from harness import environment, forked

PRELUDE = """
import warnings
import numpy as np, tensorflow as tf, keras, distrib
x = np.arange(42, dtype="float32").reshape(21, 2)
y = x.sum(axis=1, keepdims=True)

def make(scope, norm=True, **kwargs):
    with scope:
        layers = [keras.Input((2,)), keras.layers.Dense(4)]
        layers += [keras.layers.BatchNormalization()] if norm else []
        model = keras.Sequential([*layers, keras.layers.Dense(1)])
        model.compile("adam", "mse", metrics=["mae"], **kwargs)
    return model

def divide():
    cpu = tf.config.list_physical_devices("CPU")[0]
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "train.py")
        script.write_text(PRELUDE + textwrap.dedent(code))
        return subprocess.run(forked(script), capture_output=True, text=True, env=environment())


def succeed(code: str) -> str:
    done = run(code)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_trains_on_batches_that_do_not_split_evenly() -> None:
    succeed(
        """
        cluster = distrib.init("mirrored", devices=2)
        assert (cluster.kind, cluster.num_replicas, cluster.size) == ("mirrored", 2, 1)
        model = make(cluster.scope())
        # Batches of 5 split 3 + 2; the last one holds a single example.
        data = cluster.dataset((x, y), 5, shuffle=True, seed=1)
        val = cluster.dataset((x, y), 5)
        history = model.fit(data, validation_data=val, epochs=3, verbose=0).history
        assert np.isfinite(np.ravel(list(history.values()))).all(), history
        assert np.isfinite(np.concatenate([w.ravel() for w in model.get_weights()])).all()

        # Validation counts each example once: the same as one batch of all. (Without batch
        # normalization, whose statistics Keras keeps apart for each replica.)
        model = make(cluster.scope(), norm=False)
        whole = model.evaluate(cluster.dataset((x, y), 21), verbose=0)
        np.testing.assert_allclose(model.evaluate(val, verbose=0), whole, rtol=1e-5)
        """
    )


def test_arrays_have_the_order_of_a_dataset() -> None:
    succeed(
        """
        cluster = distrib.init("mirrored", devices=2)

        def fit(*data, **more):
            keras.utils.set_random_seed(3)
            model = make(cluster.scope())
            return model.fit(*data, epochs=3, verbose=0, **more).history

        # The last batch holds a single example, which is padded for the second replica.
        assert fit(x, y, batch_size=4) == fit(cluster.dataset((x, y), 4, shuffle=True, seed=3))
        """
    )


def test_plain_arrays_and_datasets_train_too() -> None:
    succeed(
        """
        cluster = distrib.init("mirrored", devices=2)
        model = make(cluster.scope())
        model.fit(x, y, batch_size=7, epochs=1, verbose=0)
        model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(7), epochs=1, verbose=0)
        assert model.predict(x, batch_size=6, verbose=0).shape == (21, 1)
        """
    )


def test_steps_per_execution_falls_back_with_a_warning() -> None:
    succeed(
        """
        cluster = distrib.init("mirrored", devices=2)
        model = make(cluster.scope(), steps_per_execution=3)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(cluster.dataset((x, y), 6, shuffle=True), epochs=2, verbose=0)
        assert any("steps_per_execution=3 does not work" in str(w.message) for w in caught)
        assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 8
        """
    )


def test_the_cpu_cannot_be_divided_after_tensorflow_has_started() -> None:
    done = run("tf.constant(1) + 1; distrib.init('mirrored', devices=2)")
    assert done.returncode == 78
    assert "`devices=2`: the CPU cannot be divided any more" in done.stderr


@pytest.mark.parametrize("devices", ["0", "-1"])
def test_invalid_numbers_of_devices_are_refused(devices: str) -> None:
    done = run(f"distrib.init('mirrored', devices={devices})")
    assert done.returncode == 78
    assert f"`devices={devices}` must be at least 1" in done.stderr


def test_keras_still_averages_the_first_batch() -> None:
    """When this fails Keras has mended the fault: remove the first half of the workaround."""
    done = run(
        """
        model = make(divide().scope())
        model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(5), verbose=0)
        """
    )
    assert "AddN" in done.stderr, "the workaround in distrib/backends/mirrored.py can go"


def test_keras_still_cannot_run_several_steps_per_execution() -> None:
    """When this fails Keras has mended the fault: remove the second half of the workaround."""
    done = run(
        """
        model = make(divide().scope(), steps_per_execution=2)
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4, drop_remainder=True)
        model.fit(data, verbose=0)
        """
    )
    assert "placeholder" in done.stderr, "the workaround in distrib/backends/mirrored.py can go"


def test_what_keras_cannot_update_on_replicas_is_refused_before_a_checkpoint() -> None:
    succeed(
        """
        import os, pytest, tempfile
        from distrib.callbacks import BackupAndRestore

        cluster = distrib.init("mirrored", devices=2)
        folder = tempfile.mkdtemp()
        optimizers, sgd = keras.optimizers, keras.optimizers.SGD

        def fit(optimizer, callbacks=()):
            model = make(cluster.scope())
            with cluster.scope():
                model.compile(optimizer(), "mse")
            model.fit(cluster.dataset((x, y), 5), verbose=0, callbacks=callbacks)

        for argument, optimizer in {
            "gradient_accumulation_steps": lambda: sgd(gradient_accumulation_steps=2),
            "ema_overwrite_frequency": lambda: optimizers.LossScaleOptimizer(
                sgd(use_ema=True, ema_overwrite_frequency=2)
            ),
        }.items():
            for callbacks in ([], [BackupAndRestore(folder)]):
                with pytest.raises(distrib.errors.ConfigurationError, match=argument):
                    fit(optimizer, callbacks)
            with pytest.raises(RuntimeError, match="merge_call"):  # Until Keras can.
                distrib.training.trainer_wrapper.check_replicas = lambda model: None
                fit(optimizer)
            distrib.training.trainer_wrapper.check_replicas = CHECK
        fit(lambda: sgd(use_ema=True, clipnorm=1.0))
        os.rmdir(folder)
        """.replace("CHECK", "distrib.training.fit_checks.check_replicas")
    )
