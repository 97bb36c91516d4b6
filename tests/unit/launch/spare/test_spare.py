"""A spare and its rank agent, with a small library in place of TensorFlow."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from distrib.launch.hosts.channel import FrameParser
from distrib.launch.hosts.network import script_command
from distrib.launch.hosts.rank_agent import SPARE_FOLDER, SPARE_VARIABLE
from distrib.launch.spare import sitecustomize

LIBRARY = """
import os
import json.tool
loaded_by = os.getpid()
level = os.environ.get("LIBRARY_LEVEL")
os.environ.setdefault("SET_BY_LIBRARY", "1")
with open(os.environ["IMPORTS"], "a") as file:
    file.write(f"{__name__}\\n")
"""
# What a script may look at. Of `sys.modules`, a spare shows more of the standard library.
FACTS = """
import faulthandler, json, os, signal, sys, threading, traceback
def facts():
    import __main__
    standard = {*sys.stdlib_module_names, "__main__", "__mp_main__", "sitecustomize"}
    variables = {n: v for n, v in os.environ.items() if n != "DISTRIB_HEARTBEAT"}
    return {
        "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "flags": list(sys.flags),
        "main": sorted(vars(__main__)), "file": __main__.__file__, "name": __name__,
        "spec": __main__.__spec__ and __main__.__spec__.name,
        "modules": sorted({n for n in sys.modules if "." not in n} - standard),
        "finders": [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path],
        "variables": variables, "directory": os.getcwd(), "stack": len(traceback.extract_stack()),
        "streams": [(s.line_buffering, s.write_through, s.encoding, s.errors, s.isatty())
                    for s in (sys.stdin, sys.stdout, sys.stderr)],
        "threads": threading.active_count(), "faulthandler": faulthandler.is_enabled(),
        "session": os.getsid(0) == os.getpid(), "warnings": sys.warnoptions,
        "signals": [str(signal.getsignal(number)) for number in range(1, 32)],
        "score": open("/proc/self/oom_score_adj").read(),
        "files": len(os.listdir("/proc/self/fd")), "docs": __main__.__doc__,
        "command": open("/proc/self/cmdline").read(),
    }
