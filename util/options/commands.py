"""Commands that a program prints for the user to run next, quoted for the shell of this system."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path


def command(program: str, *words: object) -> str:
    """The line that runs a program of this project.

    Args:
        program: its module, such as `main_pretrain`.
        *words: flags and values; they are quoted where the shell needs it.
    """
    line = ["python", "-m", program, *(str(word) for word in words)]
    return subprocess.list2cmdline(line) if os.name == "nt" else shlex.join(line)


def without_flags(argv: Sequence[str], *flags: str) -> list[str]:
    """A command line without some of its flags that take no value."""
    return [word for word in argv if word not in flags]


def after_pretraining(checkpoint: Path) -> list[str]:
    """Commands that use a checkpoint of main_pretrain: maps of it, and fine-tuning on labels."""
    maps, finetuned = checkpoint.parent / "maps", checkpoint.parent / "finetuned"
    embeddings = ("--output", "embeddings", "--clusters", 6, "--output_dir", maps)
    labels = ("--labels", "LABELS", "--baselines", "--output_dir", finetuned)
    return [
        command("main_inference", "--checkpoint", checkpoint, *embeddings),
        command("main_finetune", "--finetune", checkpoint, *labels),
    ]


def after_finetuning(checkpoint: Path) -> list[str]:
    """Commands that use a checkpoint of main_finetune that was fitted on all labels: the map."""
    maps = ("--output", "prediction", "--output_dir", checkpoint.parent / "maps")
    return [command("main_inference", "--checkpoint", checkpoint, *maps)]
