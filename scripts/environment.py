"""Makes the project's Python environment, once, and prints its interpreter: `python scripts/environment.py`.

  (nothing set)         .venv in the project, with exactly the versions of constraints.txt
  GRIDMAE_LANE=cpu      .venv-cpu, the same versions without CUDA (Linux; needs PIP_EXTRA_INDEX_URL, docs/install.md)
  GRIDMAE_LANE=v100     .venv-v100, with those of constraints-v100.txt (torch 2.7.1, for Tesla V100)
  GRIDMAE_PYTHON=FILE   that interpreter, with what is installed beside it; nothing is installed

An environment is made again only if the requirements, the constraints or the interpreter have changed. Needs the
standard library alone, and runs on every system.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
INTERPRETERS = ("python3", "python3.13", "python3.12", "python3.11", "python")
INTERRUPTED = 130  # exit status of programs that Ctrl-C ended, by convention
CPU_INDEX = "PIP_EXTRA_INDEX_URL"
"""Variable of pip that names the index of torch without CUDA, for the lane `cpu`."""


class Lane(NamedTuple):
    """An environment: its folder, its exact versions, and more arguments of pip."""

    folder: str
    constraints: str
    options: tuple[str, ...] = ()


LANES = {
    "": Lane(".venv", "constraints.txt"),
    # 2.15.0+cpu fits 2.15.0 of the constraints, and pip takes it for the newer one.
    "cpu": Lane(".venv-cpu", "constraints.txt"),
    "v100": Lane(".venv-v100", "constraints-v100.txt"),
}


class NoEnvironment(Exception):
    """The environment cannot be made or used; says why and what to do."""


def main() -> int:
    """Prints the interpreter; returns 0, or 2 with a message if there is none."""
    try:
        print(environment_python(os.environ))
    except NoEnvironment as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def environment_python(variables: Mapping[str, str]) -> str:
    """The interpreter that runs the project's programs, its environment made if need be.

    Args:
        variables: GRIDMAE_PYTHON and GRIDMAE_LANE, as described above.

    Raises:
        NoEnvironment: the environment that the variables name cannot be made or used.
    """
    given = variables.get("GRIDMAE_PYTHON")
    if given:
        found = shutil.which(given)
        if found is None:
            raise NoEnvironment(f"GRIDMAE_PYTHON={given}: no such program")
        python = os.path.abspath(found)
        if subprocess.call([python, "-c", "import torch, timm, rasterio"]):
            raise NoEnvironment(f"GRIDMAE_PYTHON={given} lacks packages of requirements.txt")
        return python
    name = variables.get("GRIDMAE_LANE", "")
    lane = LANES.get(name)
    if lane is None:
        expected = ", ".join(filter(None, LANES))
        raise NoEnvironment(f"GRIDMAE_LANE={name}: unknown, expected {expected} or nothing")
    if name == "cpu" and not variables.get(CPU_INDEX):
        raise NoEnvironment(
            f"GRIDMAE_LANE=cpu: set {CPU_INDEX} to torch's index of CPU wheels (pytorch.org, Get Started)"
        )
    with one_at_a_time(ROOT / f"{lane.folder}.lock"):
        return make_environment(lane)


def make_environment(lane: Lane) -> str:
    """Makes the environment of a lane, if it is not as it should be; returns its interpreter.

    Raises:
        NoEnvironment: there is no Python that is new enough, or packages cannot be installed.
    """
    folder = ROOT / lane.folder
    base, version = find_interpreter()
    requirements = [*sorted(ROOT.glob("requirements*.txt")), ROOT / lane.constraints]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in requirements)).hexdigest()[:16]
    wanted, record = f"{version}, {digest}", folder / "installed.txt"
    installed = record.read_text(encoding="utf-8").strip() if record.exists() else ""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.exists() and installed == wanted:
        return str(python)
    say(f"Making the environment {folder} (once; torch is a large download)")
    if not python.exists() or installed.rpartition(", ")[0] != version:
        if subprocess.call([base, "-m", "venv", "--clear", str(folder)]):
            raise NoEnvironment("Python cannot make environments here; on Debian and Ubuntu: apt install python3-venv")
    record.write_text(f"{version}, unfinished\n", encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    for name in ("requirements.txt", "requirements-dev.txt"):
        install += ["-r", str(ROOT / name)]
    install += ["-c", str(ROOT / lane.constraints), *lane.options]
    if subprocess.call(install, stdout=sys.stderr):  # what is printed here is the interpreter alone
        raise NoEnvironment(
            "The packages could not be installed (see above); run this again once the cause is mended.\n"
            "Without a network, give an interpreter that has them: GRIDMAE_PYTHON=/path/to/python"
        )
    record.write_text(wanted + "\n", encoding="utf-8")
    return str(python)


def find_interpreter() -> tuple[str, str]:
    """A Python that is new enough, this one if it is, and its version in full.

    Raises:
        NoEnvironment: there is none.
    """
    if sys.version_info >= OLDEST:
        this = getattr(sys, "_base_executable", None) or sys.executable  # not that of an active environment
        return this, f"Python {sys.version}"  # as -VV has it
    for name in INTERPRETERS:
        found = shutil.which(name)
        if found and not subprocess.call([found, "-c", f"import sys; sys.exit(sys.version_info < {OLDEST})"]):
            said = subprocess.run([found, "-VV"], stdout=subprocess.PIPE, check=True).stdout.decode("utf-8", "replace")
            return found, said.strip()
    raise NoEnvironment(
        "No Python 3.11 or later found; the tested versions in constraints.txt need one.\n"
        "Install it, or give an interpreter that has the packages of requirements.txt: GRIDMAE_PYTHON=/path/to/python"
    )


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Waits until no other program holds the lock of this file, and holds it; it ends with the process.

    A lock of SQLite: it works on every system, and filelock is not installed yet.
    """
    try:
        import sqlite3
    except ImportError:  # a Python that was built without it
        yield
        return
    with contextlib.closing(sqlite3.connect(path, timeout=24 * 3600.0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:  # a file system without locks
            say(f"{path} cannot be locked ({error}): make sure that nothing else makes the environment meanwhile")
        yield


def call(command: Sequence[str | os.PathLike[str]]) -> int:
    """Runs a program and returns its exit status; Ctrl-C reaches the program, which may save before it ends.

    A program that ended well after Ctrl-C has the status `INTERRUPTED`, as it did not do all it should.
    """
    sys.stdout.flush()
    well = 0
    with subprocess.Popen([os.fspath(part) for part in command], cwd=ROOT) as process:
        while True:
            try:
                return process.wait() or well
            except KeyboardInterrupt:
                well = INTERRUPTED


def how_to_activate(python: str) -> str:
    """The command that makes `python` this interpreter in a terminal; empty where it belongs to no environment."""
    folder = Path(python).parent
    if not (folder.parent / "pyvenv.cfg").exists():
        return ""
    return str(folder / "activate") if os.name == "nt" else f"source {folder / 'activate'}"


def say(text: str) -> None:
    """Writes to standard error at once."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
