"""Hands the modules of a spare to its script when the script imports them.

Until then `sys.modules` does not show them, so a script that looks there, or sets variables that a
library reads at its import, finds what it finds in an interpreter of its own. At the import two
things are compared: the environment, and where the modules are found. If the script's own import
would have differed, the process begins again as an ordinary interpreter.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

HEARTBEAT_VARIABLE = "DISTRIB_HEARTBEAT"
_OF_DISTRIB = "DISTRIB_"


@dataclass(frozen=True)
class Imported:
    """What one import of the spare has brought along that was not there before.

    Attributes:
        name: Of the module that was imported.
        includes: Names of those before it that it imports as well.
        roots: The modules without a dot in their name.
        variables: Environment variables that the libraries have set.
    """

    name: str
    includes: Sequence[str]
    roots: dict[str, ModuleType]
    variables: dict[str, str]


@dataclass(frozen=True)
class Environment:
    """The environment variables of a spare.

    What libraries set is added to the first two when the script imports them.

    Attributes:
        inherited: With which its interpreter was started.
        assumed: With which it has imported.
        of_rank: With which the interpreter of the rank would be started.
        own: Names of those that the launcher gives the rank.
    """

    inherited: dict[str, str]
    assumed: dict[str, str]
    of_rank: dict[str, str]
    own: frozenset[str]

    def changed(self) -> dict[str, str | None]:
        """Return the variables that differ from `inherited`, `None` for one that was removed."""
        return self._difference(self.inherited)

    def surprises(self) -> list[str]:
        """Return the names of the variables that differ from `assumed`."""
        return sorted(self._difference(self.assumed))

    def _difference(self, before: dict[str, str]) -> dict[str, str | None]:
        return {
            name: os.environ.get(name)
            for name in {*before, *os.environ} - self.own
            if before.get(name) != os.environ.get(name) and not name.startswith(_OF_DISTRIB)
        }


class HeldModules(MetaPathFinder, Loader):
    """Finds and "loads" modules that are loaded already.

    A script may import numpy, then set a variable, and then import Keras. So what numpy's import
    has brought along is released by an import of numpy, and the rest is held until later.

    Args:
        imported: In the order in which the spare has imported them.
        environment: Of the spare.
    """

    def __init__(self, imported: Sequence[Imported], environment: Environment) -> None:
        self._environment = environment
        self._held: dict[str, Imported] = {}
        self._places: dict[str, str | None] = {}
        self._spec: ModuleSpec | None = None
        owned = {each.name for each in imported}
        roots = {name: module for each in imported for name, module in each.roots.items()}
        for each in imported:
            own = {
                name: module
                for name, module in roots.items()
                if (name == each.name if name in owned else name in each.roots)
                and name not in sys.stdlib_module_names
            }
            self._held[each.name] = replace(each, roots=own)
        self._places = {name: self._find(name) for name in roots}
        for name in roots.keys() - sys.stdlib_module_names:
            del sys.modules[name]

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if self._owner(fullname) is None:
            return None
        names = self._environment.surprises()
        if names:
            reason = f"its script has set {', '.join(names)} otherwise than before"
            self._begin_again(reason, self._environment.changed())
        others = [name for name, place in self._places.items() if self._find(name) != place]
        if others:
            self._begin_again(f"its script finds another module {others[0]}", None)
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See `importlib.abc.Loader`."""
        owner = self._owner(spec.name)
        assert owner is not None
        module = owner.roots[spec.name]
        self._spec = module.__spec__  # The import system replaces it.
        return module

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`."""
        assert module.__spec__ is not None
        name, module.__spec__ = module.__spec__.name, self._spec
        owner = self._owner(name)
        assert owner is not None
        if name == owner.name or owner.name not in owner.roots:
            for each in (*owner.includes, owner.name):
                self._release(each)
        else:  # Such as h5py alone: Keras, which has imported it, is not released.
            rest = {owner.name: owner.roots.pop(owner.name)}
            sys.modules.update(owner.roots)
            self._held[owner.name] = replace(owner, roots=rest)

    def _owner(self, name: str) -> Imported | None:
        """Return the import that holds a module."""
        return next((each for each in self._held.values() if name in each.roots), None)

    def _release(self, name: str) -> None:
        """Show the modules of an import, and the variables that it has set."""
        each = self._held.pop(name, None)
        if each is not None:
            sys.modules.update(each.roots)
            os.environ.update(each.variables)
            self._environment.inherited.update(each.variables)
            self._environment.assumed.update(each.variables)
        if not self._held:
            sys.meta_path.remove(self)

    def _find(self, name: str) -> str | None:
        """Return where a module is found."""
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, None)
            if spec is not None:
                return spec.origin
        return None

    def _begin_again(self, reason: str, variables: Mapping[str, str | None] | None) -> None:
        """Replace this process by an ordinary interpreter that runs the same command.

        Args:
            reason: For the user.
            variables: With which a spare would have fit; `None` if none would.
        """
        environment = self._environment.of_rank
        fd = int(environment[HEARTBEAT_VARIABLE].partition(":")[0])
        os.set_inheritable(fd, True)  # The import of `distrib.heartbeat` made it the opposite.
        facts = {"phase": "outside", "misfit": reason, "variables": variables}
        os.write(fd, json.dumps(facts).encode() + b"\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, sys.orig_argv, environment)
