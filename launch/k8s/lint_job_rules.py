"""What no schema finds in a Job's own rules: when its pods are made anew, and when it has failed.

An API server refuses some of this, but only once there is one to ask. The rest it takes, and the
job is restarted when it should not be, or the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distrib.errors import NON_RETRYABLE, RETRYABLE

Object = Mapping[str, Any]

ACTIONS = ("FailJob", "FailIndex", "Ignore", "Count")
LONGEST_NAME = 63


def problems(job: Object, pod: Object, name: str) -> Iterator[str]:
    """Yield what is wrong with a Job.

    Args:
        job: Its spec; empty if there is none.
        pod: The spec of its pods.
        name: Its name; empty if that is not known.
    """
    if not job:
        return
    yield from _size(job, name)
    yield from _retries(job)
    policy = job.get("podFailurePolicy")
    if policy is None:
        yield (
            "there is no podFailurePolicy, so a pod that was evicted counts as failed, and one "
            "whose configuration is wrong is started again."
        )
        return
    if pod.get("restartPolicy") != "Never":
        yield f"restartPolicy {pod.get('restartPolicy')!r}: with a podFailurePolicy it is Never."
    if job.get("podReplacementPolicy", "Failed") != "Failed":
        yield "podReplacementPolicy: with a podFailurePolicy it is Failed."
    rules = policy.get("rules") or ()
    for number, rule in enumerate(rules):
        for line in _rule(rule, job):
            yield f"podFailurePolicy rule {number}: {line}"
    yield from _meaning(rules, restarts_pods="backoffLimitPerIndex" in job)


def _size(job: Object, name: str) -> Iterator[str]:
    parallelism, completions = job.get("parallelism", 1), job.get("completions")
    if job.get("completionMode") != "Indexed":
        yield "completionMode must be Indexed, or the pods have no names."
    if completions != parallelism:
        yield (
            f"completions {completions} and parallelism {parallelism} differ: all ranks train "
            "together, so all pods must run at once."
        )
    host = f"{name}-{(completions or 1) - 1}"
    if len(host) > LONGEST_NAME:
        yield f"the last pod would be the host {host}, which is longer than {LONGEST_NAME} letters."


def _retries(job: Object) -> Iterator[str]:
    per_index, most = job.get("backoffLimitPerIndex"), job.get("maxFailedIndexes")
    if per_index is not None and job.get("completionMode") != "Indexed":
        yield "backoffLimitPerIndex goes with completionMode: Indexed."
    if most is not None and per_index is None:
        yield "maxFailedIndexes goes with backoffLimitPerIndex."
    if per_index is not None and most != 0:
        yield (
            "maxFailedIndexes must be 0: without one of its pods the job can only wait for its "
            "deadline."
        )
    if not job.get("activeDeadlineSeconds"):
        yield "there is no activeDeadlineSeconds: a pod that always exits 75 restarts for ever."


def _rule(rule: Object, job: Object) -> Iterator[str]:
    action, codes = rule.get("action"), rule.get("onExitCodes")
    if action not in ACTIONS:
        yield f"there is no action {action!r}, only {', '.join(ACTIONS)}."
    if action == "FailIndex" and "backoffLimitPerIndex" not in job:
        yield "FailIndex goes with backoffLimitPerIndex."
    if (codes is None) == (not rule.get("onPodConditions")):
        yield "it must have one of onExitCodes and onPodConditions."
    if codes is None:
        return
    values = list(codes.get("values") or ())
    if codes.get("operator") not in ("In", "NotIn"):
        yield f"there is no operator {codes.get('operator')!r}, only In and NotIn."
    if not values or values != sorted(set(values)):
        yield f"the exit codes {values} must be in order, each once."
    if codes.get("operator") == "In" and 0 in values:
        yield "exit code 0 is no failure."


def _meaning(rules: Sequence[Object], restarts_pods: bool) -> Iterator[str]:
    """Yield where the first rule that applies does not do what an exit code asks for.

    Args:
        rules: Of the policy.
        restarts_pods: Whether the Job makes new pods. One that does not, as a JobSet's, ends with
            the first of them, and what follows is decided outside.
    """
    for code in NON_RETRYABLE:
        if _action(rules, code) != "FailJob":
            yield f"exit code {code} is for a person: it must be FailJob, or the job repeats it."
    again = "Ignore" if restarts_pods else "FailJob"
    for code in RETRYABLE:
        if _action(rules, code) != again:
            yield f"exit code {code} means that the pod goes on when started again: it is {again}."
    by_condition = [rule for rule in rules if rule.get("onPodConditions")]
    if not by_condition or by_condition[0] is not rules[0]:
        yield (
            f"the first rule must be {again} on the condition DisruptionTarget: a pod that was "
            "evicted may end with any exit code."
        )


def _action(rules: Sequence[Object], code: int) -> str | None:
    for rule in rules:
        codes = rule.get("onExitCodes")
        if codes and (code in (codes.get("values") or ())) == (codes.get("operator") == "In"):
            return rule.get("action")
    return None
