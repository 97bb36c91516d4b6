"""The two plots of `LossHistory`, drawn without a display.

They use matplotlib's objects, not `pyplot`, which would share state with the user's own plots and
start a window system. matplotlib is imported when the first plot is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAX_POINTS = 4000
LIGHT, DARK, ORANGE = "#9bbcdc", "#1f5a94", "#d1601c"


def save_epoch_plot(path: Path, epoch: int, batches: Array, losses: Array) -> None:
    """Draw the losses of one epoch's batches.

    Args:
        path: PNG file to write.
        epoch: Number of the epoch, from 0.
        batches: Batch numbers, from 0, shape (n,).
        losses: The batches' losses, shape (n,).
    """
    figure, axes = _figure()
    _curve(axes, batches, losses, label="Training loss for each batch", color=DARK)
    axes.set_xlabel(f"Batch (epoch {epoch})")
    _finish(figure, axes, path)


def save_run_plot(
    path: Path, steps: Array, losses: Array, epoch_steps: Array, epoch_losses: dict[str, Array]
) -> None:
    """Draw the losses of all batches of a run, with the results of its epochs.

    Args:
        path: PNG file to write.
        steps: Steps done after each batch, from 1, shape (n,).
        losses: The batches' losses, shape (n,).
        epoch_steps: Steps done at the end of each epoch, shape (e,).
        epoch_losses: Label to values at the epochs' ends, shape (e,); NaN for a missing one.
    """
    figure, axes = _figure()
    _curve(axes, steps, losses, label="Training loss for each batch", color=LIGHT, linewidth=0.8)
    few = len(epoch_steps) <= 60
    for (label, values), color in zip(epoch_losses.items(), (DARK, ORANGE), strict=False):
        axes.plot(
            epoch_steps,
            values,
            label=label,
            color=color,
            linewidth=1.8,
            marker="o" if few else None,
            markersize=4,
        )
    axes.set_xlabel("Step")
    _finish(figure, axes, path)


def downsample(x: Array, y: Array, max_points: int = MAX_POINTS) -> tuple[Array, Array]:
    """Reduce a long curve to about `max_points` points that look the same.

    Each stretch of the curve is reduced to its lowest and its highest value, so peaks stay.

    Example:
    >>> x, y = downsample(np.arange(6), np.array([1.0, 5.0, 2.0, 4.0, 3.0, 9.0]), max_points=4)
    >>> y.tolist()
    [1.0, 5.0, 3.0, 9.0]
    """
    if len(y) <= max_points:
        return x, y
    starts = np.linspace(0, len(y), max_points // 2, endpoint=False, dtype=np.int64)
    # fmin and fmax ignore NaN.
    low, high = np.fmin.reduceat(y, starts), np.fmax.reduceat(y, starts)
    return np.repeat(x[starts], 2), np.column_stack([low, high]).ravel()


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _curve(axes: Any, x: Array, y: Array, **style: Any) -> None:
    # A single batch would be an invisible line.
    marker = "o" if len(y) == 1 else None
    axes.plot(*downsample(x, y), marker=marker, markersize=4, **style)


def _finish(figure: Any, axes: Any, path: Path) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylabel("Loss")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, format="png")
