"""Builds native_cpu/ once per machine with the compiler found on PATH, into the user's cache directory.

The file name is a digest of sources, compiler, flags, CPU and OpenMP runtime, so that a changed machine or release
builds anew. A build goes to a private name and is renamed into place, so that concurrent processes are safe.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401  torch's own OpenMP runtime must be loaded before it can be found

log = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("native_cpu")
_COMPILERS = ("g++", "c++", "cc", "clang++")
# No -ffast-math: NaN and infinity must stay what they are, and the order of additions is part of the contract.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC")
_BUILD_SECONDS_MAX = 120


class BuildFailed(Exception):
    """There is no compiler, or it refused; the message says which and why."""


def cache_folder() -> Path:
    """Return the folder of built kernels: ``$XDG_CACHE_HOME/octavo/kernels`` or ``~/.cache/octavo/kernels``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "octavo" / "kernels"


def openmp_runtime() -> Path | None:
    """Return the GNU OpenMP library that torch has loaded into this process, or None.

    A second runtime would bring a second pool of threads that fights torch's for the cores.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    for line in maps.read_text().splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith("libgomp") and path.exists():
            return path
    return None


def _cpu_flags() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()}"


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        raise BuildFailed(f"{command[0]} failed with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def build(folder: Path | None = None, sources: Path = SOURCES) -> Path:
    """Return the path of the library built from ``sources``, compiling it (some six seconds) unless the cache has it.

    Raises BuildFailed when there is no compiler, it refuses the source, or the cache cannot be written.
    """
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise BuildFailed(f"none of {', '.join(_COMPILERS)} is on PATH")
    version = _run([compiler, "--version"])
    runtime = openmp_runtime()
    # Plain `cc` would treat the file as C++ but not link its standard library.
    link = [str(runtime)] if runtime else []
    flags = [*_FLAGS, *(["-fopenmp"] if runtime else [])]
    texts = [path.read_text() for path in sorted(sources.iterdir())]
    identity = "\0".join([*texts, compiler, version, *flags, *link, platform.machine(), _cpu_flags()])
    target = (folder or cache_folder()) / f"octavo_cpu_{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as private:
            compiled, linked = Path(private) / "kernels.o", Path(private) / "kernels.so"
            _run([compiler, *flags, "-c", str(sources / "library.cpp"), "-o", str(compiled)])
            # Linked without -fopenmp, which would name the compiler's own runtime beside torch's.
            _run([compiler, "-shared", str(compiled), *link, "-lstdc++", "-lm", "-o", str(linked)])
            linked.replace(target)
    except OSError as error:
        raise BuildFailed(f"cannot write {target.parent}: {error}") from error
    log.info("built the CPU kernels with %s into %s", compiler, target)
    return target
