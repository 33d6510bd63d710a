"""Write the synthetic sample survey: `python -m scripts.make_sample_survey --output_dir sample_survey`."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.parsers import make_sample_survey_parser
from util.options.early import before_imports

if __name__ == "__main__":  # --help and wrong flags are answered at once: the imports below take seconds
    before_imports(make_sample_survey_parser(__doc__))

import argparse
import logging
import time
from collections.abc import Sequence

from datasets.synthetic.sample_survey import write_sample_survey


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    return make_sample_survey_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the survey and list its files; exit status 2 with one message where it is refused."""
    options = get_args_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("pyogrio").setLevel(logging.WARNING)  # it counts the records it writes
    started = time.monotonic()
    try:
        directory = write_sample_survey(
            Path(options.output_dir),
            seed=options.seed,
            rows=options.rows,
            cols=options.cols,
            overwrite=options.overwrite,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    for path in files:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.relative_to(directory)}")
    total = sum(path.stat().st_size for path in files) / 1e6
    print(f"{total:8.2f} MB  {directory}, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
