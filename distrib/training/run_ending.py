"""Whether the run that a `fit` finds in its directory is over, and what would continue it.

A run that is over stays so when a new process starts the same script: the script goes on behind
`fit` with the trained model. Within one process a second `fit` on the directory is meant to train,
as a fold of a cross-validation or in a notebook, so it is refused unless its goal is farther.
"""

from __future__ import annotations

from dataclasses import dataclass

from distrib.cluster import current
from distrib.errors import ConfigurationError
from distrib.log import log
from distrib.state.run_checkpoint import RunCheckpoint
from distrib.state.training_goal import TrainingGoal
from distrib.storage.location import Location

# The goals of this process's last `fit` on each directory, as far as they have returned.
_reached: dict[str, TrainingGoal] = {}


@dataclass(frozen=True)
class RunEnding:
    """What a `fit` does with the run that it has found; the same on all ranks.

    Attributes:
        over: Whether nothing is left to do.
        why_continued: Why a run that a callback has stopped goes on.
    """

    over: bool
    why_continued: str | None = None


def ending_of(checkpoint: RunCheckpoint, goal: TrainingGoal, directory: Location) -> RunEnding:
    """Decide whether a run is over. All ranks call it together.

    Args:
        checkpoint: The run's newest.
        goal: Of the `fit`.
        directory: Of the run.

    Raises:
        ConfigurationError: If it is, and this process has brought it there itself.
    """
    position, reached = checkpoint.position, checkpoint.goal
    # In the middle of an epoch the validation is still missing.
    stopped = position.stop and not position.train_done
    why = goal.why_farther(reached) if stopped and reached is not None else None
    over = position.epoch >= goal.epochs or (stopped and why is None)
    refused = over and _is_repeated(directory, goal, reached)
    # The chief decides: other ranks may have callbacks with other arguments.
    over, why, refused = current().collectives.broadcast((over, why, refused))
    if refused:
        raise ConfigurationError(
            f"This process has already finished a `fit` with BackupAndRestore({str(directory)!r}), "
            "and this one would not train but end with the same weights. Give each fold, trial or "
            f"phase its own directory, such as {str(directory / 'fold-2')!r}. To prolong the run "
            f"pass more `epochs` than {position.epoch}. With `delete_checkpoint=True` every `fit` "
            "trains anew, as in Keras."
        )
    return RunEnding(over, None if over else why)


def note_end(directory: Location, goal: TrainingGoal) -> None:
    """Take note that a `fit` of this process has returned.

    Args:
        directory: Of the run, which keeps its checkpoints.
        goal: Of the `fit`.
    """
    _reached[str(directory)] = goal


def tell(ending: RunEnding, checkpoint: RunCheckpoint, goal: TrainingGoal) -> None:
    """Say why nothing is left to do and what would continue the run, or why it goes on.

    Args:
        ending: From `ending_of`.
        checkpoint: The run's newest.
        goal: Of the `fit`.
    """
    epoch, reached = checkpoint.position.epoch, checkpoint.goal
    if ending.why_continued is not None:
        log.info(f"the run was stopped after epoch {epoch}, and goes on: {ending.why_continued}.")
    elif ending.over and epoch >= goal.epochs:
        log.info(
            f"training has finished ({epoch} epochs, step {checkpoint.position.step}). To go on "
            f"pass more `epochs` than {epoch}."
        )
    elif ending.over and reached is not None:
        causes = " or ".join(cause.name for cause in reached.causes) or "a callback"
        log.info(
            f"training was stopped after epoch {epoch} by {causes}; nothing is left to do. To go "
            f"on from there pass more `epochs` than {reached.epochs}, a greater `patience`, or a "
            "list without the callback."
        )
    elif ending.over:  # An old version has not saved what stopped it.
        log.info(
            f"training was stopped by a callback after epoch {epoch}; nothing is left to do. To "
            "train on with these weights give a new run its own directory, and "
            f"`initialize_from={checkpoint.place!r}`."
        )


def _is_repeated(directory: Location, goal: TrainingGoal, reached: TrainingGoal | None) -> bool:
    """Tell whether a `fit` is meant to train a run that this process has finished already.

    A script that prolongs its run in a second `fit` finds both over when it is started again. Then
    the goal is farther than that of the first, or the very one that the run was saved with.
    """
    earlier = _reached.get(str(directory))
    if earlier is None or goal.epochs > earlier.epochs:
        return False
    return goal.is_same(earlier) or reached is None or not goal.is_same(reached)
