from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distrib.callbacks import loss_plots
from distrib.callbacks.loss_plots import downsample, save_epoch_plot, save_run_plot


def test_short_curves_are_drawn_as_they_are() -> None:
    x, y = np.arange(10), np.arange(10.0)
    assert downsample(x, y, max_points=10) == (x, y)


@pytest.mark.parametrize("count", [4001, 123_457])
def test_long_curves_keep_their_peaks(count: int) -> None:
    x, y = np.arange(count), np.sin(np.arange(count) / 1000)
    y[count // 3], y[count // 2] = 9.0, -9.0
    y[7] = np.nan
    few, values = downsample(x, y)
    assert len(few) == len(values) <= 4000
    assert np.nanmax(values) == 9.0
    assert np.nanmin(values) == -9.0
    assert np.all(np.diff(few) >= 0)
    assert abs(few[np.nanargmax(values)] - count // 3) < count / 1000


class Drawn:
    """Keeps the axes of a plot instead of saving it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loss_plots, "_finish", self.finish)
        self.axes: Any = None

    def finish(self, figure: Any, axes: Any, path: Path) -> None:
        self.axes = axes

    def lines(self) -> dict[str, tuple[list[float], list[float]]]:
        return {
            line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
            for line in self.axes.get_lines()
        }


def test_epoch_plot_is_the_textbooks(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(monkeypatch)
    save_epoch_plot(Path("x.png"), 4, np.arange(3), np.array([3.0, 2.0, 1.0]))
    assert drawn.lines() == {"Training loss for each batch": ([0, 1, 2], [3.0, 2.0, 1.0])}
    assert drawn.axes.get_xlabel() == "Batch (epoch 4)"


def test_run_plot_has_batches_and_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(monkeypatch)
    save_run_plot(
        Path("x.png"),
        np.array([1, 2, 3, 4]),
        np.array([4.0, 3.0, 2.0, 1.0]),
        np.array([2, 4]),
        {"Training loss": np.array([3.0, 1.0]), "Validation loss": np.array([3.5, 1.5])},
    )
    assert drawn.lines() == {
        "Training loss for each batch": ([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0]),
        "Training loss": ([2, 4], [3.0, 1.0]),
        "Validation loss": ([2, 4], [3.5, 1.5]),
    }
