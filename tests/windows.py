"""The three programs without what Windows lacks, on a tiny survey: `python -m tests.windows FOLDER` in a new process.

Taken away before anything is imported: modules and names of os and signal that exist on POSIX systems alone, and the
C library of the whole process. Files that are open can neither be replaced, renamed nor removed, no file is renamed
to a name that is taken, text files need their encoding stated, and the console knows the characters of Windows-1252.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

ABSENT_MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "spwd", "crypt", "nis"}
ABSENT_OF_OS = set(
    "fork forkpty killpg getpgid getpgrp setpgid setsid getsid getuid geteuid getgid getegid getgroups getresuid "
    "sched_getaffinity sched_setaffinity sched_yield sched_getscheduler getloadavg sysconf confstr uname statvfs "
    "fstatvfs mkfifo mknod nice getpriority setpriority posix_fadvise posix_fallocate pread pwrite preadv pwritev "
    "sendfile chown fchown lchown chroot wait wait3 wait4 waitid ttyname openpty register_at_fork memfd_create".split()
)
ABSENT_OF_SIGNAL = set(
    "SIGKILL SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGPIPE SIGWINCH SIGXCPU alarm "
    "setitimer pause sigwait pthread_kill pthread_sigmask".split()
)
OTHER_PACKAGES = (
    "numpy psutil torch torch.distributed.fsdp torch.distributed.checkpoint.state_dict torch.utils.tensorboard timm "
    "rasterio geopandas scipy.ndimage sklearn.ensemble matplotlib.figure tqdm.auto filelock"
).split()


class Refuse:
    """A finder of modules that refuses those of POSIX."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in ABSENT_MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def is_open(path: Any) -> bool:
    """Whether this process has a file open, or mapped into its memory."""
    real = os.path.realpath(path)
    mapped = open("/proc/self/maps", encoding="utf-8").read()  # noqa: SIM115
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return os.path.isfile(real) and (real in found or any(line.endswith(f" {real}") for line in mapped.splitlines()))


def refusing(function: Callable[..., Any], *, taken: bool = False) -> Callable[..., Any]:
    """A function of os that refuses open files, and new names that are taken, as Windows does."""

    def careful(*paths: Any, **options: Any) -> Any:
        for path in paths:
            if is_open(path):
                raise PermissionError(13, f"{function.__name__}: the file is open", str(path))
        if taken and os.path.lexists(paths[1]):
            raise FileExistsError(17, "the new name is taken", str(paths[1]))
        return function(*paths, **options)

    return careful


def become_windows() -> None:
    """Takes away what Windows lacks, for the rest of this process.

    Other packages have builds for Windows, and ask which system they run on: they are imported before.
    """
    for name in OTHER_PACKAGES:
        importlib.import_module(name)
    sys.meta_path.insert(0, Refuse())
    for name in ABSENT_MODULES & set(sys.modules):
        del sys.modules[name]
    for module, names in ((os, ABSENT_OF_OS), (signal, ABSENT_OF_SIGNAL)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    library = ctypes.CDLL

    def of_a_name(name: Any, *more: Any, **options: Any) -> Any:
        if name is None:
            raise TypeError("expected str, bytes or os.PathLike object, not NoneType")
        return library(name, *more, **options)

    ctypes.CDLL = of_a_name  # type: ignore[misc, assignment]
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    os.replace, os.unlink, os.remove = refusing(os.replace), refusing(os.unlink), refusing(os.remove)
    os.rename = refusing(os.rename, taken=True)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"(datasets|util|study|main_|models_)")


def run_all(folder: str) -> None:
    """Pre-trains, resumes, sets aside, fine-tunes and writes maps, and again over those that are there."""
    from pathlib import Path

    import torch

    import main_inference
    from tests import labelled, small_main, surveys
    from util.hardware import device, malloc, system

    torch.set_num_threads(1)
    assert not malloc.keep_freed_memory() and system.load_average() is None
    assert [number.name for number in system.STOP_SIGNALS] == ["SIGTERM", "SIGINT"]
    home = Path(folder) / "Gel\u00e4nde \u03a9"  # the console has no omega
    survey = surveys.write_survey(home / "survey")
    labels = labelled.write_classes(home)
    pretrained, finetuned, maps = (home / name for name in ("pretrained", "finetuned", "maps"))
    for more in (["--epochs", "1"], ["--epochs", "2", "--resume", "auto"], ["--epochs", "1"]):
        assert small_main.main(surveys.arguments(survey, pretrained, *more)) == 0
    assert (pretrained / "earlier-1/checkpoint-last.pth").exists()
    last = str(pretrained / "checkpoint-last.pth")
    given = labelled.arguments(survey, finetuned, "--finetune", last, "--epochs", "1", labels=labels)
    assert labelled.run(given) == 0
    inputs = ["--device", "cpu", "--num_workers", "1", "--no_progress", "--output_dir", str(maps)]
    for checkpoint, output, more in (
        (pretrained, "embeddings", []),
        (finetuned, "prediction", []),
        (finetuned, "prediction", ["--overwrite"]),
    ):
        chosen = ["--checkpoint", str(checkpoint / "checkpoint-last.pth"), "--output", output]
        assert main_inference.main([*chosen, *inputs, *more]) == 0
    assert device.peak_memory_bytes(torch.device("cpu")) > 1 << 25
    print("all programs ran", home)


def check_refusals(folder: str) -> None:
    """What is taken away is gone."""
    for name in ABSENT_MODULES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} can be imported")
    one, other = os.path.join(folder, "one"), os.path.join(folder, "other")
    for path in (one, other):
        with open(path, "w", encoding="utf-8") as file:
            file.write("text")
    with open(one, encoding="utf-8"):
        for refused in (lambda: os.replace(other, one), lambda: os.replace(one, other), lambda: os.unlink(one)):
            try:
                refused()
            except PermissionError:
                continue
            raise AssertionError("an open file was replaced")
    os.replace(other, one)
    os.unlink(one)


if __name__ == "__main__":
    become_windows()
    check_refusals(sys.argv[1])
    run_all(sys.argv[1])
