"""An MPIJob, whose operator provides ssh between pods and a list of hosts; mpirun is not used.

The launcher's Job ignores exit codes, so `distrib run` in the launcher restarts the ranks itself
and ends when the job has ended. The workers run sshd. When Kubernetes stops a worker, sshd gets
SIGTERM and would kill the ranks before they save, so `distrib k8s leave` runs first, as a preStop
hook.
"""

from __future__ import annotations

from ..hosts.protocol import TOKEN_VARIABLE
from .pod import (
    MPIJOB_LABEL,
    Object,
    kubernetes_options,
    pod_template,
    rank_options,
    training_container,
)
from .settings import GRACE_MARGIN_SECONDS, MAX_FAILURES, Settings

SSH_FOLDER = "/home/mpiuser/.ssh"
SSH_PORT = 2222
HOSTFILE = "/etc/mpi/hostfile"
LAUNCHER_REQUESTS = {"cpu": "500m", "memory": "1Gi"}


def mpi_job_spec(settings: Settings) -> Object:
    """Return the spec of an MPIJob."""
    return {
        "slotsPerWorker": settings.slots,
        "sshAuthMountPath": SSH_FOLDER,
        "launcherCreationPolicy": "WaitForWorkersReady",
        "runPolicy": {
            "cleanPodPolicy": "Running",
            "backoffLimit": MAX_FAILURES,
            "activeDeadlineSeconds": settings.deadline,
        },
        "mpiReplicaSpecs": {
            "Launcher": {
                "replicas": 1,
                "restartPolicy": "Never",
                "template": _template(settings, _launcher(settings)),
            },
            "Worker": {
                "replicas": settings.parallelism,
                "restartPolicy": "Never",
                "template": _template(settings, _worker(settings)),
            },
        },
    }


def _template(settings: Settings, container: Object) -> Object:
    template = pod_template(settings, container, MPIJOB_LABEL)
    del template["spec"]["restartPolicy"]  # The replica's field sets it.
    return template


def _launcher(settings: Settings) -> Object:
    names = ["HOME", "TMPDIR", "CHECKPOINT_DIR", *settings.environment]
    command = [
        *("distrib", "run", f"--hostfile={HOSTFILE}", "--num-proc=$(RANKS)"),
        *rank_options(settings),
        *(f"--ssh-port={SSH_PORT}", f"--ssh-identity={SSH_FOLDER}/id_rsa"),
        *(f"--env={name}" for name in names),
        *kubernetes_options(settings),
    ]
    container = training_container(settings, command, [*settings.script], "launcher")
    limits = {"memory": LAUNCHER_REQUESTS["memory"]}
    container["resources"] = {"requests": LAUNCHER_REQUESTS, "limits": limits}
    return _without_join_variables(container)


def _worker(settings: Settings) -> Object:
    # The image's own configuration of sshd requires root.
    options = ["PidFile=none", f"HostKey={SSH_FOLDER}/id_rsa", "StrictModes=no", "UsePAM=no"]
    options.append(f"AuthorizedKeysFile={SSH_FOLDER}/authorized_keys")
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", str(SSH_PORT)]
    container = training_container(
        settings, [*command, *(f"-o{option}" for option in options)], [], "worker"
    )
    container["readinessProbe"] = {"tcpSocket": {"port": SSH_PORT}, "periodSeconds": 2}
    seconds = settings.grace - GRACE_MARGIN_SECONDS
    leave = ["distrib", "k8s", "leave", f"--seconds={seconds}"]
    container["lifecycle"] = {"preStop": {"exec": {"command": leave}}}
    del container["startupProbe"], container["livenessProbe"]
    return _without_join_variables(container)


def _without_join_variables(container: Object) -> Object:
    """Remove the variables that only `--join` needs."""
    unneeded = {"JOB_NAME", TOKEN_VARIABLE}
    container["env"] = [entry for entry in container["env"] if entry["name"] not in unneeded]
    return container
