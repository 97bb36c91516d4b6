"""Compares what `contents.py` has found out about arrays. Needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np


def compare_contents(
    saved: Mapping[str, Any], here: Mapping[str, Any]
) -> Literal["same", "rounding", "other"]:
    """Tell how two results of `contents_of` differ; those of other paths are other data."""
    if saved.keys() != here.keys():
        return "other"
    differing = [(saved[path], here[path]) for path in here if saved[path] != here[path]]
    if not differing:
        return "same"
    return "rounding" if all(_differ_by_rounding(*pair) for pair in differing) else "other"


def _differ_by_rounding(saved: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    if "means" not in saved or "means" not in here or len(saved["means"]) != len(here["means"]):
        return False
    apart = np.abs(np.subtract(saved["means"], here["means"]))
    return bool(np.all(apart <= saved["rounding"]))
