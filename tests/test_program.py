"""How programs end: with one message and an exit status where the cause is known."""

import pytest

from util.processes import program
from util.processes.program import RunFailed, run_program

OPTIONS = {"device": "cpu", "world_size": 1, "local_rank": -1, "dist_url": "env://"}
FULL = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 15.77 GiB")


@pytest.fixture(autouse=True)
def no_logging(monkeypatch):
    """The log goes where pytest sends it."""
    monkeypatch.setattr(program, "setup_logging", lambda rank: None)


def ended(prepare_error=None, work_error=None):
    """Exit status of a program, and the errors that its run was closed with."""
    closed = []

    def prepare(device, ranks):
        if prepare_error:
            raise prepare_error

    def work(run, stop):
        raise work_error

    status = run_program("p", prepare=prepare, work=work, close=lambda run, error: closed.append(error), **OPTIONS)
    return status, closed


def test_a_full_gpu_is_named_with_what_to_do(capsys):
    assert ended(prepare_error=FULL) == (1, [])
    status, (closed,) = ended(work_error=FULL)
    assert status == 1 and isinstance(closed, RunFailed)
    said = (
        "p: error: the memory of the GPU is not enough (CUDA out of memory. Tried to allocate 2.00 GiB.); use a small"
    )
    assert capsys.readouterr().err.count(said) == 2


def test_a_fault_of_the_program_keeps_its_traceback():
    fault = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    for when in ("prepare_error", "work_error"):
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            ended(**{when: fault})


def test_a_failed_run_is_one_message(capsys):
    status, (closed,) = ended(work_error=RunFailed("loss is not finite"))
    assert status == 1 and str(closed) == "loss is not finite"
    assert capsys.readouterr().err == "p: error: loss is not finite\n"
