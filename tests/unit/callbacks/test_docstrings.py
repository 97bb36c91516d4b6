from __future__ import annotations

import doctest
from pathlib import Path

import keras
import numpy as np
import pytest

import distrib.callbacks
from distrib.callbacks import loss_plots

# BackupAndRestore's example is a script of its own.
DOCUMENTED = [
    *(getattr(distrib.callbacks, n) for n in distrib.callbacks.__all__ if n != "BackupAndRestore"),
    loss_plots.thinned,
]


@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda item: item.__name__)
def test_examples_run(documented: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {n: getattr(distrib.callbacks, n) for n in distrib.callbacks.__all__}
    names |= {"keras": keras, "np": np, "thinned": loss_plots.thinned}
    finder = doctest.DocTestFinder(recurse=False)
    tests = finder.find(documented, name=documented.__name__, globs=names)  # type: ignore[attr-defined]
    assert sum(len(test.examples) for test in tests) > 0
    for test in tests:
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0
