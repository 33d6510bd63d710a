"""The choice of device and number format, for cards that are described here rather than present."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from util.hardware import device as devices

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
REAL_ARANGE = torch.arange
BUILD = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.fixture
def pretend(monkeypatch):
    """Makes torch report CUDA cards of one kind; returns a function (capability, name, count, build, answer)."""

    def cards(capability=(8, 0), name="Some Card", *, count=1, build=BUILD, answer=14.0):

        def arange(*args, device=None, **kwargs):
            if isinstance(answer, Exception):
                raise answer
            return REAL_ARANGE(*args, **kwargs) * (answer / 14.0) ** 0.5

        monkeypatch.setattr(torch.version, "cuda", "12.6")
        monkeypatch.setattr(torch, "arange", arange)
        for function, value in {
            "is_available": True,
            "device_count": count,
            "get_device_capability": capability,
            "get_device_name": name,
            "get_arch_list": build,
            "set_device": None,
        }.items():
            monkeypatch.setattr(torch.cuda, function, lambda *args, value=value: value)

    return cards


@pytest.mark.parametrize(
    ("capability", "build", "usable"),
    [
        ((7, 0), ["sm_70", "sm_80"], True),
        ((7, 0), ["sm_75", "sm_80"], False),  # machine code of a later minor version
        ((7, 5), ["sm_70"], True),  # of an earlier one of the same generation
        ((8, 0), ["sm_70"], False),  # of an earlier generation
        ((8, 9), ["sm_80", "sm_90"], True),
        ((8, 9), ["compute_80"], True),  # PTX is translated for anything later
        ((12, 0), ["sm_90", "compute_90"], True),
        ((7, 0), ["compute_75"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),  # tied to exactly that one
        ((10, 3), ["sm_100f"], True),  # tied to the family
        ((11, 0), ["sm_100f", "compute_100f"], False),
        ((12, 0), ["sm_120"], True),
        ((9, 0), ["gfx90a"], False),
        ((9, 0), [], False),
    ],
)
def test_which_builds_run_on_which_cards(capability, build, usable):
    assert devices.has_kernels_for(capability, build) is usable


def test_auto_takes_the_card_of_the_local_rank(pretend):
    pretend(count=4)
    assert devices.select_device("auto", local_rank=2) == torch.device("cuda", 2)
    assert devices.select_device("cuda", local_rank=3) == torch.device("cuda", 3)
    assert devices.select_device("cuda:1", local_rank=3) == torch.device("cuda", 1)
    assert devices.select_device("cpu") == CPU


def test_auto_without_a_card_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.select_device("auto") == CPU
    assert devices.select_device() == CPU


def test_auto_falls_back_to_the_cpu_and_says_why(pretend, caplog):
    pretend((7, 0), "Tesla V100")
    assert devices.select_device("auto") == CPU
    assert "computing on the CPU: torch" in caplog.text and "Tesla V100 (sm_70)" in caplog.text


def test_of_several_processes_none_changes_to_the_cpu_by_itself(pretend):
    pretend((7, 0), "Tesla V100")
    with pytest.raises(ValueError, match="--device auto: torch .*; the 2 processes of a run must all .* for all"):
        devices.select_device("auto", processes=2)


def test_the_only_card_that_a_process_sees_is_its_own(pretend):
    pretend(count=1)
    for name in ("auto", "cuda"):
        assert devices.select_device(name, local_rank=3, processes=4) == torch.device("cuda", 0)
    with pytest.raises(ValueError, match="wants GPU 3"):
        devices.select_device("cuda:3")


def test_convolutions_on_a_card_are_float32(pretend, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    devices.select_device("cpu")
    assert torch.backends.cudnn.allow_tf32
    pretend()
    devices.select_device("auto")
    assert not torch.backends.cudnn.allow_tf32


def test_errors_of_a_full_card_are_known():
    for said in (
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ):
        assert devices.is_out_of_memory(RuntimeError(said))
    assert devices.is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert not devices.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not devices.is_out_of_memory(ValueError("out of memory"))


def test_an_absent_card_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    with pytest.raises(ValueError, match="--device cuda: torch .* finds no usable GPU; .*or use --device cpu"):
        devices.select_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="--device cuda:0: torch .* was built without CUDA; install a CUDA build"):
        devices.select_device("cuda:0")


def test_a_card_this_build_has_no_kernels_for_is_refused_with_the_remedy(pretend):
    pretend((7, 0), "Tesla V100-SXM2-32GB")
    with pytest.raises(ValueError) as caught:
        devices.select_device("cuda")
    message = str(caught.value)
    assert re.match(r"--device cuda: torch \S+ has no kernels for Tesla V100-SXM2-32GB \(sm_70\)", message)
    assert f"built for {', '.join(BUILD)}; " in message
    assert "-c constraints-v100.txt" in message and message.endswith("or use --device cpu")


def test_a_card_with_too_high_a_number_is_refused(pretend):
    pretend(count=2)
    with pytest.raises(ValueError, match=r"wants GPU 5, but there are 2 here \(0 to 1\)"):
        devices.select_device("cuda:5")


def test_a_card_that_cannot_compute_is_refused(pretend):
    pretend(answer=RuntimeError("CUDA error: no kernel image is available\nCUDA kernel errors might be"))
    with pytest.raises(
        ValueError, match=r"failed at a first small computation \(CUDA error: no kernel image is available\)"
    ):
        devices.select_device("cuda")
    pretend(answer=56.0)
    with pytest.raises(ValueError, match="computed 0.1.4.9 as 56.*faulty"):
        devices.select_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="unknown, expected auto, cpu, cuda, cuda:K or mps"):
        devices.select_device(name)


def test_mps_where_there_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device mps: not available"):
        devices.select_device("mps")


@pytest.mark.parametrize(
    ("capability", "choice", "expected"),
    [
        ((7, 0), "auto", (torch.float16, True)),
        ((7, 5), "auto", (torch.float16, True)),
        ((8, 0), "auto", (torch.bfloat16, False)),
        ((12, 0), "auto", (torch.bfloat16, False)),
        ((8, 0), "fp16", (torch.float16, True)),
        ((8, 0), "off", (None, False)),
    ],
)
def test_number_format_on_a_card(pretend, caplog, capability, choice, expected):
    pretend(capability)
    assert devices.amp_policy(GPU, choice) == expected
    assert caplog.text == ""


def test_number_format_on_the_cpu(caplog, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert devices.amp_policy(CPU) == (None, False)
    assert devices.amp_policy(CPU, "off") == (None, False)
    assert caplog.text == ""
    assert devices.amp_policy(CPU, "bf16") == (torch.bfloat16, False)
    assert devices.amp_policy(CPU, "fp16") == (torch.float16, True)
    assert caplog.text.count("usually slower") == 2
    caplog.clear()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert devices.amp_policy(CPU, "bf16") == (torch.bfloat16, False)
    assert caplog.text == ""
    assert devices.amp_policy(CPU, "fp16") == (torch.float16, True)
    assert "usually slower" in caplog.text


def test_emulated_bf16_is_allowed_with_a_warning(pretend, caplog):
    pretend((7, 0))
    assert devices.amp_policy(GPU, "bf16") == (torch.bfloat16, False)
    assert "only emulates it" in caplog.text


def test_unknown_formats_are_refused():
    with pytest.raises(ValueError, match="--amp half: unknown, expected one of auto, fp16, bf16, off"):
        devices.amp_policy(CPU, "half")


def test_the_environment_is_described_in_plain_values(pretend, monkeypatch):
    facts = devices.describe_environment(CPU)
    assert facts["torch"] == str(torch.__version__) and facts["device"] == "cpu"
    assert facts["gdal"].count(".") == 2 and facts["timm"] and facts["rasterio"]
    assert facts["threads"] == torch.get_num_threads() and facts["cpus"] >= 1
    assert all(type(value) in (str, int, type(None)) for value in facts.values())

    class Properties:
        total_memory = 16 << 30

    pretend((7, 0), "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    facts = devices.describe_environment(GPU)
    assert (facts["device_name"], facts["capability"], facts["device_memory_mib"]) == ("Tesla V100", "7.0", 16384)


def test_peak_memory_grows_with_what_is_used(monkeypatch):
    before = devices.peak_memory_bytes(CPU)
    assert 1 << 25 < before < 1 << 36  # bytes: a Python with torch, on a machine of this world
    block = torch.ones(before // 4 + (8 << 20))  # more than all before, 4 bytes each
    assert devices.peak_memory_bytes(CPU) >= before + (16 << 20)
    del block
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    assert devices.peak_memory_bytes(GPU) == 123


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone counts the program that starts another")
def test_peak_memory_is_not_that_of_the_program_that_started_it():
    block = torch.ones(200 << 18)  # 200 MiB
    code = "import util.hardware.device, torch; print(util.hardware.device.peak_memory_bytes(torch.device('cpu')))"
    alone = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    taken = devices.used_memory_bytes(CPU)
    assert 1 << 25 < alone < taken - block.nbytes // 2  # a new process holds torch, and none of the block


@pytest.mark.gpu
def test_the_card_that_is_here_computes():
    device = devices.select_device("cuda")
    assert device.type == "cuda"
    dtype, _ = devices.amp_policy(device, "auto")
    with torch.autocast("cuda", dtype=dtype):
        assert (torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum().item() == 512
    assert devices.peak_memory_bytes(device) > 0


class TestBusyMachine:
    def test_said_with_the_number_of_threads_that_fits(self, monkeypatch):
        monkeypatch.setattr(devices.system, "load_average", lambda: 6.3)
        monkeypatch.setattr(devices.system, "usable_cpus", lambda: 8)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
        assert "keep 6.3 of 8 cores busy, and 8 threads wait" in devices.busy_warning()
        assert "OMP_NUM_THREADS=2 " in devices.busy_warning()

    @pytest.mark.parametrize(("load", "threads"), [(9.0, 1), (0.3, 8), (4.4, 4)])
    def test_silent_where_every_thread_has_a_core(self, monkeypatch, load, threads):
        monkeypatch.setattr(devices.system, "load_average", lambda: load)
        monkeypatch.setattr(devices.system, "usable_cpus", lambda: 8)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        assert devices.busy_warning() == ""
