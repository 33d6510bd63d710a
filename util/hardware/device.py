"""Device, precision and memory: selects the GPU or CPU, tests it before the first batch, describes the machine."""

from __future__ import annotations

import importlib
import logging
import math
import platform
import re
from typing import Any

import torch

from util.hardware import system

logger = logging.getLogger(__name__)

AMP_CHOICES = ("auto", "fp16", "bf16", "off")
_BF16_CAPABILITY = (8, 0)  # Ampere, the first generation with bf16 arithmetic; older cards emulate it slowly
_MIB = 1 << 20
_OUT_OF_MEMORY = re.compile(r"out of memory|unable to find an engine|ALLOC_FAILED")
"""What a GPU without memory makes allocator, cuDNN and cuBLAS say, the last two in a plain RuntimeError."""


def select_device(name: str = "auto", *, local_rank: int = 0, processes: int = 1) -> torch.device:
    """Returns the device to train on, after one real computation on it has succeeded.

    On a GPU it also switches off TF32 in convolutions, so that float32 is float32 on every card.

    Args:
        name: "auto" (a GPU this build can use, else the CPU), "cpu", "cuda" (the card of this process's local
            rank), "cuda:K", or "mps".
        local_rank: number of this process on its machine; "auto" and "cuda" take the card of that number, or the only
            one that this process sees, as where a scheduler shows each process a card of its own.
        processes: of the run, which must compute on the same kind of device.

    Raises:
        ValueError: unknown name; no such device here; or a GPU that this torch has no kernels for.
    """
    if name == "auto":
        return _select_automatically(local_rank, processes)
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("--device mps: not available on this machine or in this torch build; use --device cpu")
        return torch.device("mps")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ValueError(f"--device {name}: unknown, expected auto, cpu, cuda, cuda:K or mps")
    device = torch.device("cuda", int(match[1]) if match[1] else _own_card(local_rank))
    problem = _cuda_problem(device)
    if problem:
        raise ValueError(f"--device {name}: {problem}, or use --device cpu")
    return _begun(device)


