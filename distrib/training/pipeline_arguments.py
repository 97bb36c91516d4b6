"""Turns the pipelines and iterables that `fit` is given into `Feed`s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distrib.log import log
from distrib.training.fit_pipelines import evaluation_feed_of, feed_of, pipeline_in
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
    changes: dict[str, Any] = {}
    if resume is not None:
        given_data = arguments["validation_data"]
        validation = evaluation_feed_of(given_data, arguments["validation_steps"])
        for note in notes_on_validation(given_data, validation is not None):
            log.info(note)
        if validation is not None:
            changes["validation_data"] = validation
    pipeline = pipeline_in(arguments["x"])
    if pipeline is None:
        return changes
    feed = feed_of(pipeline, model, arguments, resume)
    for note in notes_on(pipeline, feed is not None and feed.savable, resume):
        log.info(note)
    changes["x"] = pipeline.batches if feed is None else feed
    return changes if "shuffle" in given else {**changes, "shuffle": False}
