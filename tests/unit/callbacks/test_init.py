from __future__ import annotations

import subprocess
import sys

import distrib.callbacks

OPTIONAL = ["matplotlib", "requests", "tensorboard", "orbax.checkpoint", "jax"]


def loaded(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    return result.stdout.strip()


def test_every_export_is_there() -> None:
    assert sorted(distrib.callbacks.__all__) == distrib.callbacks.__all__
    for name in distrib.callbacks.__all__:
        assert getattr(distrib.callbacks, name).__name__ == name


def test_distrib_alone_does_not_load_the_callbacks() -> None:
    code = "import sys, distrib; print('distrib.callbacks' in sys.modules, 'keras' in sys.modules)"
    assert loaded(code) == "False False"


def test_optional_packages_are_loaded_when_needed() -> None:
    # Keras itself loads some of them where they are installed.
    code = (
        "import sys, keras, tensorflow; before = set(sys.modules); import distrib.callbacks;"
        f"print([name for name in {OPTIONAL} if name in set(sys.modules) - before])"
    )
    assert loaded(code) == "[]"
