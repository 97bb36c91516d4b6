"""`k8s/Dockerfile`, built by podman for CPUs and for GPUs, and then trained in.

No registry of images is asked: the base images are made here, of Debian's packages. Those that
stand for NVIDIA's have the user of Ubuntu's image, and no CUDA toolkit: the command that builds
Horovod downloads a compiler, as it does on any machine without one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.exhaustive

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "k8s" / "Dockerfile"
BASES = set(re.findall(r"^FROM (\S+:\S+)", DOCKERFILE.read_text(), re.MULTILINE))
DEBIAN = "debian:bookworm-slim"
# What pip needs to reach its index from inside a build, as this machine does.
PIP_CONF = Path("/etc/pip.conf")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# Not in their own place, where Debian's package `ca-certificates` writes during the build.
SHOWN_CERTIFICATES = "/etc/host-certificates.crt"
TRAIN = "HOME=/tmp distrib run -np 2 examples/digits.py --run /tmp/digits --epochs 1"
GPU_BUILT = "import horovod.tensorflow as hvd; assert hvd.nccl_built()"
MINUTES = 40


def run(*command: str, **options: object) -> str:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60 * MINUTES,
        **options,
    )
    assert done.returncode == 0, done.stdout[-20000:]
    return done.stdout


class Podman:
    """Builds images in a folder of its own, without privileges that a container lacks."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self._places = [f"--root={folder / 'store'}", f"--runroot={folder / 'run'}"]
        # Where `RUN --mount=type=cache` keeps its folders.
        self._environment = {**os.environ, "TMPDIR": str(cache)}
        self._volumes = []
        if CERTIFICATES.exists():
            self._volumes.append(f"--volume={CERTIFICATES}:{SHOWN_CERTIFICATES}:ro")
        if PIP_CONF.exists():
            shown = folder / "pip.conf"
            shown.write_text(PIP_CONF.read_text().replace(str(CERTIFICATES), SHOWN_CERTIFICATES))
            self._volumes.append(f"--volume={shown}:{PIP_CONF}:ro")

    def __call__(self, *words: str, text: str | None = None) -> str:
        return run("podman", *self._places, *words, env=self._environment, input=text)

    def build(self, tag: str, file: str | Path, *options: str, text: str | None = None) -> str:
        """Build an image, or fail with the builder's output."""
        return self(
            # Without privileges of its own, /etc/hosts has the name of this machine alone.
            *("build", "--isolation=chroot", "--network=host", "--uts=host"),
            *("--pull=never", f"--tag={tag}"),
            *self._volumes,
            # Podman 4 does not see which stages are used when an argument names them.
            *("--skip-unused-stages=false", *options, f"--file={file}", str(ROOT)),
            text=text,
        )

    def run_in(self, image: str, *commands: str) -> str:
        """Run shell commands in an image as the user that it names."""
        lines = [f"FROM {image}", *(f"RUN {command}" for command in commands)]
        return self.build("tried", "-", text="\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    missing = [name for name in ("podman", "debootstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root, podman and debootstrap; missing: {missing}")
    folder, cache = tmp_path_factory.mktemp("image"), ROOT / ".cache" / "image"
    cache.mkdir(parents=True, exist_ok=True)
    podman = Podman(folder, cache)
    run("debootstrap", "--variant=minbase", "bookworm", str(folder / "root"))
    run("tar", f"--directory={folder / 'root'}", "--create", f"--file={folder / 'root.tar'}", ".")
    podman("import", str(folder / "root.tar"), f"docker.io/library/{DEBIAN}")
    for base in BASES - {DEBIAN}:
        podman.build(
            f"docker.io/{base}", "-", text=f"FROM {DEBIAN}\nRUN useradd --create-home ubuntu\n"
        )
    yield podman
    podman("rmi", "--all", "--force")
    shutil.rmtree(folder)  # Pytest keeps folders, and these hold gigabytes.


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def image(podman: Podman, request: pytest.FixtureRequest) -> str:
    """An image that every line of the Dockerfile has made, the other device's base included."""
    podman.build(request.param, DOCKERFILE, f"--build-arg=DEVICE={request.param}")
    return str(request.param)


def test_two_ranks_train_as_the_user_of_the_image(podman: Podman, image: str) -> None:
    said = podman.run_in(image, "id -u", TRAIN)
    assert re.search(r"^1000$", said, re.MULTILINE), said
    assert "val_accuracy" in said


def test_only_the_image_for_gpus_has_nccl(podman: Podman, image: str) -> None:
    is_gpu = image == "gpu"
    podman.run_in(image, f"{'' if is_gpu else '! '}python -c '{GPU_BUILT}'")


def test_the_command_of_the_image_runs(podman: Podman, image: str) -> None:
    command = json.loads(podman("image", "inspect", "--format={{json .Config.Cmd}}", image))
    assert "usage" in podman.run_in(image, " ".join(command))
