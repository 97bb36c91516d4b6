import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.callbacks import BackupAndRestore
from distrib.checkpoint.saver import Content, Saver
from distrib.checkpoint.stored_checkpoint import LoadedCheckpoint
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError
from distrib.launch.checkpoints.export import rebuild
from distrib.state.build import build_for_epochs
from distrib.state.run_state import RunState
from distrib.state.training_position import Logs, TrainingPosition
from distrib.storage.locate import locate

X = np.random.default_rng(0).normal(size=(24, 5)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("float32")

CUSTOM_LAYER = """
import keras

@keras.saving.register_keras_serializable(package="mine")
class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="random_normal")

    def call(self, x):
        return x * self.scale
"""


def make() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    normalization = layers.Normalization()
    normalization.adapt(X)
    hidden = [layers.Dense(8, "relu"), layers.BatchNormalization(), layers.Dropout(0.2)]
    model = keras.Sequential([keras.Input((5,)), normalization, *hidden, layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def captured(model: keras.Model, step: int = 7) -> Content:
    """Return what a checkpoint of a model holds before its first step."""
    build_for_epochs(model, lambda: None)
    model.history = keras.callbacks.History()
    model.history.epoch = []
    state = RunState(model, None, {}, ())
    content = state.capture(TrainingPosition(step=step), Logs({}, None), None)
    assert content is not None
    return content


def save(run: Any, model: keras.Model) -> None:
    saver = Saver(run.directory, run.directory.begin(1), None)
    saver.save(captured(model))
    saver.close()


def loaded(model: keras.Model) -> LoadedCheckpoint:
    content = captured(model)
    copies = {
        group: {name: array.copy() for name, array in arrays.items()}
        for group, arrays in content.arrays.items()
    }
    return LoadedCheckpoint(dict(json.loads(json.dumps(content.training))), copies)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, keras.Model]:
    """The directory of a run that has been trained, and its model."""
    directory = tmp_path_factory.mktemp("run")
    model = make()
    data = make_dataset((X, Y), 8, shuffle=True, seed=1)
    callbacks = [BackupAndRestore(directory, keep_last=None)]
    model.fit(data, epochs=2, callbacks=callbacks, verbose=0)
    return directory, model


def test_plain_keras_loads_the_same_model(trained: Any, tmp_path: Path, checkpoints: Any) -> None:
    directory, model = trained
    result = checkpoints("export", directory, "newest", tmp_path / "out/m.keras")
    assert result.code == 0, result.err
    assert result.out.startswith(f"wrote {tmp_path}/out/m.keras (")
    exported = keras.models.load_model(tmp_path / "out/m.keras")
    np.testing.assert_array_equal(exported.predict(X, verbose=0), model.predict(X, verbose=0))
    ours, theirs = model.optimizer, exported.optimizer
    assert int(theirs.iterations) == int(ours.iterations) == 6
    for own, other in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_array_equal(own, other)


def test_weights_of_an_earlier_step_to_a_url(
    trained: Any, tmp_path: Path, memory_url: str, checkpoints: Any
) -> None:
    directory, _ = trained
    url = f"{memory_url}/m.weights.h5"
    result = checkpoints("export", directory, 0, url, "--json")
    found = json.loads(result.out)
    assert (found["step"], found["path"], found["left_out"]) == (0, url, None)
    place = locate(url, "output")
    assert place.size() == found["bytes"]
    place.download(tmp_path / "m.weights.h5")
    model, untrained = make(), make()
    build_for_epochs(model, lambda: None)
    for variable in model.trainable_variables:
        variable.assign(variable + 1)
    model.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(model.predict(X, verbose=0), untrained.predict(X, verbose=0))


def test_custom_layers(
    local_run: Any, tmp_path: Path, checkpoints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_layers.py").write_text(CUSTOM_LAYER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    from own_layers import Scale  # type: ignore[import-not-found]

    model = keras.Sequential([keras.Input((5,)), Scale(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    save(local_run, model)
    monkeypatch.delitem(sys.modules, "own_layers")
    monkeypatch.delitem(keras.saving.get_custom_objects(), "mine>Scale")
    sys.path.pop()
    export = ["export", local_run.url, 7, tmp_path / "m.keras"]
    result = checkpoints(*export)
    assert result.code == 78
    assert "Could not locate class 'Scale'" in result.err
    assert "--import" in result.err
    assert "Full object config" not in result.err
    assert not (tmp_path / "m.keras").exists()
    assert "--import no_such_module" in checkpoints(*export, "--import", "no_such_module").err
    assert checkpoints(*export, "--import", "own_layers").code == 0
    exported = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(exported(X), model(X))


def test_a_model_with_a_custom_loss_is_not_compiled(
    local_run: Any, tmp_path: Path, checkpoints: Any
) -> None:
    def own_loss(y_true: Any, y_pred: Any) -> Any:
        return tf.reduce_mean(tf.abs(y_true - y_pred))

    model = make()
    model.compile("adam", own_loss)
    save(local_run, model)
    result = checkpoints("export", local_run.url, 7, tmp_path / "m.keras")
    assert result.code == 0
    assert "not compiled: Could not locate function 'own_loss'" in result.out
    exported = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(exported(X), model(X))
    assert not exported.compiled


def test_a_layer_shared_between_submodels_is_refused() -> None:
    """Keras saves the layer twice, once for each submodel, and cannot load that."""
    shared = keras.layers.Dense(5)
    halves = [keras.Sequential([keras.Input((5,)), shared]) for _ in range(2)]
    inputs = keras.Input((5,))
    model = keras.Model(inputs, halves[0](inputs) - halves[1](2 * inputs))
    model.compile("sgd", "mse")
    with pytest.raises(ConfigurationError, match="gives other variables"):
        rebuild(loaded(model))


class Undescribed(keras.Model):
    """A subclass without a config, whose layers have automatic names."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = units
        self.hidden, self.out = keras.layers.Dense(units), keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.out(self.hidden(x))


class Described(Undescribed):
    def get_config(self) -> dict[str, Any]:
        return {"units": self.units, "name": self.name}


def test_a_subclassed_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(keras.saving.get_custom_objects(), "Described", Described)
    model = Described(3)
    model(X)
    model.compile("sgd", "mse")
    rebuilt, _ = rebuild(loaded(model))
    np.testing.assert_array_equal(rebuilt(X), model(X))


def test_a_model_without_get_config_is_refused(
    local_run: Any, tmp_path: Path, checkpoints: Any
) -> None:
    model = Undescribed(3)
    model(X)
    model.compile("sgd", "mse")
    save(local_run, model)
    result = checkpoints("export", local_run.url, 7, tmp_path / "m.keras")
    assert result.code == 78
    assert "does not hold the model's config" in result.err
    assert "Build the model in your script instead" in result.err


def test_a_lambda_loss_neither_warns_nor_raises(recwarn: pytest.WarningsRecorder) -> None:
    scope: dict[str, Any] = {}
    exec("loss = lambda y, p: (y - p) ** 2", scope)  # Keras finds no source code of it.
    for loss, described in ((lambda y, p: (y - p) ** 2, True), (scope["loss"], False)):
        model = make()
        model.compile("sgd", loss)
        config = captured(model).training["model"]
        assert (config is not None) == described
    assert [str(w.message) for w in recwarn if "lambda" in str(w.message)] == []


def test_replicas_are_merged() -> None:
    model = make()
    content = loaded(model)
    arrays = content.arrays["model"]
    (entry,) = (
        one for one in content.training["state"]["variables"] if "moving_mean" in one["path"]
    )
    (name,) = entry["names"]
    entry["names"] = [f"{name}@0", f"{name}@1"]
    arrays[f"{name}@0"] = arrays.pop(name) + 1
    arrays[f"{name}@1"] = arrays[f"{name}@0"] + 1
    rebuilt, _ = rebuild(content)
    np.testing.assert_array_equal(rebuilt.layers[2].moving_mean, np.full(8, 1.5, np.float32))


def test_mixed_precision_keeps_the_loss_scale(tmp_path: Path) -> None:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = make()
    finally:
        keras.config.set_dtype_policy(policy)
    content = loaded(model)
    (scale,) = (name for name in content.arrays["optimizer"] if "dynamic_scale" in name)
    content.arrays["optimizer"][scale] = np.float32(8.0)
    rebuilt, left_out = rebuild(content)
    assert left_out is None
    rebuilt.save(tmp_path / "m.keras")
    rebuilt = keras.models.load_model(tmp_path / "m.keras")
    assert float(rebuilt.optimizer.dynamic_scale) == 8.0
    np.testing.assert_array_equal(rebuilt(X), model(X))


def with_vocabulary() -> keras.Model:
    lookup = keras.layers.StringLookup()
    lookup.adapt(np.array(["a", "b"]))
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, keras.layers.Embedding(4, 2)(lookup(inputs)))
    model.compile("sgd", "mse")
    return model


def test_an_adapted_vocabulary_is_exported() -> None:
    model = with_vocabulary()
    rebuilt, _ = rebuild(loaded(model))
    words = tf.constant([["b"], ["a"], ["?"]])
    np.testing.assert_array_equal(rebuilt(words), model(words))


def test_an_adapted_vocabulary_in_an_old_checkpoint_is_refused() -> None:
    content = loaded(with_vocabulary())
    del content.training["layers"]
    with pytest.raises(ConfigurationError, match=r"'string_lookup.*vocabulary by `adapt`"):
        rebuild(content)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"shape": [5, 9]}, r"kernel \(5, 8\) float32 instead of .*kernel \(5, 9\) float32"),
        ({"path": "sequential/other/kernel"}, "instead of sequential/other/kernel"),
        (None, "instead of none"),
    ],
)
def test_a_config_that_gives_other_variables_is_refused(change: Any, shown: str) -> None:
    content = loaded(make())
    variables = content.training["state"]["variables"]
    (number,) = (
        i for i, one in enumerate(variables) if one["shape"] == [5, 8] and one["group"] == "model"
    )
    if change is None:
        content = replace(
            content, training={**content.training, "state": {"variables": variables[:-1]}}
        )
    else:
        variables[number].update(change)
    with pytest.raises(ConfigurationError, match=f"gives other variables: .*{shown}"):
        rebuild(content)


def test_a_damaged_checkpoint_is_65(
    trained: Any, local_run: Any, tmp_path: Path, checkpoints: Any
) -> None:
    local_run.save(7)
    place = local_run.damage(7)
    result = checkpoints("export", local_run.url, 7, tmp_path / "m.keras")
    assert result.code == 65
    assert str(place) in result.err


def test_a_checkpoint_without_a_config_is_refused(
    local_run: Any, tmp_path: Path, checkpoints: Any
) -> None:
    local_run.save(7)
    result = checkpoints("export", local_run.url, 7, tmp_path / "m.keras")
    assert result.code == 78
    assert "an old version of distrib" in result.err


@pytest.mark.parametrize("name", ["m.h5", "m", "m.keras/"])
def test_other_file_formats_are_refused(
    name: str, local_run: Any, tmp_path: Path, checkpoints: Any
) -> None:
    result = checkpoints("export", local_run.url, 7, f"{tmp_path}/{name}")
    assert result.code == 64
    assert "does not end in .keras or .weights.h5" in result.err
