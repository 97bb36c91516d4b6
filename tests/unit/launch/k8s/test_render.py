"""Options that `distrib k8s render` refuses, and its messages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from distrib.errors import UsageError
from distrib.launch.cli import main
from distrib.launch.k8s.settings import parse_quantity

Refusal = Callable[..., str]
STORE = "--checkpoint-dir=s3://bucket/runs/17"


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Returns the message for options that cannot work."""

    def call(*options: str, name: str = "digits", script: tuple[str, ...] = ("train.py",)) -> str:
        code = main(["k8s", "render", f"--name={name}", "--image=i", *options, "--", *script])
        said = capsys.readouterr()
        assert (code, said.out) == (64, "")
        return said.err

    return call


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--grace=60"], ["--grace 60", "a pod needs 95 s", "--grace 95"]),
        (["--grace=200", "--save-time=100"], ["--grace 200", "--save-time 100", "--grace 235"]),
        (["--completions=4"], ["--completions 4", "--parallelism 2", "--replicas"]),
        (["--parallelism=4"], ["--completions 2", "--parallelism 4"]),
        (["--min-replicas=3"], ["--min-replicas 3", "2 replicas"]),
        (["--gpus=4", "--slots=8"], ["--slots 8", "--gpus 4", "each GPU has one rank"]),
        (["--shm=4Gi"], ["--shm 4Gi", "--memory 4Gi"]),
        (["--memory=4 GB"], ["--memory 4 GB", "16Gi"]),
        (["--deadline=400"], ["--deadline 400", "900 s"]),
        (["--priority-class=high"], ["--priority-class high", "--queue"]),
        (["--storage=1Gi"], ["--storage 1Gi", "--pvc"]),
        (["--env=HOME=/root"], ["--env HOME", "already set"]),
        (["--env=RANKS=3"], ["--env RANKS", "--replicas and --slots"]),
        (["--env=A"], ["--env A", "NAME=VALUE"]),
        (["--env=1A=2"], ["--env 1A", "not a valid variable name"]),
    ],
)
def test_refused_options(options: list[str], words: list[str], refusal: Refusal) -> None:
    said = refusal(STORE, *options)
    for word in words:
        assert word in said


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadWriteOncePod"])
def test_a_single_node_volume_is_for_one_pod(mode: str, refusal: Refusal) -> None:
    options = ("--pvc=disk", f"--access-mode={mode}", "--checkpoint-dir=/runs/17")
    assert "ReadWriteMany" in refusal(*options)
    command = ["k8s", "render", "--name=digits", "--image=i", *options, "--replicas=1", "train.py"]
    assert main(command) == 0


def test_checkpoints_must_outlive_the_pod(refusal: Refusal) -> None:
    assert "lost with the pod" in refusal("--checkpoint-dir=/tmp/run")
    assert "lost with the pod" in refusal("--checkpoint-dir=memory://run")
    assert "is mounted at /runs" in refusal("--checkpoint-dir=/data/run", "--pvc=disk")
    assert "is mounted at /runs" in refusal("--checkpoint-dir=file:///data/run", "--pvc=disk")


@pytest.mark.parametrize("name", ["Digits", "digits.17", "17", "digits-"])
def test_the_name_must_be_valid_in_host_names(name: str, refusal: Refusal) -> None:
    assert "lowercase letters" in refusal(STORE, name=name)


@pytest.mark.parametrize(
    ("variant", "longest"), [("job", 61), ("jobset", 48), ("trainjob", 48), ("mpijob", 54)]
)
def test_the_last_pods_host_name_must_fit(variant: str, longest: int, refusal: Refusal) -> None:
    said = refusal(STORE, f"--variant={variant}", name="a" * (longest + 1))
    assert "shorten the name by 1." in said
    fits = ["k8s", "render", f"--name={'a' * longest}", "--image=i", f"--variant={variant}", STORE]
    assert main([*fits, "train.py"]) == 0


def test_a_script_is_required(refusal: Refusal) -> None:
    assert "no script given" in refusal(STORE, script=())


def test_without_pyyaml_the_error_names_the_extra() -> None:
    code = (
        "import sys\nsys.modules['yaml'] = None\nfrom distrib.launch.cli import main\n"
        f"sys.exit(main(['k8s', 'render', '--name=a', '--image=i', '{STORE}', 'train.py']))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 78
    assert "distrib[k8s]" in done.stderr


def test_quantities() -> None:
    texts = ["2", "500m", "1.5", "1k", "1Ki", "16Gi", "2T"]
    expected = [2, 0.5, 1.5, 1000, 1024, 16 * 2**30, 2e12]
    assert [parse_quantity("--cpu", text) for text in texts] == expected
    for text in ("", "4GB", "-1", "1e3x", "four"):
        with pytest.raises(UsageError, match="--cpu"):
            parse_quantity("--cpu", text)
