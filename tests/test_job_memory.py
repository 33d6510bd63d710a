"""Memory limits of the job that a process runs in, by a made-up /proc and /sys."""

import math
from unittest import mock

import torch

from datasets.survey import memory
from util.hardware import device


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_version_2_takes_every_group_up_to_the_top(tmp_path):
    groups = tmp_path / "sys/fs/cgroup"
    write(tmp_path / "proc/self/cgroup", "0::/slurm/job_7/step_0\n")
    write(groups / "slurm/job_7/step_0/memory.max", "max\n")
    write(groups / "slurm/job_7/memory.max", "4294967296\n")
    write(groups / "slurm/memory.max", "8589934592\n")
    assert memory.job_limits(tmp_path) == [4 << 30, 8 << 30]


def test_version_1_beside_version_2(tmp_path):
    write(tmp_path / "proc/self/cgroup", "4:cpu,memory:/job\n1:cpuset:/\n0::/\n")
    write(tmp_path / "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1073741824\n")
    assert memory.job_limits(tmp_path) == [1 << 30]


def test_a_container_sees_its_own_group_at_the_top(tmp_path):
    write(tmp_path / "proc/self/cgroup", "0::/docker/abc\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", "2147483648\n")
    assert memory.job_limits(tmp_path) == [2 << 30]


def test_no_control_groups(tmp_path):
    assert memory.job_limits(tmp_path) == []


def test_decoded_layers_take_a_quarter_of_the_least_limit(monkeypatch):
    monkeypatch.setattr(memory, "job_limits", lambda: [4096, 8192])
    assert memory.memory_limit() == 1024


class TestFree:
    """What is left of the job's own limit, not of the limit at the top of the tree."""

    def test_the_least_that_a_group_leaves(self, tmp_path):
        groups = tmp_path / "sys/fs/cgroup"
        write(tmp_path / "proc/self/cgroup", "0::/slurm/job_7\n")
        write(groups / "memory.max", "max\n")
        write(groups / "slurm/job_7/memory.max", "4096\n")
        write(groups / "slurm/job_7/memory.current", "1096\n")
        write(groups / "slurm/memory.max", "8192\n")
        write(groups / "slurm/memory.current", "8000\n")
        assert memory.free_in_job(tmp_path) == 192

    def test_version_1(self, tmp_path):
        write(tmp_path / "proc/self/cgroup", "4:memory:/job\n")
        write(tmp_path / "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4096\n")
        write(tmp_path / "sys/fs/cgroup/memory/job/memory.usage_in_bytes", "96\n")
        assert memory.free_in_job(tmp_path) == 4000

    def test_no_limit(self, tmp_path):
        assert memory.free_in_job(tmp_path) == math.inf

    def test_a_device_of_the_host_has_no_more(self):
        cpu = torch.device("cpu")
        with mock.patch.object(device, "used_memory_bytes", lambda _: 5 << 30):
            with mock.patch.object(device.system, "available_bytes", lambda: 99 << 30):
                assert device.memory_limit_bytes(cpu) == 104 << 30
                assert device.memory_limit_bytes(cpu, 1 << 30) == 6 << 30
                assert device.memory_limit_bytes(cpu, -7.0) == 5 << 30
