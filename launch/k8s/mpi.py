"""An MPIJob, of which distrib takes the ssh between pods and the list of hosts, and not mpirun.

The launcher's Job knows no exit codes, so what starts the ranks has to know them: `distrib run`
restarts the ranks by itself and ends when the job has. The workers run sshd. When one of them is to
go, that gets the SIGTERM and the ranks would be killed without a word; so `distrib k8s leave` runs
before it.
"""

from __future__ import annotations

from ..hosts.protocol import TOKEN_VARIABLE
from .pod import MPIJOB_LABEL, Object, pod_template, training_container
from .settings import MARGIN_SECONDS, Settings

SSH_FOLDER = "/home/mpiuser/.ssh"
SSH_PORT = 2222
HOSTFILE = "/etc/mpi/hostfile"
LAUNCHER_RESTARTS = 6
LAUNCHER = {"cpu": "500m", "memory": "1Gi"}


def mpi_job(settings: Settings) -> Object:
    """Return what follows an MPIJob's head."""
    return {
        "spec": {
            "slotsPerWorker": settings.slots,
            "sshAuthMountPath": SSH_FOLDER,
            "launcherCreationPolicy": "WaitForWorkersReady",
            "runPolicy": {
                "cleanPodPolicy": "Running",
                "backoffLimit": LAUNCHER_RESTARTS,
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
    }


def _template(settings: Settings, container: Object) -> Object:
    template = pod_template(settings, container, MPIJOB_LABEL)
    del template["spec"]["restartPolicy"]  # The replica's own is meant to be used.
    return template


def _launcher(settings: Settings) -> Object:
    names = ["HOME", "TMPDIR", "CHECKPOINT_DIR", *settings.environment]
    options = ["--num-proc=$(RANKS)"]
    if settings.min_replicas is not None:
        options.append(f"--min-np={settings.min_replicas * settings.slots}")
    if settings.backend != "horovod":
        options.append(f"--backend={settings.backend}")
    command = [
        *("distrib", "run", f"--hostfile={HOSTFILE}", *options),
        *(f"--ssh-port={SSH_PORT}", f"--ssh-identity={SSH_FOLDER}/id_rsa"),
        *(f"--env={name}" for name in names),
        *(f"--join-timeout={settings.join_timeout}", "--heartbeat-file=/tmp/heartbeat"),
    ]
    container = training_container(settings, command, [*settings.script], "launcher")
    container["resources"] = {"requests": LAUNCHER, "limits": {"memory": LAUNCHER["memory"]}}
    return _without_token(container)


def _worker(settings: Settings) -> Object:
    # What the image's own configuration says is not for a user who is not root.
    options = ["PidFile=none", f"HostKey={SSH_FOLDER}/id_rsa", "StrictModes=no", "UsePAM=no"]
    options.append(f"AuthorizedKeysFile={SSH_FOLDER}/authorized_keys")
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", str(SSH_PORT)]
    container = training_container(
        settings, [*command, *(f"-o{option}" for option in options)], [], "worker"
    )
    container["readinessProbe"] = {"tcpSocket": {"port": SSH_PORT}, "periodSeconds": 2}
    seconds = settings.grace - MARGIN_SECONDS
    leave = ["distrib", "k8s", "leave", f"--seconds={seconds}"]
    container["lifecycle"] = {"preStop": {"exec": {"command": leave}}}
    del container["startupProbe"], container["livenessProbe"]
    return _without_token(container)


def _without_token(container: Object) -> Object:
    """Leave out what only pods that meet at the first one need."""
    unneeded = {"JOB_NAME", TOKEN_VARIABLE}
    container["env"] = [entry for entry in container["env"] if entry["name"] not in unneeded]
    return container