def _select_automatically(local_rank: int, processes: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", _own_card(local_rank))
    problem = _cuda_problem(device)
    if not problem:
        return _begun(device)
    if processes > 1:
        raise ValueError(
            f"--device auto: {problem}; the {processes} processes of a run must all compute on GPUs or all on the "
            "CPU, so none changes to the CPU by itself: mend this, or use --device cpu for all"
        )
    logger.warning("computing on the CPU: %s", problem)
    return torch.device("cpu")


def _own_card(local_rank: int) -> int:
    """Number of the card of a process, among those that it sees."""
    return 0 if torch.cuda.is_available() and torch.cuda.device_count() == 1 else local_rank


def _begun(device: torch.device) -> torch.device:
    """The card, made the one that this process computes on."""
    torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = False
    return device


def _cuda_problem(device: torch.device) -> str:
    """Returns why the CUDA device cannot be used, with the remedy, or "" after a computation on it."""
    build = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{build} was built without CUDA; install a CUDA build (requirements.txt)"
    if not torch.cuda.is_available():
        cuda = torch.version.cuda
        return f"{build} (CUDA {cuda}) finds no usable GPU; check nvidia-smi and the driver's version"
    count = torch.cuda.device_count()
    if device.index >= count:
        return (
            f"this process wants GPU {device.index}, but there are {count} here (0 to {count - 1}); "
            "start no more processes on a machine than it has GPUs"
        )
    capability = torch.cuda.get_device_capability(device)
    card = f"{torch.cuda.get_device_name(device)} (sm_{capability[0]}{capability[1]})"
    built_for = torch.cuda.get_arch_list()
    remedy = "install a torch with kernels for it (for a V100: pip install -r requirements.txt -c constraints-v100.txt)"
    if not has_kernels_for(capability, built_for):
        return f"{build} has no kernels for {card}, it was built for {', '.join(built_for)}; {remedy}"
    try:
        total = torch.arange(4.0, device=device).square().sum().item()
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{card} failed at a first small computation ({reason}); check the driver, or {remedy}"
    if total != 14.0:
        return f"{card} computed 0+1+4+9 as {total}; the card or its driver is faulty"
    return ""


def has_kernels_for(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether a torch build runs on a GPU: it has machine code of the same major version, or PTX to translate.

    Args:
        capability: of the GPU, such as (7, 0).
        built_for: `torch.cuda.get_arch_list()`. "sm_70" is machine code for 7.0 and later 7.x; "compute_70"
            is PTX for 7.0 and everything later. A suffix ("sm_90a", "sm_100f") ties the code to that
            architecture (a) or family (f).
    """
    for name in built_for:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if match is None:
            continue
        have = (int(match[2]), int(match[3]))
        if match[4] == "a":
            usable = capability == have
        elif match[1] == "compute" and not match[4]:
            usable = capability >= have
        else:
            usable = capability[0] == have[0] and capability[1] >= have[1]
        if usable:
            return True
    return False


def amp_policy(device: torch.device, choice: str = "auto") -> tuple[torch.dtype | None, bool]:
    """Returns (autocast number format or None for full precision, whether gradients need scaling).

    Args:
        device: from `select_device`.
        choice: "auto" is bf16 on cards that have it (capability 8.0 and later), fp16 with gradient scaling on
            older ones (V100, T4), off elsewhere. "fp16", "bf16" and "off" are taken as they are.

    Raises:
        ValueError: unknown choice.
    """
    if choice not in AMP_CHOICES:
        raise ValueError(f"--amp {choice}: unknown, expected one of {', '.join(AMP_CHOICES)}")
    has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY
    if choice == "auto":
        gpu_choice = "bf16" if has_bf16 else "fp16"
        choice = gpu_choice if device.type == "cuda" else "off"
    elif device.type == "cpu" and (choice == "fp16" or (choice == "bf16" and not _computes_in_bf16())):
        logger.warning("--amp %s on a CPU that does not compute in it is usually slower than --amp off", choice)
    elif device.type == "cuda" and choice == "bf16" and not has_bf16:
        logger.warning("--amp bf16: this device only emulates it; --amp fp16 is faster")
    if choice == "off":
        return None, False
    if choice == "bf16":
        return torch.bfloat16, False
    return torch.float16, True


def _computes_in_bf16() -> bool:
    """True if this CPU is known to multiply bfloat16 numbers (AVX512-BF16)."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Returns versions, device and machine as plain values, to log and store with a run."""
    info: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "timm": _version_of("timm"),
        "rasterio": _version_of("rasterio"),
        "gdal": _version_of("rasterio", "__gdal_version__"),
        "numpy": _version_of("numpy"),
        "device": str(device),
        "cpus": system.usable_cpus(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        info["device_name"] = torch.cuda.get_device_name(device)
        info["capability"] = f"{major}.{minor}"
        info["device_memory_mib"] = torch.cuda.get_device_properties(device).total_memory // _MIB
    return info


def _version_of(package: str, attribute: str = "__version__") -> str | None:
    try:
        return str(getattr(importlib.import_module(package), attribute, None))
    except ImportError:
        return None


def busy_warning() -> str:
    """Returns a warning if other programs keep the cores busy that several threads want to use; or "".

    Threads wait for one another at the end of each operation, so one that gets no core delays all.
    """
    threads, cpus, load = torch.get_num_threads(), system.usable_cpus(), system.load_average()
    if threads == 1 or load is None:
        return ""
    free = cpus - load
    if free >= threads - 0.5:
        return ""
    return (
        f"other programs keep {load:.1f} of {cpus} cores busy, and {threads} threads wait for one another: "
        f"OMP_NUM_THREADS={max(1, min(threads - 1, round(free)))} is probably faster, often by several times"
    )


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Makes `peak_memory_bytes` forget what was used before; without Linux's /proc a process keeps its peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        system.reset_peak_resident()
    except OSError as error:
        logger.debug("peak memory: %s", error)


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory used, so far or since `reset_peak_memory`: by tensors on a GPU, else by this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return system.peak_resident_bytes()


def used_memory_bytes(device: torch.device) -> int:
    """Returns the memory in use now: on a GPU that of all programs, elsewhere the resident memory of this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)
    return system.resident_bytes()


def is_out_of_memory(error: BaseException) -> bool:
    """True of an error by which torch says that a GPU has no memory left."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def memory_limit_bytes(device: torch.device, job_free: float = math.inf) -> int:
    """Returns the largest possible `used_memory_bytes`: the GPU's memory, or what is in use now plus what is free.

    Args:
        device: where a model computes.
        job_free: bytes of the host that a container or a batch system lets this job still take.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(used_memory_bytes(device) + max(min(system.available_bytes(), job_free), 0))
