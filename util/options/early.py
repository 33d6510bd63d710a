"""What a program answers before it imports torch, which takes seconds: --help, --version, wrong flags, wrong paths.

A program calls `before_imports` first of all when it is run. Names that tables of torch modules declare (heads, tasks,
products, ...) are read from `table_names.py`, which `python -m scripts.write_flags` writes; a name that is not there
yet but stands in the sources is left to the full parser.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from util.options import table_names
from util.options.finetune import Choices
from util.options.parser import Parser
from util.options.programs import finetune_parser, inference_parser, pretrain_parser

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("datasets/*/*.py", "util/*/*.py", "models_*.py")
"""Files that declare names of tables."""

INPUTS = ("data_dir", "train_path", "checkpoint", "finetune")
"""Options that name a file or folder which must be there."""

PARSERS: dict[str, Callable[[str], Parser]] = {
    "main_pretrain": lambda doc: pretrain_parser(doc, **table_names.PRETRAIN),
    "main_finetune": lambda doc: finetune_parser(doc, Choices(**table_names.FINETUNE)),
    "main_inference": lambda doc: inference_parser(doc, table_names.PRODUCTS),
}


def before_imports(parser: Parser) -> None:
    """Ends the program if its command line can be answered without torch; else returns.

    From here on Ctrl-C ends the program with one line, during imports too.

    Args:
        parser: of the program.
    """
    sys.excepthook, sys.unraisablehook = _excepthook, _unraisablehook
    trust_sources(parser)
    args = parser.parse_args()
    for option in INPUTS:
        path = getattr(args, option, None)
        if path and is_missing(path):
            parser.error(f"--{option} {path}: no such file or folder (current folder: {os.getcwd()})")
    if importlib.util.find_spec("torch") is None:
        _end_without_torch(parser)


def early_parser(program: str, doc: str) -> Parser:
    """The parser of a main, whose docstring is `doc`."""
    return PARSERS[program](doc)


def trust_sources(parser: Parser) -> None:
    """Makes a parser take names of tables that only the sources know."""
    tables = (*table_names.PRETRAIN.values(), *table_names.FINETUNE.values(), table_names.PRODUCTS)
    of_tables = {tuple(names) for names in tables}
    for action in parser._actions:
        if action.choices is not None and tuple(action.choices) in of_tables:
            action.choices = _Names(action.choices)


def is_missing(path: str) -> bool:
    """Whether an option names a file or folder on disk that is not there."""
    if path.startswith(("/vsi", "xarray:")) or "://" in path:
        return False
    return not os.path.exists(os.path.expanduser(path))


class _Names(tuple[str, ...]):
    """Names of a table; those that stand in quotes in the sources, perhaps added to the table since, belong to it."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or any(
            f'"{name}"' in path.read_text(encoding="utf-8")
            for pattern in SOURCES
            for path in ROOT.glob(pattern)
            if path.parent.name != "options"  # which names flags and files, but declares no table
        )


def _end_without_torch(parser: argparse.ArgumentParser) -> NoReturn:
    environment = ROOT / ".venv"
    activate = f"{environment}\\Scripts\\activate" if os.name == "nt" else f"source {environment}/bin/activate"
    remedy = f"activate the environment ({activate})" if environment.exists() else "install as docs/install.md says"
    parser.error(f"{sys.executable} has no package torch; {remedy}")


def _is_ctrl_c(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, which packages and Python itself turn into others while modules are imported."""
    while isinstance(error, ImportError | RuntimeError):
        error = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt)


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if _is_ctrl_c(error):
        sys.stderr.write("\nstopped by Ctrl-C\n")
    else:
        sys.__excepthook__(kind, error, trace)


def _unraisablehook(unraisable: sys.UnraisableHookArgs) -> None:
    if not _is_ctrl_c(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)
