"""Runs that torchrun starts: again after a process was killed, and on two machines, played by two agents on one."""

import json
import random
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import surveys
from tests.test_multirank import PAIR, assert_same_end

LIMIT_S = 300.0


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def straight(survey, tmp_path_factory):
    """The output of a run of two processes that nothing stopped."""
    output = tmp_path_factory.mktemp("straight") / "output"
    results = surveys.run_ranks(surveys.arguments(survey, output, *PAIR), output.parent)
    assert [status for status, _ in results] == [0, 0], results
    return output


class Agent:
    """A running torchrun; within its context, so that it never outlives the test.

    Args:
        arguments: command line of the training.
        message_file: gets what it and its processes say.
        flags: of torchrun.
        kills: see `tests.torchrun_main`.
    """

    def __init__(self, arguments: list[str], message_file: Path, *flags: str, kills: list | None = None) -> None:
        self._message_file = message_file
        with open(message_file, "w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", "--monitor-interval=0.1", *flags]
                + ["-m", "tests.torchrun_main", *arguments],
                env=surveys.environment() | {"GRIDMAE_TEST_KILLS": json.dumps(kills or [])},
                stdout=file,
                stderr=file,
            )

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()  # so that it ends its processes
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def wait(self, limit_s: float = LIMIT_S) -> str:
        """Waits for its end, which must be a good one; returns what was said."""
        status = self.process.wait(limit_s)
        message = self._message_file.read_text(encoding="utf-8")
        assert status == 0, message
        return message


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_killed_process_is_started_again_and_nothing_is_lost(survey, straight, tmp_path):
    """Killed after step 10, with a checkpoint of step 7: 8 to 10 are trained again and stand in the log once.

    --resume is not given. The folder holds another run, which the first start moves aside and the second leaves there.
    """
    output = tmp_path / "output"
    output.mkdir()
    (output / "checkpoint-last.pth").write_bytes((straight / "checkpoint-last.pth").read_bytes())
    flags = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    with Agent(surveys.arguments(survey, output, *PAIR), tmp_path / "said.txt", *flags, kills=[[1, 10]]) as agent:
        message = agent.wait()
    assert f"{output} held an earlier run: now in {output / 'earlier-1'}" in message
    assert f"restarted by torchrun: resuming the run in {output}" in message
    assert "resumed at epoch 2, update 0 (step 7)" in message
    assert_same_end(output, straight)
    assert [path.name for path in (output / "earlier-1").iterdir()] == ["checkpoint-last.pth"]
    assert not (output / "earlier-2").exists()


@pytest.mark.slow
def test_killed_again_and_again(survey, tmp_path):
    """Kills of either process, at random steps and at random moments from the first import on."""
    arguments = [*PAIR, "--epochs", "40", "--save_minutes", "0.0005"]
    results = surveys.run_ranks(surveys.arguments(survey, tmp_path / "straight", *arguments), tmp_path)
    assert [status for status, _ in results] == [0, 0], results
    rng = random.Random(3)
    steps = sorted(rng.sample(range(5, 280), 4))
    kills = [[rng.randrange(2), step] for step in steps] + [[rng.randrange(2), rng.uniform(2, 9)] for _ in range(4)]
    output = tmp_path / "output"
    flags = ["--standalone", "--nproc-per-node=2", f"--max-restarts={len(kills)}"]
    with Agent(surveys.arguments(survey, output, *arguments), tmp_path / "said.txt", *flags, kills=kills) as agent:
        message = agent.wait(600)
    assert message.count("restarted by torchrun") >= len(steps)
    assert_same_end(output, tmp_path / "straight")
    assert not list(output.glob("earlier-*"))


def run_two_machines(arguments: list[str], folder: Path, meeting: str, kills: list | None = None) -> list[str]:
    """Runs two agents with one process each, as on two machines; returns what each said."""
    place = f"127.0.0.1:{free_port()}"
    flags = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
    if meeting == "static":
        flags += ["--master-addr=127.0.0.1", f"--master-port={place.rpartition(':')[2]}"]
    else:
        flags += [f"--rdzv-backend={meeting}", f"--rdzv-endpoint={place}", "--rdzv-id=job", "--local-addr=127.0.0.1"]
    with ExitStack() as stack:
        agents = [
            stack.enter_context(
                Agent(arguments, folder / f"said-{node}.txt", *flags, f"--node-rank={node}", kills=kills)
            )
            for node in (0, 1)
        ]
        return [agent.wait() for agent in agents]


def test_two_machines(survey, straight, tmp_path):
    """Two agents with one process each train what one agent with two does, bit for bit."""
    messages = run_two_machines(surveys.arguments(survey, tmp_path / "output", *PAIR), tmp_path, "static")
    assert ["processes 2" in message for message in messages] == [True, False]
    assert_same_end(tmp_path / "output", straight)


@pytest.mark.slow
@pytest.mark.parametrize("meeting", ["static", "c10d"])
def test_two_machines_that_lose_processes(survey, straight, tmp_path, meeting):
    """First the process of the second machine, then that of the first.

    With c10d the first agent does not count the restart that the second one called for, so that the second kill may not
    take place: what the processes go by must not hang on their agents' counts being equal.
    """
    arguments = surveys.arguments(survey, tmp_path / "output", *PAIR)
    messages = run_two_machines(arguments, tmp_path, meeting, kills=[[1, 9], [0, 12]])
    again = sum(message.count("restarted by torchrun") for message in messages)
    assert again == 2 or (meeting == "c10d" and again == 1)
    assert_same_end(tmp_path / "output", straight)
