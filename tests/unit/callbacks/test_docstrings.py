from __future__ import annotations

import doctest
from pathlib import Path

import keras
import numpy as np
import pytest

import distrib.callbacks
import distrib.cluster
from distrib.callbacks import loss_plots

OURS = {
    name: item
    for name, item in vars(distrib.callbacks).items()
    if name in distrib.callbacks.__all__ and item.__module__.startswith("distrib.")
}
DOCUMENTED = [*OURS.values(), loss_plots.downsample]


@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda item: item.__name__)
def test_examples_run(documented: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distrib.cluster, "_current", None)
    names = OURS | {"distrib": distrib, "keras": keras, "np": np}
    names |= {"downsample": loss_plots.downsample}
    finder = doctest.DocTestFinder(recurse=False)
    tests = finder.find(documented, name=documented.__name__, globs=names)  # type: ignore[attr-defined]
    assert sum(len(test.examples) for test in tests) > 0
    for test in tests:
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0
