"""Turns the pipelines and iterables that `fit` is given into `Feed`s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distrib.log import log
from distrib.training.fit_pipelines import feed_of, pipeline_in
from distrib.training.pipeline_notes import notes_on, notes_on_validation
from distrib.training.resumable_fit import savers_in


def pipeline_arguments(
    model: Any, arguments: Mapping[str, Any], given: frozenset[str]
) -> dict[str, Any]:
    """Return what to change of the arguments of a `fit` on a pipeline or iterable of batches.

    Args:
        model: Compiled.
        arguments: All arguments by name, those with defaults included.
        given: Names of the arguments that the caller has passed.

    Raises:
        ConfigurationError: If ranks cannot share the data, or a run cannot be resumed on them.
    """
    savers = savers_in(arguments["callbacks"])
    resume = savers[0].resume if savers else None
    if resume is not None:
        for note in notes_on_validation(arguments["validation_data"]):
            log.info(note)
    pipeline = pipeline_in(arguments["x"])
    if pipeline is None:
        return {}
    feed = feed_of(pipeline, model, arguments, resume)
    for note in notes_on(pipeline, feed is not None and feed.savable, resume):
        log.info(note)
    changed = pipeline.batches if feed is None else feed
    return {"x": changed, **({} if "shuffle" in given else {"shuffle": False})}
