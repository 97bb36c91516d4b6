from distrib.launch.hosts.host_pool import wait_for_hosts
from distrib.launch.process.launcher_context import LauncherContext
from distrib.launch.process.liveness_file import LivenessFile
from distrib.launch.process.signals import Signals


def test_hosts_that_come_one_after_the_other_are_not_a_message_each() -> None:
    logged: list[str] = []
    context = LauncherContext(logged.append, LivenessFile(None), Signals())
    missing = iter([*(f"{n} of 1000 ranks have a place" for n in range(1000)), None])
    assert wait_for_hosts(lambda: next(missing), context, 60.0, 0.0) is None
    assert logged == ["waiting for hosts, 60 s at most: 0 of 1000 ranks have a place"]
