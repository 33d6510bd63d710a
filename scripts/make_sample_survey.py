"""Write the synthetic sample survey: `python -m scripts.make_sample_survey --output_dir sample_survey`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from datasets.synthetic.sample_survey import DEFAULT_DIRECTORY, write_sample_survey


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default=DEFAULT_DIRECTORY, help="directory to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rocks (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=2048, help="rows of 100 m, even (default: %(default)s)")
    parser.add_argument("--cols", type=int, default=2048, help="columns of 100 m, even (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing sample survey in that directory")
    return parser


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
