"""What a skill says in words, and the commands that follow."""

import shlex
from pathlib import Path

import pytest

from util.metrics.verdict import skill_verdict
from util.options.commands import after_finetuning, after_pretraining, command, without_flags
from util.options.early import PARSERS


def scores(**skills):
    return {layer: {scale: {"skill": skill} for scale, skill in of.items()} for layer, of in skills.items()}


@pytest.mark.parametrize(
    ("skills", "said"),
    [
        ({"gravity": {"1x": 0.31, "2x": 0.12}}, "better than interpolation in all that is scored, skill +0.12"),
        ({"gravity": {"1x": -0.5}}, "skill -0.50 (gravity 1x), worse than interpolation or the mean in all"),
        ({"gravity": {"1x": 0.2}, "magnetics": {"4x": -0.1}}, "in 1 of 2: magnetics 4x; docs/choosing.md"),
    ],
)
def test_verdicts(skills, said):
    assert said in skill_verdict(scores(**skills))


def test_nothing_is_said_of_what_was_not_scored():
    assert skill_verdict({}) == "" == skill_verdict(scores(gravity={"1x": float("nan"), "2x": None}))


def test_the_page_that_is_named_exists():
    assert (Path(__file__).parents[1] / "docs" / "choosing.md").exists()


def test_commands_are_quoted_and_their_flags_exist():
    checkpoint = Path("my runs/a/checkpoint-last.pth")
    for line in (*after_pretraining(checkpoint), *after_finetuning(checkpoint)):
        python, module, program, *words = shlex.split(line)
        assert (python, module) == ("python", "-m") and str(checkpoint) in words
        args = PARSERS[program]("").parse_args(words)
        assert args.output_dir.startswith("my runs/a/")
    assert command("main_pretrain", "--data_dir", "my grids") == "python -m main_pretrain --data_dir 'my grids'"
    assert without_flags(["--a", "1", "--suggest", "--b"], "--suggest") == ["--a", "1", "--b"]
