from importlib import metadata

from distrib.launch.doctor.finding import OK, PROBLEM
from distrib.launch.doctor.packages import check_packages


def found(**versions: str | None) -> list[tuple[str, str, str]]:
    """Findings that are no `ok`, in an environment with other versions; `None` for not there."""

    def version(name: str) -> str:
        other = versions.get(name.replace("-", "_"), "")
        if other is None:
            raise metadata.PackageNotFoundError(name)
        return other or metadata.version(name)

    return [(f.subject, f.text, f.remedy) for f in check_packages(version) if f.level == PROBLEM]


def test_this_environment() -> None:
    findings = list(check_packages())
    assert {finding.level for finding in findings} == {OK}
    assert [finding.subject for finding in findings] == ["Python", "packages", "extras"]


def test_a_package_that_is_too_old() -> None:
    ((subject, text, remedy),) = found(tensorflow="2.10.1")
    assert subject == "tensorflow"
    assert text.startswith("tensorflow 2.10.1 is installed; distrib needs ")
    assert remedy.startswith("pip install 'distrib' 'tensorflow")


def test_a_package_that_is_missing() -> None:
    assert [text for _, text, _ in found(orbax_checkpoint=None)] == [
        "orbax-checkpoint is not installed"
    ]


def test_an_extra_may_be_missing_and_must_not_be_too_old() -> None:
    assert found(s3fs=None, gcsfs=None) == []
    ((_, text, remedy),) = found(s3fs="2020.1")
    assert text.startswith("s3fs 2020.1 is installed; distrib[s3] needs ")
    assert "'distrib[s3]'" in remedy