"""


class Agent:
    """A rank agent, as the launcher sees it."""

    def __init__(self, folder: Path, command: Sequence[str], **spec: Any) -> None:
        self.spec = {
            "command": [sys.executable, *command],
            "directory": str(folder),
            "environment": {"PYTHONPATH": str(folder), "IMPORTS": str(folder / "imports")},
            "terminals": {},
            "lease": None,
        } | spec
        self._imports = folder / "imports"
        self.process = subprocess.Popen(
            script_command("rank_agent.py"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._parser = FrameParser()
        self.output = {1: b"", 2: b""}
        self.heartbeats: list[Mapping[str, Any]] = []

    def send(self, spec: Mapping[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(spec).encode() + b"\n")
        self.process.stdin.flush()

    def prepare(self, **variables: str) -> "Agent":
        """Start a spare, and wait until it has imported."""
        self.send({**self.spec, "spare": {"modules": {"library": []}, "variables": variables}})
        while not self._imports.exists():
            assert self.process.poll() is None
            time.sleep(0.01)
        return self

    def start(self, **variables: str) -> "Agent":
        """Start the rank, from the spare if there is one."""
        self.send({**self.spec, "environment": {**self.spec["environment"], **variables}})
        return self

    def pids(self) -> list[int]:
        """Return the process id of the rank or spare."""
        pid = self.process.pid
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def end(self) -> int | None:
        """Read everything, and return the exit code."""
        assert self.process.stdout
        while data := os.read(self.process.stdout.fileno(), 65536):
            output, heartbeats = self._parser.feed(data)
            self.heartbeats += heartbeats
            for stream, content in output:
                self.output[stream] += content
        self.process.wait()
        return self._parser.exit_code

    def result(self) -> Any:
        """Return what the script has printed last, in JSON."""
        assert self.end() == 0, self.output[2].decode()
        return json.loads(self.output[1].splitlines()[-1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "library.py").write_text(LIBRARY)
    (tmp_path / "facts.py").write_text(FACTS)
    (tmp_path / "work").mkdir()
    return tmp_path


def agent(folder: Path, script: str, *arguments: str, **spec: Any) -> Agent:
    (folder / "train.py").write_text(script)
    return Agent(folder, ["train.py", *arguments], **spec)


def wait_for_the_end_of(pid: int) -> None:
    """Return when a process does not exist, or is a zombie."""
    status = Path(f"/proc/{pid}/stat")
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)


def imports(folder: Path) -> int:
    return (folder / "imports").read_text().count("library")


SHOW = """"A script."
import json, facts
before = facts.facts()
import library
print(json.dumps([before, facts.facts()]))
"""


@pytest.mark.parametrize("command", [["train.py", "--epochs", "3"], ["-m", "train", "-x"]])
@pytest.mark.parametrize("terminals", [{}, {1: (24, 80), 2: (24, 80)}])
def test_the_script_sees_what_it_sees_in_an_interpreter_of_its_own(
    folder: Path, command: list[str], terminals: Any
) -> None:
    (folder / "train.py").write_text(SHOW)
    environment = {
        **{"PYTHONPATH": str(folder), "IMPORTS": str(folder / "imports")},
        **{"PYTHONFAULTHANDLER": "1", "PYTHONWARNINGS": "ignore::UserWarning"},
    }
    spec = {"terminals": terminals, "environment": environment, "directory": str(folder / "work")}
    if command[0] == "train.py":
        command = [str(folder / "train.py"), *command[1:]]
    fresh = Agent(folder, command, **spec).start(HOROVOD_RANK="1").result()
    (folder / "imports").unlink()
    spare = Agent(folder, command, **spec).prepare().start(HOROVOD_RANK="1").result()
    assert imports(folder) == 1
    assert spare[0].pop("finders")[1:] == fresh[0].pop("finders")
    # It has imported distrib itself, which the first import of a library shows.
    brought_along = set(spare[1].pop("modules")) - set(fresh[1].pop("modules"))
    assert brought_along <= {"distrib", "numpy"}
    for own, other in zip(spare, fresh, strict=True):
        assert {n: (own[n], other[n]) for n in own if own[n] != other[n]} == {}


def test_a_spare_waits_and_is_used(folder: Path) -> None:
    script = "import os; open('ran', 'w').close(); import library; print(library.loaded_by)"
    spare = agent(folder, script).prepare()
    (pid,) = spare.pids()
    assert not (folder / "ran").exists()
    assert spare.start().result() == pid
    assert imports(folder) == 1


def test_a_script_that_has_changed_is_read_afresh(folder: Path) -> None:
    spare = agent(folder, "print(1)").prepare()
    (folder / "train.py").write_text("print(2)")
    assert spare.start().result() == 2


LEVEL = """
import os
print("begins", flush=True)
os.environ["LIBRARY_LEVEL"] = "3"
import library
print(library.level)
"""


def test_a_variable_that_the_script_sets_before_the_import(folder: Path) -> None:
    spare = agent(folder, LEVEL).prepare().start()
    assert spare.result() == 3
    assert imports(folder) == 2
    assert spare.output[1] == b"begins\nbegins\n3\n"
    assert spare.heartbeats == [
        {
            "phase": "outside",
            "misfit": "its script has set LIBRARY_LEVEL otherwise than before",
            "variables": {"LIBRARY_LEVEL": "3"},
        }
    ]
    (folder / "imports").unlink()
    spare = agent(folder, LEVEL).prepare(LIBRARY_LEVEL="3").start()
    assert spare.result() == 3
    assert (imports(folder), spare.heartbeats) == (1, [])


def test_an_exported_variable_that_the_script_sets(folder: Path) -> None:
    """Also one that the spec of the rank has, as on hosts that are reached by ssh."""
    environment = {"PYTHONPATH": str(folder), "IMPORTS": str(folder / "imports")}
    spare = agent(folder, LEVEL, environment={**environment, "LIBRARY_LEVEL": "1"}).prepare()
    assert spare.start(HOROVOD_RANK="1").result() == 3
    assert spare.heartbeats[0]["variables"] == {"LIBRARY_LEVEL": "3"}


def test_many_variables_that_the_script_sets(folder: Path) -> None:
    script = (
        "import os; os.environ.update({f'V{n}': 'x' * 20000 for n in range(9)}); import library"
    )
    spare = agent(folder, f"{script}; print(1)").prepare().start()
    assert spare.result() == 1
    assert spare.heartbeats == [
        {
            "phase": "outside",
            "misfit": "its script has set V0, V1, V2, V3, V4 and 4 more otherwise than before",
            "variables": None,
        }
    ]


def test_a_forked_process_does_not_begin_again(folder: Path) -> None:
    script = """
import os
if os.fork() == 0:
    os.environ["LIBRARY_LEVEL"] = "3"
    import library
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    spare = agent(folder, script).prepare().start()
    assert (spare.result(), spare.heartbeats) == (0, [])


