"""Hands the modules of a spare to its script when the script imports them.

Until then `sys.modules` does not show them, so a script that looks there, or sets variables that a
library reads at its import, finds what it finds in an interpreter of its own. At the import two
things are compared: the environment, and where the modules are found. If the script's own import
would have differed, the process begins again as an ordinary interpreter.

For example: the spare has imported `tensorflow`, which has brought along `h5py` and `keras`, and
then `keras`. Each of these three is the top of its package: without it in `sys.modules`, no module
of the package can be imported unseen. The import of `keras` holds its own top, although it came
along earlier; the import of `tensorflow` holds the other two. A script that imports Keras gets all
three, because Keras includes TensorFlow. One that imports h5py alone gets h5py and what else came
along with TensorFlow, but not `tensorflow`: it may still set a variable and import that.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

HEARTBEAT_VARIABLE = "DISTRIB_HEARTBEAT"
MAX_NAMES = 5  # Of variables in one message.
_OF_DISTRIB = "DISTRIB_"


@dataclass(frozen=True)
class Imported:
    """What one import of the spare has brought along that was not there before.

    Attributes:
        name: Of the module that was imported.
        includes: Names of those before it that it imports as well.
        tops: The modules without a dot in their name, and those below a package of an earlier
            import, such as `distrib.callbacks` below `distrib`.
        variables: Environment variables that the libraries have set.
    """

    name: str
    includes: Sequence[str]
    tops: dict[str, ModuleType]
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
        self._pid, self._directory = os.getpid(), os.getcwd()
        owners = {name: each.name for each in imported for name in each.tops}
        owners.update((each.name, each.name) for each in imported)
        tops = {name: module for each in imported for name, module in each.tops.items()}
        for each in imported:
            own = {
                name: module
                for name, module in tops.items()
                if owners[name] == each.name and name not in sys.stdlib_module_names
            }
            if own:
                self._held[each.name] = replace(each, tops=own)
        self._places = {name: self._find(name) for name in tops if "." not in name}
        for name in tops.keys() - sys.stdlib_module_names:
            sys.modules.pop(name, None)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        owner = self._owner(fullname)
        if owner is None:
            return None
        if os.getpid() == self._pid:  # A forked process could not begin again.
            self._compare()
        spec, own = ModuleSpec(fullname, self), owner.tops[fullname].__spec__
        if own is not None:  # For a script that asks where the module is.
            spec.origin = own.origin
            spec.submodule_search_locations = own.submodule_search_locations
        return spec

    def _compare(self) -> None:
        """Begin again if the script's own import would differ."""
        names = self._environment.surprises()
        if names:
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            shown = ", ".join(names[:MAX_NAMES]) + more
            reason = f"its script has set {shown} otherwise than before"
            self._begin_again(reason, self._environment.changed())
        others = [name for name, place in self._places.items() if self._find(name) != place]
        if others:
            self._begin_again(f"its script finds another module {others[0]}", None)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See `importlib.abc.Loader`."""
        owner = self._owner(spec.name)
        assert owner is not None
        module = owner.tops[spec.name]
        self._spec = module.__spec__  # The import system replaces it.
        return module

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`."""
        assert module.__spec__ is not None
        name, module.__spec__ = module.__spec__.name, self._spec
        owner = self._owner(name)
        assert owner is not None
        if name == owner.name or owner.name not in owner.tops:
            for each in (*owner.includes, owner.name):
                self._release(each)
        else:  # Such as h5py alone: TensorFlow, which has imported it, is not released.
            rest = {owner.name: owner.tops.pop(owner.name)}
            sys.modules.update(owner.tops)
            self._held[owner.name] = replace(owner, tops=rest)

    def _owner(self, name: str) -> Imported | None:
        """Return the import that holds a module."""
        return next((each for each in self._held.values() if name in each.tops), None)

    def _release(self, name: str) -> None:
        """Show the modules of an import, and the variables that it has set."""
        each = self._held.pop(name, None)
        if each is not None:
            sys.modules.update(each.tops)
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

        Variables that do not fit into one heartbeat are not reported: later spares do not fit.

        Args:
            reason: For the user.
            variables: With which a spare would have fit; `None` if none would.
        """
        environment = self._environment.of_rank
        fd = int(environment[HEARTBEAT_VARIABLE].partition(":")[0])
        os.set_inheritable(fd, True)  # The import of `distrib.heartbeat` made it the opposite.
        facts = {"phase": "outside", "misfit": reason, "variables": variables}
        line = json.dumps(facts).encode() + b"\n"
        if len(line) > select.PIPE_BUF:
            line = json.dumps({**facts, "variables": None}).encode() + b"\n"
        os.write(fd, line)
        sys.stdout.flush()
        sys.stderr.flush()
        os.chdir(self._directory)  # The command names its script from there.
        os.execve(sys.executable, sys.orig_argv, environment)
