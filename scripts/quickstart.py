"""From nothing to a trained small model on a CPU, in a few minutes.

Makes the environment, writes the sample survey, describes it, pre-trains the smallest model on it, and maps what the
model makes of it. Safe to run again: the environment and the survey are kept, and each run trains in a new folder,
quickstart_output/run-1, run-2, ...

  python scripts/quickstart.py [options of main_pretrain]        for example: python scripts/quickstart.py --epochs 20
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.environment import INTERRUPTED, ROOT, NoEnvironment, call, environment_python, how_to_activate, say

SURVEY = ["--train_path", "sample_survey/layers.csv"]
TRAINING = ["--epochs", "25", "--warmup_epochs", "2"]
SET_HERE = ("--output_dir", "--log_dir", "--dry_run", "--resume")
MAPS = (["embeddings", "--clusters", "6"], ["reconstruction"], ["gapfill"])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps in turn; returns the exit status of the first that fails, else 0."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    refused = [name for name in SET_HERE if any(word.split("=")[0] == name for word in arguments)]
    if refused:
        say(
            f"quickstart: {refused[0]} cannot be given, as the quick start trains from the beginning in a new folder "
            "and maps what it left there; leave it out, or run main_pretrain itself (README.md)"
        )
        return 2
    try:
        python = environment_python(os.environ)
    except NoEnvironment as error:
        say(str(error))
        return 2
    output = new_folder()
    step("1/4 The sample survey: gravity and magnetics of the same synthetic rocks, in sample_survey/")
    status = call([python, "-m", "scripts.make_sample_survey", "--output_dir", "sample_survey"])
    if status:
        return status
    step("2/4 What training will read")
    status = call([python, "-m", "scripts.describe_grids", *SURVEY])
    if status:
        return status
    step(f"3/4 Pre-training, a few minutes; results go to {output}")
    written = ["--output_dir", output, "--log_dir", output]
    status = call([python, "-m", "main_pretrain", *SURVEY, *TRAINING, *written, *arguments])
    if status:
        if status == INTERRUPTED:
            say(f"quickstart: stopped before the maps; {output}/report.html has the command that goes on training")
        return status
    step(f"4/4 Maps of the whole survey, in {output}/maps")
    trained = ["--checkpoint", f"{output}/checkpoint-last.pth", "--output_dir", f"{output}/maps"]
    for product in MAPS:
        status = call([python, "-m", "main_inference", *trained, "--output", *product])
        if status:
            return status
    say_what_it_left(python, output)
    return 0


def new_folder() -> str:
    """Makes quickstart_output/run-N with the first number that is free."""
    number = 1
    while (ROOT / f"quickstart_output/run-{number}").exists():
        number += 1
    output = f"quickstart_output/run-{number}"
    (ROOT / output).mkdir(parents=True)
    return output


def step(text: str) -> None:
    """Prints the heading of a step."""
    print(f"\n== {text}", flush=True)


def say_what_it_left(python: str, output: str) -> None:
    """Prints the files of a run, and how to go on."""
    pictures = sorted(path.name for path in (ROOT / output).glob("*.png"))
    picture = f"{output}/{pictures[-1]}" if pictures else "none"
    step("Done. What it left:")
    print(f"page:        {output}/report.html   (open it in a browser; {output}/maps/report.html shows the maps)")
    print(f"checkpoint:  {output}/checkpoint-last.pth")
    print(f"curves:      {python} -m tensorboard.main --logdir {output}")
    print(f"picture:     {picture}   (input, masked input, reconstruction, target and error per layer and scale)")
    print(f"maps:        {output}/maps   (GeoTIFFs for a GIS, each with a picture beside it:)")
    for path in sorted((ROOT / output / "maps").rglob("*.png")):
        print(f"             {path.relative_to(ROOT).as_posix()}")
    activate = how_to_activate(python)
    if activate:
        step("Next: activate the environment in this terminal, then use your own data (README.md)")
        print(f"    {activate}")
        print("    python -m scripts.describe_grids --data_dir FOLDER_OF_GRIDS")


if __name__ == "__main__":
    sys.exit(main())
