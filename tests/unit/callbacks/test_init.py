from __future__ import annotations

import subprocess
import sys
import types

import keras

import distrib.callbacks

OPTIONAL = ["matplotlib", "requests", "tensorboard", "orbax.checkpoint", "jax"]


def output(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    return result.stdout.strip()


def public_names(module: types.ModuleType) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


def test_every_exported_name_exists() -> None:
    assert len(set(distrib.callbacks.__all__)) == len(distrib.callbacks.__all__)
    for name in distrib.callbacks.__all__:
        assert getattr(distrib.callbacks, name).__name__ == name


def test_everything_in_keras_callbacks_is_exported() -> None:
    theirs = public_names(keras.callbacks)
    assert len(theirs) >= 15
    assert theirs <= set(distrib.callbacks.__all__)


def test_what_distrib_does_not_replace_is_the_object_of_keras() -> None:
    for name in public_names(keras.callbacks):
        ours = getattr(distrib.callbacks, name)
        if not ours.__module__.startswith("distrib.callbacks."):
            assert ours is getattr(keras.callbacks, name)
    for name in ("Callback", "CallbackList", "History"):
        assert getattr(distrib.callbacks, name) is getattr(keras.callbacks, name)


def test_names_of_other_keras_versions() -> None:
    """A public name that a newer Keras adds is exported; one that an older Keras lacks is not."""
    code = (
        "import keras; c = keras.callbacks\n"
        "c.Newer, c._Private = type('Newer', (c.Callback,), {}), 1\n"
        "vars(c).pop('OrbaxCheckpoint', None)\n"
        "import distrib.callbacks as d\n"
        "from distrib.callbacks import *\n"
        "print(Newer is c.Newer, 'Newer' in dir(d), 'Newer' in d.__all__)\n"
        "print(hasattr(d, '_Private'), hasattr(d, 'OrbaxCheckpoint'), hasattr(d, 'Misspelt'))"
    )
    assert output(code).splitlines() == ["True True True", "False False False"]


def test_distrib_alone_does_not_load_the_callbacks() -> None:
    code = "import sys, distrib; print('distrib.callbacks' in sys.modules, 'keras' in sys.modules)"
    assert output(code) == "False False"


def test_optional_packages_are_loaded_when_needed() -> None:
    # Keras itself loads some of them where they are installed.
    code = (
        "import sys, keras, tensorflow; before = set(sys.modules); import distrib.callbacks;"
        f"print([name for name in {OPTIONAL} if name in set(sys.modules) - before])"
    )
    assert output(code) == "[]"