def test_a_script_that_asks_where_a_module_is(folder: Path) -> None:
    find = "[importlib.util.find_spec(name).origin for name in ('library', 'package')]"
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    spare = agent(folder, f"import importlib.util, json; print(json.dumps({find}))")
    modules: dict[str, list[str]] = {"package": [], "library": []}
    spare.send({**spare.spec, "spare": {"modules": modules, "variables": {}}})
    places = [str(folder / name) for name in ("library.py", "package/__init__.py")]
    assert spare.start().result() == places


def test_a_script_that_changes_its_directory_before_the_import(folder: Path) -> None:
    spare = agent(folder, f"import os; os.chdir('work')\n{LEVEL}").prepare().start()
    assert spare.result() == 3


@pytest.mark.parametrize("script", ["import package.part", "import package; import other"])
def test_a_variable_that_the_script_sets_before_a_part_of_a_package(
    folder: Path, script: str
) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "part.py").write_text(f"import other{LIBRARY}")
    (folder / "other.py").write_text("")
    first = "import os, sys, package; print(int('package.part' in sys.modules), flush=True)"
    spare = agent(folder, f"{first}\nos.environ['LIBRARY_LEVEL'] = '3'\n{script}\nprint(2)")
    modules = {"package": [], "package.part": ["package"]}
    spare.send({**spare.spec, "spare": {"modules": modules, "variables": {}}})
    assert spare.start().result() == 2
    assert spare.output[1].splitlines()[0] == b"0"
    assert spare.heartbeats[0]["variables"] == {"LIBRARY_LEVEL": "3"}


def test_nothing_is_held_when_the_script_has_imported_all(folder: Path) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("import package.part")
    (folder / "package" / "part.py").write_text("")
    finders = "[type(finder).__name__ for finder in sys.meta_path]"
    spare = agent(folder, f"import json, package, sys; print(json.dumps({finders}))")
    # The second brings nothing along, so no import of the script would ask for it.
    modules = {"package": [], "package.part": ["package"]}
    spare.send({**spare.spec, "spare": {"modules": modules, "variables": {}}})
    assert "HeldModules" not in spare.start().result()


@pytest.mark.parametrize("first", ["light", "part"])
def test_a_variable_that_the_script_sets_between_two_imports(folder: Path, first: str) -> None:
    (folder / "light.py").write_text("")
    (folder / "part.py").write_text("")
    (folder / "library.py").write_text(f"import light, part{LIBRARY}")
    script = f"import os, {first}; os.environ['LIBRARY_LEVEL'] = '3'; import library"
    spare = agent(folder, f"{script}; print(library.level)")
    modules = {"light": [], "library": ["light"]}
    spare.send({**spare.spec, "spare": {"modules": modules, "variables": {}}})
    assert spare.start().result() == 3
    assert spare.heartbeats[0]["variables"] == {"LIBRARY_LEVEL": "3"}


def test_an_import_shows_what_it_includes(folder: Path) -> None:
    (folder / "light.py").write_text("")
    (folder / "other.py").write_text("")
    (folder / "library.py").write_text(f"import light{LIBRARY}")
    script = "import sys, json, library; names = ['light', 'library', 'other']; "
    spare = agent(folder, f"{script}print(json.dumps([n in sys.modules for n in names]))")
    modules = {"light": [], "other": [], "library": ["light"]}
    spare.send({**spare.spec, "spare": {"modules": modules, "variables": {}}})
    assert spare.start().result() == [True, True, False]
    assert imports(folder) == 1


def test_a_variable_that_the_script_sets_after_the_import(folder: Path) -> None:
    script = "import os, library; os.environ['LIBRARY_LEVEL'] = '3'; print(library.level or 0)"
    spare = agent(folder, script).prepare(LIBRARY_LEVEL="3").start()
    assert spare.result() == 0
    assert spare.heartbeats[0]["variables"] == {}


@pytest.mark.parametrize("name", ["library", "json"])
def test_another_module_of_the_same_name(folder: Path, name: str) -> None:
    (folder / "work" / f"{name}.py").write_text("level = 5")
    (folder / "work" / "train.py").write_text("import library; print(library.level or 0)")
    spare = Agent(folder, ["work/train.py"]).prepare().start()
    assert spare.end() == (0 if name == "library" else 1)  # The library needs `json.tool`.
    assert spare.heartbeats[0]["misfit"] == f"its script finds another module {name}"
    assert spare.heartbeats[0]["variables"] is None


def test_a_traceback_is_the_same(folder: Path) -> None:
    script = "import library\ndef f(): raise ValueError('bug')\nf()\n"
    fresh, spare = agent(folder, script).start(), agent(folder, script)
    assert fresh.end() == spare.prepare().start().end() == 1
    assert b"bug" in fresh.output[2]
    assert spare.output == fresh.output


