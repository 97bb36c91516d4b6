"""The installed packages against the versions that distrib needs, without importing them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from .finding import OK, PROBLEM, Finding

# Extras that are for users; `dev` is for developers, `horovod` is what Horovod's build needs.
EXTRAS = ("s3", "gcs", "plots", "tensorboard", "parquet", "arrayrecord", "k8s")
Version = Callable[[str], str]


def check_packages(version: Version = metadata.version) -> Iterator[Finding]:
    """Check Python and the packages that distrib requires or, if they are there, can use.

    Args:
        version: Returns the version of an installed package, or raises `PackageNotFoundError`.
            Defaults to that of this environment.
    """
    yield _check_python()
    requirements = [Requirement(text) for text in metadata.requires("distrib") or ()]
    required = [each for each in requirements if _is_in(each, "")]
    findings = [_check(each, "", version) for each in required]
    yield from (each for each in findings if each.level != OK)
    yield Finding(OK, "packages", ", ".join(each.text for each in findings if each.level == OK))
    there, missing = [], []
    for extra in EXTRAS:
        for requirement in requirements:
            if _is_in(requirement, extra) and not _is_in(requirement, ""):
                finding = _check(requirement, extra, version)
                if finding.level == OK:
                    there.append(finding.text)
                elif finding.text.endswith("is not installed"):
                    missing.append(extra)
                else:
                    yield finding
    without = f"; not installed: {', '.join(missing)}" if missing else ""
    yield Finding(OK, "extras", f"{', '.join(there) or 'none'}{without}")


def installed_version(name: str) -> str | None:
    """Return the version of an installed package, `None` if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _check_python() -> Finding:
    needed = SpecifierSet(metadata.metadata("distrib")["Requires-Python"])
    found = platform.python_version()
    if needed.contains(found, prereleases=True):
        return Finding(OK, "Python", found)
    return Finding(PROBLEM, "Python", f"{found}; distrib needs {needed}", "install another Python")


def _is_in(requirement: Requirement, extra: str) -> bool:
    """Tell whether distrib needs a package here, with an extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _check(requirement: Requirement, extra: str, version: Version) -> Finding:
    name = requirement.name
    what = f"distrib[{extra}]" if extra else "distrib"
    remedy = f"pip install '{what}' '{name}{requirement.specifier}'"
    try:
        found = version(name)
    except metadata.PackageNotFoundError:
        return Finding(PROBLEM, name, f"{name} is not installed", remedy)
    if not requirement.specifier.contains(found, prereleases=True):
        text = f"{name} {found} is installed; {what} needs {requirement.specifier}"
        return Finding(PROBLEM, name, text, remedy)
    return Finding(OK, name, f"{name} {found}")
