"""An Indexed Job of Kubernetes, emulated: its pods are real processes (`kubelet.py`).

This module decides when they start and end, from the manifests and from these facts, which were
measured on Kubernetes 1.36 or read in the source of its Job controller (S):

- Every index without a pod gets one, at the start without delay. A pod that has ended is replaced
  after 10 s, twice as long each time, at most 10 min. Ignored failures lengthen the delay like
  others (S). `scale` shortens this delay here, and nothing else.
- `podReplacementPolicy: Failed`: an index never has two pods, as far as the API knows.
- The first rule of `podFailurePolicy` that applies to a failed pod decides: by a condition of the
  pod or by its exit code. Without one the failure counts, and `backoffLimitPerIndex` of them are
  forgiven each index; with one more than `maxFailedIndexes` such indexes the Job fails.
- An eviction gives the pod the condition DisruptionTarget and its first process SIGTERM; after
  `terminationGracePeriodSeconds` all its processes get SIGKILL. `kubectl delete pod` does the same
  without the condition. The kernel ignores SIGTERM to a first process that does not handle it.
- A first process that is killed for memory ends with 137 and ends all other processes.
- A Job that fails, or whose `successPolicy` is met, deletes the other pods, whose exit codes
  change nothing.
- The pod of a lost node runs on, cut off, and is not replaced until the Node object is deleted.

`activeDeadlineSeconds` is ignored.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kubelet import Kubelet, Pod

MIN_DELAY, MAX_DELAY = 10.0, 600.0
POLL_SECONDS = 0.02


class IndexedJob:
    """A Job in a cluster of its own. It advances while a test waits in `until`.

    Args:
        stack: Ends all processes.
        folder: Empty; for volumes and logs.
        objects: Manifests: a Job and its ConfigMap.
        image: Environment that the container's image sets.
        scale: Factor of the delays before pods are replaced.
        disk: Where pods' own volumes are. Defaults to `folder`.

    Attributes:
        pods: The newest of each index.
        codes: Exit codes of each index's pods that have ended; `None` if unknown.
        failed: Failures that count, by index.
        ignored: The others.
        condition: `Complete` or `Failed`; `None` before.
        reason: Why.
    """

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        objects: Sequence[Mapping[str, Any]],
        image: Mapping[str, str],
        scale: float,
        disk: Path | None = None,
    ) -> None:
        self._kubelet = Kubelet(stack, folder, objects, image, disk)
        self._scale = scale
        self._spec = self._kubelet.job["spec"]
        self._grace = self._spec["template"]["spec"]["terminationGracePeriodSeconds"]
        assert self._spec["completionMode"] == "Indexed"
        assert self._spec["podReplacementPolicy"] == "Failed"
        self._not_before: dict[int, float] = {}
        self.pods: dict[int, Pod] = {}
        self.codes: dict[int, list[int | None]] = {n: [] for n in range(self._spec["completions"])}
        self.failed: Counter[int] = Counter()
        self.ignored: Counter[int] = Counter()
        self.condition: str | None = None
        self.reason = ""

    @property
    def switch(self) -> int:
        """The process whose network the pods are connected by."""
        return self._kubelet.switch

    # Events

    def evict(self, *indexes: int) -> None:
        """Evict pods, as `kubectl drain` does."""
        for index in indexes:
            self.pods[index].disrupted = True
            self._delete(self.pods[index])

    def delete(self, index: int) -> None:
        """Delete a pod, as `kubectl delete pod` does."""
        self._delete(self.pods[index])

    def lose_node(self, index: int) -> None:
        """Cut a pod's node off, for so long that the pod is evicted."""
        pod = self.pods[index]
        pod.cut()
        pod.reachable, pod.disrupted = False, True

    def delete_node(self, index: int) -> Pod:
        """Delete the Node object of a lost node; return its pod, which runs on there."""
        pod = self.pods[index]
        assert not pod.reachable
        self._end(pod, None)
        return pod

    def find_node(self, pod: Pod) -> None:
        """Reconnect a node whose Node object was deleted: its kubelet ends the pod."""
        pod.mend()
        pod.reachable = True
        self._delete(pod)

    # Time

    def until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Advance the Job until a condition holds, or fail the test."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds:g} s in vain:\n{self.describe()}"
            self.step()
            time.sleep(POLL_SECONDS)

    def finish(self, seconds: float = 180) -> None:
        """Advance the Job until it and all its pods have ended."""
        self.until(lambda: self.condition and all(pod.ended for pod in self.pods.values()), seconds)

    def describe(self) -> str:
        """Return state, exit codes and logs, for messages."""
        pods = self._kubelet.started
        logs = "\n".join(f"--- {pod.folder.name}\n{pod.log[-3000:]}" for pod in pods)
        return f"{self.condition} {self.reason}, exit codes {self.codes}\n{logs}"

    def step(self) -> None:
        """Do what is due now."""
        for pod in self._kubelet.started:
            if pod.kill_at is not None and time.monotonic() > pod.kill_at:
                pod.send(signal.SIGKILL)
            if pod.reachable and not pod.ended and pod.exit_code is not None:
                self._end(pod, pod.exit_code)
        if self.condition is None:
            for index in self.codes:
                self._replace(index)

    def _replace(self, index: int) -> None:
        old = self.pods.get(index)
        if old is None or (
            old.ended
            and 0 not in self.codes[index]
            and time.monotonic() >= self._not_before[index]
            and self.failed[index] <= self._spec["backoffLimitPerIndex"]
        ):
            self.pods[index] = self._kubelet.start(index)

    def _end(self, pod: Pod, code: int | None) -> None:
        index = pod.index
        pod.ended = True
        self.codes[index].append(code)
        self._kubelet.publish_names()
        if self.condition is not None:
            return
        if code == 0:
            self._succeed()
            return
        action = self._action(pod, code)
        if action == "Ignore":
            self.ignored[index] += 1
        else:
            self.failed[index] += 1
        if action == "FailJob":
            self._conclude("Failed", f"PodFailurePolicy: pod {index} ended with {code}")
        limit = self._spec["backoffLimitPerIndex"]
        beyond = [index for index, count in self.failed.items() if count > limit]
        if len(beyond) > self._spec["maxFailedIndexes"]:
            self._conclude("Failed", "MaxFailedIndexesExceeded")
        failures = self.failed[index] + self.ignored[index]
        delay = min(MIN_DELAY * 2 ** (failures - 1), MAX_DELAY)
        self._not_before[index] = time.monotonic() + delay * self._scale

    def _succeed(self) -> None:
        succeeded = {index for index, codes in self.codes.items() if 0 in codes}
        rules = self._spec.get("successPolicy", {"rules": []})["rules"]
        enough = [{int(index) for index in rule["succeededIndexes"].split(",")} for rule in rules]
        if any(indexes <= succeeded for indexes in [*enough, set(self.codes)]):
            self._conclude("Complete", "")

    def _action(self, pod: Pod, code: int | None) -> str:
        for rule in self._spec["podFailurePolicy"]["rules"]:
            if "onExitCodes" in rule:
                assert rule["onExitCodes"]["operator"] == "In"
                applies = code in rule["onExitCodes"]["values"]
            else:
                assert [each["type"] for each in rule["onPodConditions"]] == ["DisruptionTarget"]
                applies = pod.disrupted
            if applies:
                return str(rule["action"])
        return "Count"

    def _conclude(self, condition: str, reason: str) -> None:
        if self.condition is None:
            self.condition, self.reason = condition, reason
            for pod in self.pods.values():
                self._delete(pod)

    def _delete(self, pod: Pod) -> None:
        if pod.kill_at is None and pod.reachable:
            pod.send(signal.SIGTERM)
            pod.kill_at = time.monotonic() + self._grace


@contextmanager
def indexed_job(
    folder: Path,
    objects: Sequence[Mapping[str, Any]],
    image: Mapping[str, str],
    scale: float = 0.05,
    disk: Path | None = None,
) -> Iterator[IndexedJob]:
    """Run a Job, and kill its processes at the end. See `IndexedJob`."""
    with ExitStack() as stack:
        yield IndexedJob(stack, folder, objects, image, scale, disk)