def test_signals_reach_a_rank_that_was_a_spare(folder: Path) -> None:
    spare = agent(folder, "import time; time.sleep(600)").prepare().start()
    assert spare.process.stdin
    spare.process.stdin.write(b"%d\n" % signal.SIGTERM)
    spare.process.stdin.flush()
    assert spare.end() == 143


def test_a_terminal_that_has_another_size_meanwhile(folder: Path) -> None:
    script = "import library, os; print(list(os.get_terminal_size()))"
    spare = agent(folder, script, terminals={1: (24, 80)}).prepare()
    spare.spec["terminals"] = {1: (33, 99)}
    assert spare.start().result() == [99, 33]
    assert imports(folder) == 1


@pytest.mark.parametrize("how", ["end of input", "agent killed", "spare killed"])
def test_no_spare_is_left(folder: Path, how: str) -> None:
    spare = agent(folder, "print(1)").prepare()
    (pid,) = spare.pids()
    if how == "end of input":
        assert spare.process.stdin
        spare.process.stdin.close()
    else:
        os.kill(spare.process.pid if how == "agent killed" else pid, signal.SIGKILL)
    assert spare.end() is None
    assert spare.output[1] == b""
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)


def test_a_spare_ends_without_keepalives(folder: Path) -> None:
    spare = agent(folder, "print(1)", lease=0.5)
    spare.send({**spare.spec, "spare": {"modules": {"library": []}, "variables": {}}})
    assert spare.end() is None


def test_a_spare_that_cannot_import_ends(folder: Path) -> None:
    (folder / "library.py").write_text("open('imports', 'w'); raise RuntimeError('no')")
    spare = agent(folder, "print(1)").prepare()
    assert spare.end() is None
    # Nor does the agent's own exit code say that a rank has failed.
    assert spare.process.returncode == 0


def test_a_spare_that_fails_when_it_becomes_the_rank(folder: Path) -> None:
    breaks = "raise RuntimeError('no')"
    finder = f"import sys\nclass Finder:\n    def find_spec(*_): {breaks}\n"
    (folder / "library.py").write_text(f"{LIBRARY}{finder}sys.meta_path.insert(0, Finder())")
    spare = agent(folder, "print(1)").prepare().start()
    assert spare.result() == 1
    assert b"RuntimeError: no" in spare.output[2]


def test_a_rank_that_cannot_be_started_in_place_of_its_spare(folder: Path) -> None:
    work = folder / "work"
    spare = agent(folder, "print(1)", directory=str(work))
    spare.spec["command"][1] = str(folder / "train.py")
    spare.prepare()
    work.rmdir()
    assert spare.start().end() is None
    assert spare.process.returncode == 64


def test_a_spare_that_cannot_import_when_it_is_needed(folder: Path) -> None:
    (folder / "library.py").write_text("import time; time.sleep(1); raise RuntimeError('no')")
    spare = agent(folder, "print(1)")
    spare.send({**spare.spec, "spare": {"modules": {"library": []}, "variables": {}}})
    assert spare.start().result() == 1


@pytest.mark.parametrize("leaves_group", [False, True])
def test_a_spare_that_leaves_a_child(folder: Path, leaves_group: bool) -> None:
    """It has the spare's end of the agent's socket open, too."""
    leave = "os.setsid(); " if leaves_group else ""
    (folder / "library.py").write_text(f"""
import os, time
if os.fork() == 0:
    {leave}open("child", "w").write(f"{{os.getpid()}}")
    time.sleep(20)
    open("survived", "w")
    os._exit(0)
time.sleep(1)
os._exit(1)
""")
    spare = agent(folder, "print(1)")
    spare.send({**spare.spec, "spare": {"modules": {"library": []}, "variables": {}}})
    assert spare.start().result() == 1
    child = int((folder / "child").read_text())
    if leaves_group:
        os.kill(child, signal.SIGKILL)
    else:
        wait_for_the_end_of(child)
    assert not (folder / "survived").exists()


def test_a_spare_that_is_killed_while_it_is_needed(folder: Path) -> None:
    (folder / "library.py").write_text("import time; time.sleep(600)")
    spare = agent(folder, "print(1)")
    spare.send({**spare.spec, "spare": {"modules": {"library": []}, "variables": {}}})
    spare.start()
    assert spare.process.stdin
    spare.process.stdin.write(b"%d\n" % signal.SIGTERM)
    spare.process.stdin.flush()
    assert spare.end() == 143


def test_names_that_the_agent_cannot_import() -> None:
    assert sitecustomize.VARIABLE == SPARE_VARIABLE
    assert Path(SPARE_FOLDER) == Path(sitecustomize.__file__).parent
