"""Imports what a rank will import, and waits until one is needed.

Nothing but modules is loaded: TensorFlow's runtime starts, and a GPU is touched, when the script
asks for it. The variables of the environment are those that the rank will see, except those that
the launcher gives each rank of an attempt, which no library reads at its import.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from . import memory
from .held_modules import Environment, HeldModules, Imported

CHECK_SECONDS = 10.0


def stand_by(spare: Mapping[str, Any], loaded: frozenset[str]) -> None:
    """Import, wait, and return as the rank that is needed; end the process if none will be.

    Args:
        spare: `fd`, a socket by which the rank's own environment variables come; `directory`, the
            rank's, `None` for the present one; `modules` in the order of their imports, each with
            those before it that it imports as well; `variables` that the script sets before
            them, `None` for one that it removes.
        loaded: Names of the modules that every interpreter has loaded at its start.
    """
    agent = socket.socket(fileno=spare["fd"])
    agent.set_inheritable(False)
    if memory.free_share() < memory.SHARE_TO_START:
        os._exit(0)
    score = memory.become_first_victim()
    inherited = dict(os.environ)
    for name, value in spare["variables"].items():
        _set(name, value)
    assumed = dict(os.environ)
    imported = []
    for name, includes in spare["modules"].items():
        imported.append(_import(name, includes, loaded))
        loaded = frozenset(sys.modules)
    for name in {*os.environ, *inherited}:
        _set(name, inherited.get(name))
    own = _wait(agent)
    memory.restore_score(score)
    os.environ.update(own)
    if spare["directory"] is not None:
        os.chdir(spare["directory"])  # It may have been replaced meanwhile.
    environment = Environment(inherited, assumed, dict(os.environ), frozenset(own))
    sys.meta_path.insert(0, HeldModules(imported, environment))
    # Not before all of that has succeeded: else the rank agent starts an interpreter instead.
    agent.sendall(b"1")
    agent.close()


def _import(name: str, includes: Sequence[str], loaded: frozenset[str]) -> Imported:
    before = dict(os.environ)
    import_module(name)
    added = {each: module for each, module in sys.modules.items() if each not in loaded}
    package = name.partition(".")[0]
    tops = {
        each: module
        for each, module in added.items()
        if "." not in each
        or (each.startswith(f"{package}.") and each.rpartition(".")[0] not in added)
    }
    variables = {each: value for each, value in os.environ.items() if before.get(each) != value}
    return Imported(name, includes, tops, variables)


def _wait(agent: socket.socket) -> dict[str, str]:
    """Return the environment variables of the rank that is needed."""
    data = b""
    while not data.endswith(b"\n"):
        if not select.select([agent], [], [], CHECK_SECONDS)[0]:
            if memory.free_share() < memory.SHARE_TO_STAY:
                os._exit(0)
            continue
        more = agent.recv(1 << 16)
        if not more:  # The rank agent has ended.
            os._exit(0)
        data += more
    return dict(json.loads(data))


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    elif os.environ.get(name) != value:
        os.environ[name] = value
