"""The shell scripts, run with stand-ins for Python, pip and SLURM that write down how they were called."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from scripts import environment
from tests.test_architecture import imports_of

ROOT = Path(__file__).resolve().parents[1]
SHELL_SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "scripts").glob("*.s*") if path.suffix != ".py")

FAKE_PYTHON = """#!/usr/bin/env bash
# Passes for Python: runs the project's scripts under its own name, makes environments out of itself, and notes
# whatever else it is asked to do.
case "$*" in
*scripts/*.py*) PYTHONHOME=@HOME@ exec -a "$0" @PYTHON@ "$@" ;;
"-m venv --clear "*)
    echo "$(basename "$4") made" >> "$CALLS"
    rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
-c*) ;;
*) echo "$(basename "$(dirname "$(dirname "$0")")")/python $*" >> "$CALLS" ;;
esac
""".replace("@HOME@", sys.base_prefix).replace("@PYTHON@", os.path.realpath(sys.executable))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the project's scripts and requirements, with a stand-in for python3 first on the path."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in (*(file.name for file in ROOT.glob("requirements*.txt")), "constraints.txt", "constraints-v100.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("GRIDMAE_PYTHON", "GRIDMAE_LANE", "GRIDMAE_TEST_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    add_program(tmp_path, "python3", FAKE_PYTHON)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.txt"))
    return folder


def add_program(tmp_path: Path, name: str, text: str) -> Path:
    """Puts an executable into tmp_path/bin."""
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def calls(tmp_path: Path) -> list[str]:
    """What the stand-ins wrote down since last asked."""
    path = tmp_path / "calls.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def run(*command, cwd="/") -> subprocess.CompletedProcess:
    """Runs a command from another folder than the project's."""
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", [*SHELL_SCRIPTS, ".ci/run"])
def test_scripts_are_valid_bash_that_stops_on_errors(script):
    assert run("bash", "-n", ROOT / script).stderr == ""
    if script not in ("scripts/environment.sh", "scripts/interpreter.sh"):  # sourced by the others, which set it
        assert "\nset -euo pipefail\n" in (ROOT / script).read_text()


def test_the_environment_is_made_once_and_again_when_the_requirements_change(project, tmp_path):
    script = project / "scripts" / "test.sh"
    checks = [
        ".venv/python -m ruff format --check .",
        ".venv/python -m ruff check .",
        ".venv/python -m mypy .",
        ".venv/python -m pytest -q -n 2 --dist loadfile -k grid",
    ]
    install = (
        f".venv/python -m pip install --disable-pip-version-check -r {project}/requirements.txt "
        f"-r {project}/requirements-dev.txt -c {project}/constraints.txt"
    )
    assert run("bash", script, "-k", "grid").returncode == 0
    assert calls(tmp_path) == [".venv made", install, *checks]
    assert run("bash", script, "-k", "grid").returncode == 0
    assert calls(tmp_path) == checks
    with open(project / "requirements.txt", "a") as file:
        file.write("another\n")
    assert run("bash", script, "-k", "grid").returncode == 0
    assert calls(tmp_path) == [install, *checks]


def test_another_version_of_python_makes_the_environment_anew(project, tmp_path):
    script = project / "scripts" / "test.sh"
    assert run("bash", script).returncode == 0
    calls(tmp_path)
    record = project / ".venv" / "installed.txt"
    assert record.read_text().startswith(f"Python {sys.version}, ")
    record.write_text(record.read_text().replace("Python 3", "Python 2"))
    assert run("bash", script).returncode == 0
    assert calls(tmp_path)[0] == ".venv made"


def test_the_v100_lane_has_an_environment_of_its_own(project, tmp_path, monkeypatch):
    monkeypatch.setenv("GRIDMAE_LANE", "v100")
    assert run("bash", project / "scripts" / "test.sh").returncode == 0
    made, install = calls(tmp_path)[:2]
    assert made == ".venv-v100 made"
    assert install.startswith(".venv-v100/python -m pip install") and install.endswith("/constraints-v100.txt")


def test_a_given_interpreter_is_used_as_it_is(project, tmp_path, monkeypatch):
    other = tmp_path / "mine" / "bin" / "python"
    other.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "bin" / "python3", other)
    monkeypatch.setenv("GRIDMAE_PYTHON", str(other))
    assert run("bash", project / "scripts" / "test.sh").returncode == 0
    assert [call.split(" ")[0] for call in calls(tmp_path)] == ["mine/python"] * 4
    assert not (project / ".venv").exists()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("GRIDMAE_PYTHON", "/no/such/python", "GRIDMAE_PYTHON=/no/such/python: no such program"),
        ("GRIDMAE_PYTHON", "false", "GRIDMAE_PYTHON=false lacks packages of requirements.txt"),
        ("GRIDMAE_LANE", "a100", "GRIDMAE_LANE=a100: unknown, expected cpu, v100 or nothing"),
    ],
)
def test_a_wrong_environment_is_refused(project, tmp_path, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    result = run("bash", project / "scripts" / "test.sh")
    assert result.returncode == 2 and message in result.stderr
    assert calls(tmp_path) == []


def test_a_failed_installation_is_tried_again(project, tmp_path):
    failing = FAKE_PYTHON.replace("-c*) ;;", '-c*) ;;\n"-m pip"*) exit 1 ;;')
    add_program(tmp_path, "python3", failing)
    result = run("bash", project / "scripts" / "test.sh")
    assert result.returncode == 2 and "could not be installed" in result.stderr
    assert calls(tmp_path) == [".venv made"]
    add_program(tmp_path, "python3", FAKE_PYTHON)
    shutil.copy(tmp_path / "bin" / "python3", project / ".venv" / "bin" / "python")  # the cause is mended
    assert run("bash", project / "scripts" / "test.sh").returncode == 0
    assert [call.split(" ")[2] for call in calls(tmp_path)] == ["pip", "ruff", "ruff", "mypy", "pytest"]


def test_quick_start_trains_in_a_new_folder_each_time(project, tmp_path):
    script = project / "scripts" / "quickstart.sh"
    for number in (1, 2):
        result = run("bash", script, "--epochs", "1")
        assert result.returncode == 0, result.stderr
        output = f"quickstart_output/run-{number}"
        called = calls(tmp_path)
        training = next(call for call in called if "-m main_pretrain" in call)
        assert f"--output_dir {output} " in training and training.endswith("--epochs 1")
        maps = [call for call in called if "-m main_inference" in call]
        for kind, call in zip(("embeddings", "reconstruction", "gapfill"), maps, strict=True):
            assert f"--checkpoint {output}/checkpoint-last.pth --output_dir {output}/maps --output {kind}" in call
            assert ("--clusters" in call) == (kind == "embeddings")
        assert f"{output}/checkpoint-last.pth" in result.stdout
        assert f"-m tensorboard.main --logdir {output}" in result.stdout
        assert (project / output).is_dir()


@pytest.mark.parametrize("script", ["pretrain_one_gpu.sh", "pretrain_torchrun.sh"])
def test_launch_scripts_pass_on_what_they_are_given(project, tmp_path, script):
    (tmp_path / "layers.csv").touch()
    result = run("bash", project / "scripts" / script, "layers.csv", "out", "--epochs", "3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    launch = calls(tmp_path)[-1]
    assert f"--train_path {tmp_path}/layers.csv --output_dir {tmp_path}/out --log_dir {tmp_path}/out" in launch
    assert launch.endswith("--resume auto --epochs 3")
    result = run("bash", project / "scripts" / script, "layers.csv")
    assert result.returncode == 2 and "usage:" in result.stderr


# SLURM


@pytest.fixture
def slurm(project, tmp_path, monkeypatch):
    """Stand-ins for SLURM's programs: two tasks, `scancel --signal` reaches them, `scontrol` is noted."""
    training = tmp_path / "training.py"
    add_program(
        tmp_path, "python_of_job", f'#!/usr/bin/env bash\n[ "$1" = -c ] || exec {sys.executable} {training} "$@"\n'
    )
    answer = 'show) printf "node7\\nnode8\\n" ;; *) echo "scontrol $*" >> "$CALLS" ;;'
    add_program(tmp_path, "scontrol", f"#!/usr/bin/env bash\ncase $1 in {answer} esac\n")
    add_program(
        tmp_path, "scancel", f'#!/usr/bin/env bash\necho "scancel $*" >> "$CALLS"; kill -USR1 $(cat {tmp_path}/pids)\n'
    )
    add_program(
        tmp_path,
        "srun",
        f"""#!/usr/bin/env bash
shift # --kill-on-bad-exit
for task in 0 1; do
    export SLURM_PROCID=$((8 + task)) SLURM_LOCALID=$task SLURM_NTASKS=16 SLURM_NTASKS_PER_NODE=8
    "$@" & echo $! >> {tmp_path}/pids
done
status=0
for task in $(jobs -p); do wait $task || status=$?; done
exit $status
""",
    )
    monkeypatch.setenv("GRIDMAE_PYTHON", "python_of_job")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(project))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[7-8]")
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    (tmp_path / "layers.csv").touch()
    return training


def start_job(project: Path, tmp_path: Path) -> subprocess.Popen:
    """Starts the batch script as SLURM would, from its own copy of it."""
    job = shutil.copy(project / "scripts" / "pretrain_slurm.sbatch", tmp_path / "job")
    return subprocess.Popen(
        ["bash", str(job), str(tmp_path / "layers.csv"), str(tmp_path / "out"), "--epochs", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_slurm_job_trains_with_torchruns_variables(project, tmp_path, slurm):
    slurm.write_text(
        "import os, sys\n"
        "names = 'RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT SRUN_CPUS_PER_TASK'.split()\n"
        "said = [os.environ[name] for name in names] + sys.argv[1:3] + sys.argv[-3:]\n"
        "os.write(1, (' '.join(said) + '\\n').encode())\n"  # in one piece
    )
    job = start_job(project, tmp_path)
    said = job.communicate(timeout=60)[0]
    assert job.returncode == 0, said
    assert sorted(said.splitlines()) == [
        "8 16 0 8 node7 20123 6 -m main_pretrain auto --epochs 3",
        "9 16 1 8 node7 20123 6 -m main_pretrain auto --epochs 3",
    ]
    assert calls(tmp_path) == []  # not requeued


def test_a_slurm_job_that_fails_ends_with_its_status(project, tmp_path, slurm):
    slurm.write_text("raise SystemExit(2)")
    job = start_job(project, tmp_path)
    job.communicate(timeout=60)
    assert job.returncode == 2
    assert calls(tmp_path) == []


def test_a_slurm_job_near_its_limit_saves_and_goes_back_into_the_queue(project, tmp_path, slurm):
    slurm.write_text(
        "import os, signal, sys, time\n"
        f"folder = {str(tmp_path)!r} + '/'\n"
        "def save(*_):\n"
        "    time.sleep(0.5)\n"
        "    open(folder + 'saved-' + os.environ['RANK'], 'w').close()\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGUSR1, save)\n"
        "open(folder + 'ready-' + os.environ['RANK'], 'w').close()\n"
        "time.sleep(60)\n"
    )
    job = start_job(project, tmp_path)
    deadline = time.monotonic() + 30
    while not all((tmp_path / f"ready-{rank}").exists() for rank in (8, 9)):
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=60)[0]
    assert "the time limit is near" in said
    assert (tmp_path / "saved-8").exists() and (tmp_path / "saved-9").exists()
    assert calls(tmp_path) == ["scancel --signal=USR1 123", "scontrol requeue 123"]


# One way in for all systems


def test_the_python_scripts_do_what_the_shell_scripts_do(project, tmp_path):
    python = tmp_path / "bin" / "python3"
    assert run(python, project / "scripts/test.py", "-k", "grid").returncode == 0
    by_python = calls(tmp_path)
    shutil.rmtree(project / ".venv")
    assert run("bash", project / "scripts/test.sh", "-k", "grid").returncode == 0
    assert calls(tmp_path) == by_python and len(by_python) == 6
    assert run(python, project / "scripts/quickstart.py", "--epochs", "1").returncode == 0
    assert "--output_dir quickstart_output/run-1 " in next(call for call in calls(tmp_path) if "main_pretrain" in call)


def test_a_failing_check_ends_the_tests_with_its_status(project, tmp_path):
    failing = FAKE_PYTHON.replace("-c*) ;;", '-c*) ;;\n"-m mypy"*) exit 3 ;;')
    python = add_program(tmp_path, "python3", failing)
    assert run(python, project / "scripts/test.py").returncode == 3
    assert [call.split(" ")[2] for call in calls(tmp_path)[1:]] == ["pip", "ruff", "ruff"]


@pytest.mark.parametrize("given", [("--output_dir", "mine"), ("--log_dir=mine",), ("--dry_run",)])
def test_the_quick_start_refuses_at_once_what_its_maps_would_not_find(project, tmp_path, given):
    result = run("python3", project / "scripts/quickstart.py", *given)
    assert result.returncode == 2 and f"{given[0].split('=')[0]} cannot be given" in result.stderr
    assert not (tmp_path / "calls.txt").exists() and not (project / "quickstart_output").exists()


@pytest.fixture
def heeds_ctrl_c():
    """Programs started by a test heed Ctrl-C, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_a_quick_start_that_is_stopped_makes_no_maps(project, tmp_path):
    """Ctrl-C reaches the training, which saves and ends well, and the quick start."""
    stopped = FAKE_PYTHON.replace("-c*) ;;", "-c*) ;;\n*main_pretrain*) kill -INT $PPID; sleep 0.2 ;;")
    python = add_program(tmp_path, "python3", stopped)
    result = run(python, project / "scripts/quickstart.py")
    assert result.returncode == 130 and "run-1/report.html has the command that goes on training" in result.stderr
    assert not any("main_inference" in call for call in calls(tmp_path))


def test_the_quick_start_ends_with_how_to_go_on(project, tmp_path):
    making = FAKE_PYTHON.replace('cp "$0" "$4/bin/python" ;;', 'cp "$0" "$4/bin/python"; touch "$4/pyvenv.cfg" ;;')
    python = add_program(tmp_path, "python3", making)
    said = run(python, project / "scripts/quickstart.py").stdout.splitlines()
    assert f"    source {project}/.venv/bin/activate" in said
    assert said[-1] == "    python -m scripts.describe_grids --data_dir FOLDER_OF_GRIDS"


def test_the_lane_without_cuda_takes_torch_from_its_own_index(project, tmp_path, monkeypatch):
    monkeypatch.setenv("GRIDMAE_LANE", "cpu")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    refused = run(tmp_path / "bin" / "python3", project / "scripts/environment.py")
    assert refused.returncode == 2 and "set PIP_EXTRA_INDEX_URL" in refused.stderr + refused.stdout
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://wheels.example/cpu")
    result = run(tmp_path / "bin" / "python3", project / "scripts/environment.py")
    assert result.stdout == f"{project}/.venv-cpu/bin/python\n"
    made, install = calls(tmp_path)
    assert made == ".venv-cpu made"
    assert install.endswith("/constraints.txt")


def test_two_scripts_make_the_environment_one_after_the_other(project, tmp_path):
    slow = FAKE_PYTHON.replace(
        "-c*) ;;", '-c*) ;;\n"-m pip"*) echo begin >> "$CALLS"; sleep 1; echo end >> "$CALLS" ;;'
    )
    python = add_program(tmp_path, "python3", slow)
    command = [str(python), str(project / "scripts/environment.py")]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [each.wait(timeout=60) for each in both] == [0, 0]
    assert calls(tmp_path) == [".venv made", "begin", "end"]


def test_an_old_python_looks_for_a_newer_one(project, monkeypatch):
    monkeypatch.setattr(environment, "OLDEST", (99, 0))
    monkeypatch.setattr(environment, "INTERPRETERS", ("no-such-python",))
    with pytest.raises(environment.NoEnvironment, match=r"No Python 3.11 or later found.*\n.*GRIDMAE_PYTHON="):
        environment.find_interpreter()


def test_windows_has_its_own_folders(tmp_path, monkeypatch):
    (tmp_path / "pyvenv.cfg").touch()
    assert environment.how_to_activate(str(tmp_path / "bin/python")) == f"source {tmp_path}/bin/activate"
    monkeypatch.setattr(environment, "os", SimpleNamespace(name="nt"))
    assert environment.how_to_activate(str(tmp_path / "Scripts/python.exe")) == str(tmp_path / "Scripts/activate")
    assert environment.how_to_activate("/usr/bin/python3") == ""


@pytest.mark.parametrize("script", ["environment.py", "quickstart.py", "test.py"])
def test_before_the_environment_stands_only_the_standard_library_is_used(script):
    names = {name.split(".")[0] for name in imports_of((ROOT / "scripts" / script).read_text(encoding="utf-8"))}
    assert names - {"scripts"} <= set(sys.stdlib_module_names)


# Other ways to install


def requirements() -> dict[str, str]:
    """Lower bound of each package that a run needs, xarray's included."""
    lines = [(ROOT / name).read_text(encoding="utf-8") for name in ("requirements.txt", "requirements-xarray.txt")]
    return dict(re.findall(r"^([\w-]+)(>=[\w.]+)", "\n".join(lines), re.MULTILINE))


def test_conda_gets_the_same_packages():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert listed["channels"] == ["conda-forge"]
    found = dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in listed["dependencies"])
    assert found.pop("python") == "=3.11" and found.pop("pyogrio") == ""  # pip gets pyogrio with geopandas
    other_names = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    assert found == {other_names.get(name, name): bound for name, bound in requirements().items()}


@pytest.mark.parametrize("name", ["cpu", "v100"])
def test_images_are_built_from_files_that_are_there(name):
    text = (ROOT / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8")
    steps = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert {step.split()[0] for step in steps} <= set("FROM ARG ENV WORKDIR COPY RUN USER ENTRYPOINT CMD".split())
    assert re.fullmatch(r"FROM python:3\.11-slim-\w+", steps[0]) and steps[-3].startswith("USER ")
    for step in steps:
        if step.startswith("COPY"):
            assert all((ROOT / source).exists() for source in step.split()[1:-1])
        if step.startswith("RUN"):
            assert "--no-cache-dir" in step and "-r requirements.txt" in step
        if step.startswith(("ENTRYPOINT", "CMD")):
            assert isinstance(json.loads(step.partition(" ")[2]), list)
    assert (f"constraints{'-v100' if name == 'v100' else ''}.txt") in text
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert {".git", ".venv*"} <= set(ignored)
