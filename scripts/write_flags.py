"""Write docs/flags.md, the tables of every flag, and the names that parsers know before torch is imported."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from datasets.folds.make_folds import SPLITS
from datasets.loading.token_masks import MASK_SHAPES
from models_mae_group_channels import SCALE_HEADS, STEMS
from util.finetuning.choices import finetune_choices
from util.inference.products import PRODUCTS
from util.options.parser import Parser

PAGE = Path(__file__).resolve().parents[1] / "docs" / "flags.md"
NAMES = Path(__file__).resolve().parents[1] / "util" / "options" / "table_names.py"
COMMAND = "python -m scripts.write_flags"
PROGRAMS = (
    "main_pretrain",
    "main_finetune",
    "main_inference",
    "scripts.describe_grids",
    "scripts.worth_it",
    "scripts.layer_report",
    "scripts.known_labels",
    "scripts.export",
    "scripts.make_sample_survey",
)
"""Programs with tables on the page."""
OTHER_PROGRAMS = (
    "scripts.benchmark",
    "scripts.benchmark_sources",
    "scripts.fingerprint",
    "scripts.gpu_check",
    "scripts.measure_gapfill",
    "scripts.measure_superresolution",
)
"""Programs for measuring and testing: only their `--help` lists the flags."""
HEAD = f"""# Flags

Every flag of the programs. `{COMMAND}` writes this page from their parsers; do not edit it by hand. An empty
default means none, or what the description says in brackets. Each program prints the same list with `--help`, and so do
the benchmarks and measuring scripts, which are not listed here.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page, and the names of tables."""
    Parser("write_flags", description=__doc__).parse_args(argv)
    for path, text in ((PAGE, flags_page()), (NAMES, table_names())):
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    return 0


def table_names() -> str:
    """The text of util/options/table_names.py."""
    tables = {
        "PRETRAIN": {"mask_shapes": tuple(MASK_SHAPES), "scale_heads": tuple(SCALE_HEADS), "stems": tuple(STEMS)},
        "FINETUNE": asdict(finetune_choices(splits=tuple(SPLITS))),
        "PRODUCTS": {name: product.help for name, product in PRODUCTS.items()},
    }
    parts = [
        f'"""Names that tables declare, for `early.py`: written by `{COMMAND}`, do not edit."""',
        "",
        "# fmt: off",
        "# ruff: noqa: E501",
    ]
    for table, entries in tables.items():
        parts += [f"{table} = {{", *(f"    {name!r}: {value!r}," for name, value in entries.items()), "}"]
    return "\n".join(parts) + "\n"


def flags_page() -> str:
    """The text of docs/flags.md."""
    parsers = {name: parser_of(name) for name in PROGRAMS}
    known = flags_of(parsers["main_pretrain"])
    parts = [HEAD, " · ".join(f"[{name}](#{anchor(name)})" for name in PROGRAMS) + "\n"]
    for name, parser in parsers.items():
        parts.append(program_section(name, parser, shared={} if name == "main_pretrain" else known))
    return "\n".join(parts)


def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of a program, by the name that `python -m` takes."""
    parser: argparse.ArgumentParser = importlib.import_module(program).get_args_parser()
    return parser


def flags_of(parser: argparse.ArgumentParser) -> dict[str, tuple[str, ...]]:
    """Rows of the table by flag, those of subcommands included."""
    rows: dict[str, tuple[str, ...]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                rows.update(flags_of(command))
        rows.update({flag: row_of(parser, action) for flag in action.option_strings})
    return rows


def program_section(
    name: str, parser: argparse.ArgumentParser, *, shared: dict[str, tuple[str, ...]], heading: str = "##"
) -> str:
    """Heading and tables of one program; flags that equal those in `shared` are only named."""
    lines = [f"{heading} {name}", "", f"    python -m {name} ...", ""]
    same = []
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            row = row_of(parser, action)
            if isinstance(action, argparse._HelpAction | argparse._VersionAction):
                continue
            if action.option_strings and shared.get(action.option_strings[0]) == row:
                same.append(f"`{action.option_strings[0]}`")
                continue
            rows.append(row)
        if rows:
            lines += table(group.title or "", rows)
    if same:
        lines += ["As in [main_pretrain](#main_pretrain): " + ", ".join(same) + ".", ""]
    return "\n".join(lines)


def table(title: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table of a group of flags, as lines."""
    named = title if title not in ("options", "optional arguments", "positional arguments") else "general"
    head = [f"**{named.capitalize()}**", "", "| flag | default | choices | meaning |", "|---|---|---|---|"]
    return [*head, *("| " + " | ".join(row) + " |" for row in rows), ""]


def row_of(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str, str, str]:
    """Flag, default, choices and meaning of an action, as cells of a Markdown table."""
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.dest}`"
    choices = [str(choice) for choice in action.choices or ()]
    shown = choices if action.metavar is None or len(choices) <= 4 else []
    default = default_of(action)
    text = (parser._get_formatter()._expand_help(action) if action.help else "").replace("|", "\\|")
    for repeated in (f" ({default.strip('`')})", f" (default: {default.strip('`')})"):
        text = text.removesuffix(repeated)
    return names, default, " ".join(f"`{choice}`" for choice in shown), text


def default_of(action: argparse.Action) -> str:
    """The default as one would type it; a switch is on or off; empty where the program decides."""
    value = action.default
    if action.required:
        return "required"
    if value is None or value is argparse.SUPPRESS or value == "" or value == []:
        return ""
    if action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction):
        return "on" if value == action.const else "off"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    root = str(PAGE.parents[1]) + "/"
    return f"`{text.removeprefix(root)}`"


def anchor(heading: str) -> str:
    """The anchor of a heading in rendered Markdown."""
    return "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "-_ ").replace(" ", "-")


if __name__ == "__main__":
    raise SystemExit(main())
