"""Faults in a Job's own spec: when it replaces pods, and when it fails.

An API server refuses some of them, but only when the manifests are applied. It accepts the others,
and then the job restarts when it should not, or fails when it should restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distrib.errors import EXIT_PREEMPTED, NON_RETRYABLE, RETRYABLE

from .settings import MAX_HOST_NAME

Object = Mapping[str, Any]

ACTIONS = ("FailJob", "FailIndex", "Ignore", "Count")


def find_problems(job: Object, pod: Object, name: str) -> Iterator[str]:
    """Yield the faults of a Job.

    Args:
        job: Its spec; empty if there is none.
        pod: The spec of its pods.
        name: Its name; empty if it is unknown.
    """
    if not job:
        return
    yield from _size(job, name)
    yield from _retries(job)
    policy = job.get("podFailurePolicy")
    if policy is None:
        yield (
            "no podFailurePolicy: an evicted pod would count as failed, and a pod with a wrong "
            "configuration would be retried."
        )
        return
    if pod.get("restartPolicy") != "Never":
        yield (
            f"restartPolicy {pod.get('restartPolicy')!r}: must be Never with a podFailurePolicy."
        )
    if job.get("podReplacementPolicy", "Failed") != "Failed":
        yield "podReplacementPolicy: must be Failed with a podFailurePolicy."
    rules = policy.get("rules") or ()
    for number, rule in enumerate(rules):
        for line in _rule(rule, job):
            yield f"podFailurePolicy rule {number}: {line}"
    yield from _exit_codes(rules, restarts_pods="backoffLimitPerIndex" in job)


def _size(job: Object, name: str) -> Iterator[str]:
    parallelism, completions = job.get("parallelism", 1), job.get("completions")
    if job.get("completionMode") != "Indexed":
        yield "completionMode must be Indexed, or pods have no stable names."
    if completions != parallelism:
        yield (
            f"completions {completions} and parallelism {parallelism} differ: all ranks train "
            "together, so all pods must run at once."
        )
    host = f"{name}-{(completions or 1) - 1}"
    if len(host) > MAX_HOST_NAME:
        yield f"the last pod's host name {host} is longer than {MAX_HOST_NAME} characters."


def _retries(job: Object) -> Iterator[str]:
    per_index, max_failed = job.get("backoffLimitPerIndex"), job.get("maxFailedIndexes")
    if per_index is not None and job.get("completionMode") != "Indexed":
        yield "backoffLimitPerIndex requires completionMode: Indexed."
    if max_failed is not None and per_index is None:
        yield "maxFailedIndexes requires backoffLimitPerIndex."
    if per_index is not None and max_failed != 0:
        yield "maxFailedIndexes must be 0: without one of its pods the job only waits."
    if not job.get("activeDeadlineSeconds"):
        yield (
            f"no activeDeadlineSeconds: a pod that always exits with {EXIT_PREEMPTED} would "
            "restart forever."
        )


def _rule(rule: Object, job: Object) -> Iterator[str]:
    action, codes = rule.get("action"), rule.get("onExitCodes")
    if action not in ACTIONS:
        yield f"action {action!r} does not exist, only {', '.join(ACTIONS)}."
    if action == "FailIndex" and "backoffLimitPerIndex" not in job:
        yield "FailIndex requires backoffLimitPerIndex."
    if (codes is None) == (not rule.get("onPodConditions")):
        yield "must have one of onExitCodes and onPodConditions."
    if codes is None:
        return
    values = list(codes.get("values") or ())
    if codes.get("operator") not in ("In", "NotIn"):
        yield f"operator {codes.get('operator')!r} does not exist, only In and NotIn."
    if not values or values != sorted(set(values)):
        yield f"exit codes {values} must be sorted and unique."
    if codes.get("operator") == "In" and 0 in values:
        yield "exit code 0 is not a failure."


def _exit_codes(rules: Sequence[Object], restarts_pods: bool) -> Iterator[str]:
    """Yield the exit codes whose first matching rule has the wrong action.

    Args:
        rules: Of the policy.
        restarts_pods: Whether the Job replaces pods. A JobSet's Job does not: it fails with its
            first pod, and the JobSet decides what follows.
    """
    for code in NON_RETRYABLE:
        if _action(rules, code) != "FailJob":
            yield f"exit code {code} is not retryable: the action must be FailJob."
    retry = "Ignore" if restarts_pods else "FailJob"
    for code in RETRYABLE:
        if _action(rules, code) != retry:
            yield f"exit code {code} is retryable: the action must be {retry}."
    by_condition = [rule for rule in rules if rule.get("onPodConditions")]
    if not by_condition or by_condition[0] is not rules[0]:
        yield (
            f"the first rule must be {retry} on the condition DisruptionTarget: an evicted pod "
            "may end with any exit code."
        )


def _action(rules: Sequence[Object], code: int) -> str | None:
    for rule in rules:
        codes = rule.get("onExitCodes")
        if codes and (code in (codes.get("values") or ())) == (codes.get("operator") == "In"):
            return rule.get("action")
    return None
