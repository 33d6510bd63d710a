"""Options of a run that differ from the defaults, as a page lists them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from util.options.early import PARSERS


def differing_options(program: str, used: Mapping[str, Any], words: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Flag, value, default and origin of each option that is not at its default.

    Args:
        program: such as `main_pretrain`.
        used: all options by name, as they were used.
        words: the command line, which tells given options from those that the program chose.
    """
    if program not in PARSERS:
        return []
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    rows = []
    for action in PARSERS[program]("")._actions:
        if action.dest not in used or not action.option_strings or used[action.dest] == action.default:
            continue
        flag, value = _flag(action, used[action.dest])
        origin = "given" if given & set(action.option_strings) else "chosen by the program"
        rows.append((flag, value, option_text(action.default), origin))
    return rows


def _flag(action: argparse.Action, value: Any) -> tuple[str, str]:
    """An option as one writes it: flag, and value if it takes one."""
    if action.nargs == 0:
        is_off = isinstance(action, argparse.BooleanOptionalAction) and not value
        return action.option_strings[-1 if is_off else 0], "off" if is_off else "on"
    return action.option_strings[0], option_text(value)


def option_text(value: Any) -> str:
    """A value of an option as it is written on a command line; pairs as NAME=VALUE."""
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " ".join(_item_text(item) for item in value)
    return str(value)


def _item_text(item: Any) -> str:
    if not isinstance(item, list | tuple):
        return str(item)
    if item and isinstance(item[0], str):
        return "=".join(str(part) for part in item if part is not None)
    return "[" + " ".join(map(str, item)) + "]"
