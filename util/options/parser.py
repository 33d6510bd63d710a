"""The parser of every program: no abbreviations, the nearest flag for a wrong one, --version."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import Any, ClassVar, NoReturn

from util.options.version import VERSION


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes flags in full only, and says which one an unknown flag may have meant.

    Attributes:
        command_line: the words that were parsed last in this process, for the page of a run: it names the command.
    """

    command_line: ClassVar[tuple[str, ...]] = ()

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, **{"allow_abbrev": False, **options})
        if self.add_help:
            self.add_argument("--version", action="version", version=f"GRID-MAE {VERSION}", help="print it and exit")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The parsed options; ends the program with status 2 and a message if a flag is unknown."""
        Parser.command_line = tuple(sys.argv[1:] if args is None else args)
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return parsed

    def _meant(self, unknown: list[str]) -> str:
        """The flags that unknown ones are nearest to, as the end of a message."""
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        wrong = [argument.split("=")[0] for argument in unknown if argument.startswith("-")]
        near = [difflib.get_close_matches(f"--{flag.strip('-')}", flags, n=1, cutoff=0.6) for flag in wrong]
        meant = list(dict.fromkeys(flag for flags in near for flag in flags))
        return f"; did you mean {' and '.join(meant)}?" if meant else "; --help lists the flags"

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2 and one line, without the usage of a hundred flags."""
        self.exit(2, f"{self.prog}: error: {message}\n")
