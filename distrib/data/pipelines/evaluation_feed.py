"""`EvaluationFeed`: a `tf.data` pipeline that a `fit` validates on, shuffled anew each time.

A `shuffle` chooses the order of a pass when an iterator is made, so each validation has one of its
own, as in Keras. It is made when the validation before has ended: until the first batch is drawn,
its state is that of the random generators alone, without the elements of a buffer.
"""

from __future__ import annotations

from typing import Any

from distrib.data.pipelines.batch_readers import ReadAhead
from distrib.data.pipelines.feed import Feed
from distrib.data.pipelines.passes import Passes
from distrib.data.pipelines.steps import Step, reshuffling, seeds, sizes
from distrib.log import log

_DATA = "of data"


class EvaluationFeed(Feed):
    """Batches of a pipeline, one pass a validation.

    Args:
        passes: Over the pipeline; their state can be saved.
        pipeline: The batches of a validation.
        steps: Its steps.
    """

    acts_in_validation = True

    def __init__(self, passes: Passes, pipeline: Any, steps: list[Step]) -> None:
        spec = pipeline.element_spec
        self._ahead = ReadAhead(
            passes,
            spec,
            savable=True,
            shuffles=reshuffling(steps),
            skip_ends=False,
            once=False,
            keep=False,
        )
        names = [step.name for step in steps]
        super().__init__(
            pipeline, self._ahead, spec, False, names, seeds(steps), sizes=sizes(steps)
        )

    def end_epoch(self) -> None:
        """End a validation."""
        self._ahead.end_pass()

    def get_state(self) -> dict[str, Any]:
        """Return what determines the order of the next validation, and of all later ones."""
        return {**super().get_state(), _DATA: super().fingerprint()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state, unless it is that of other validation data, which may change."""
        if state.get(_DATA) == super().fingerprint():
            super().set_state(state)
        else:
            log.info(
                "`validation_data` is not what it was when the checkpoint was saved, so its "
                "shuffled order begins anew."
            )

    def fingerprint(self) -> dict[str, Any]:
        """Return the kind only: ranks may validate on data of their own."""
        return {"source": super().fingerprint()["source"]}
