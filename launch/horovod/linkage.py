"""What a built wheel takes from other libraries when it is loaded."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

from distrib.errors import ConfigurationError

# Of the CUDA runtime; names of its driver's functions begin with "cu" alone.
RUNTIME_FUNCTION = re.compile(r"\b(?:__)?cuda[A-Z]\w*")


def check_linkage(wheel: Path, scratch: Path) -> None:
    """Check that a wheel for GPUs holds all functions of the CUDA runtime that it calls.

    Those that it did not hold would come from TensorFlow's copy, of whatever version, and one
    process must not use streams and kernels by half in one copy and by half in another.

    Args:
        wheel: Path of the wheel.
        scratch: Folder for temporary files.

    Raises:
        ConfigurationError: If the wheel does not hold one of them, or cannot be read.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if Path(name).name.startswith("mpi_lib")]
        libraries = [archive.extract(name, scratch / "unpacked") for name in names]
    for library in libraries:
        command = ["nm", "-D", "--undefined-only", library]
        listed = subprocess.run(command, capture_output=True, text=True)
        if listed.returncode != 0:
            raise ConfigurationError(
                f"nm cannot read {Path(library).name}, which was built: {listed.stderr.strip()}. "
                "Install the nm of the linker's version (Debian: binutils), and build again."
            )
        missing = sorted(set(RUNTIME_FUNCTION.findall(listed.stdout)))
        if missing:
            raise ConfigurationError(
                f"{Path(library).name} was linked without the CUDA runtime, and would take "
                f"{', '.join(missing[:3])} from TensorFlow's. Unset LDFLAGS and CXXFLAGS, and "
                "build again."
            )
