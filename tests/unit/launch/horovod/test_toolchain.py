import sys
import tomllib
from pathlib import Path

import gpu_parts
import pytest

from distrib.errors import ConfigurationError
from distrib.launch.horovod.recipe import recipe_for
from distrib.launch.horovod.toolchain import MODULES, find_tools
from distrib.launch.horovod.wheel import cached_wheel


def test_missing_modules_are_named_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigurationError, match=r"python\S* -m pip install pyyaml"):
        cached_wheel(recipe_for({}), tmp_path)


def test_the_extra_lists_the_build_requirements() -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    extra = {line.partition(">")[0] for line in project["optional-dependencies"]["horovod"]}
    assert {*MODULES.values(), "cmake"} <= extra


def test_only_a_build_for_gpus_needs_nm(tmp_path: Path) -> None:
    for name in ("c++", "make", "cmake"):
        gpu_parts.write(tmp_path / name, "", 0o755)
    environment = {"PATH": str(tmp_path)}
    find_tools(environment)
    with pytest.raises(ConfigurationError, match="apt-get install binutils"):
        find_tools(environment, for_gpu=True)
