"""README and docs agree with the code: flags, commands, paths, links and imports that they name exist."""

import importlib
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from scripts import write_flags

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "studies").glob("*.md")]
)
OTHER_FLAGS = set(
    "--help --version --nproc_per_node --nnodes --node_rank --master_addr --master_port --max-restarts --rdzv_backend "
    "--rdzv_endpoint --rdzv_id --rdzv-id --standalone --logdir --rm --user".split()
)
"""Flags of torchrun, TensorBoard, argparse, pip and Docker."""
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
FOLDERS = "datasets|util|study|scripts|tests|docs"
NAMED_PATH = re.compile(rf"(?<![\w/.])(?:(?:{FOLDERS})/[\w./-]*[\w/]|(?:main|models)_\w+\.py|constraints[\w-]*\.txt)")
MODULE = re.compile(r"python3? -m ([\w.]+)")
COMMAND = re.compile(r"(?:python3? -m |torchrun .*?(?=main_\w+\.py))([\w.]+)([^`#]*)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
IMPORT = re.compile(r"^\s+from ((?:datasets|util|study|scripts|models_\w+)[\w.]*) import (.+)$", re.MULTILINE)


def text_of(page: str) -> str:
    """A page's text with continued command lines joined."""
    return (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")


@cache
def flags_by_program() -> dict[str, set[str]]:
    """The flags of every program, by the name that `python -m` takes."""
    programs = (*write_flags.PROGRAMS, *write_flags.OTHER_PROGRAMS)
    return {name: set(write_flags.flags_of(write_flags.parser_of(name))) for name in programs}


def wrong_flags(text: str) -> list[str]:
    """Flags that no program has, and flags of a command line that its program does not have."""
    known = set.union(OTHER_FLAGS, *flags_by_program().values())
    wrong = [flag for flag in FLAG.findall(text) if flag not in known and flag.replace("--no-", "--") not in known]
    for line in text.splitlines():
        for program, options in COMMAND.findall(line):
            name, unquoted = program.removesuffix(".py"), re.sub(r"\"[^\"]*\"", "", options)
            allowed = flags_by_program().get(name, set(FLAG.findall(unquoted))) | OTHER_FLAGS
            wrong += [f"{name} {flag}" for flag in FLAG.findall(unquoted) if flag not in allowed]
    return wrong


def headings_of(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    return {write_flags.anchor(line.lstrip("# ").strip()) for line in page.read_text().splitlines() if line[:1] == "#"}


def broken_links(page: str) -> list[str]:
    """Relative links of a page that lead nowhere, anchors included."""
    broken = []
    for link in LINK.findall(text_of(page)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (heading and heading not in headings_of(target)):
            broken.append(link)
    return broken


def missing_names(text: str) -> list[str]:
    """What the Python lines of a text import from the project and cannot."""
    missing = []
    for module, names in IMPORT.findall(text):
        for name in names.split("#")[0].split(","):
            try:
                found = hasattr(importlib.import_module(module), name.strip())
            except ModuleNotFoundError:
                found = False
            if not found:
                missing.append(f"from {module} import {name.strip()}")
    return missing


def test_flags_page_equals_the_parsers():
    assert write_flags.PAGE.read_text(encoding="utf-8") == write_flags.flags_page(), (
        f"docs/flags.md differs from the parsers; write it again: {write_flags.COMMAND}"
    )


@pytest.mark.parametrize("program", write_flags.PROGRAMS)
def test_flags_page_has_every_flag(program):
    text, general = write_flags.flags_page(), {"-h", "--help", "--version"}
    assert sorted(flag for flag in flags_by_program()[program] - general if f"`{flag}`" not in text) == []


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page):
    assert wrong_flags(text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    paths = {path.rstrip(".") for path in NAMED_PATH.findall(text_of(page))}
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_modules_exist(page):
    modules = set(MODULE.findall(text_of(page))) - {"pip", "venv", "tensorboard.main"}
    assert sorted(name for name in modules if importlib.util.find_spec(name) is None) == []


@pytest.mark.parametrize("page", PAGES)
def test_imports_work(page):
    assert missing_names(text_of(page)) == []


def test_every_page_is_on_the_map():
    linked = set(LINK.findall((ROOT / "docs/index.md").read_text(encoding="utf-8")))
    assert sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in linked | {"index.md"}) == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def test_wrong_flags_are_found():
    assert wrong_flags("`--no_such_flag`") == ["--no_such_flag"]
    assert wrong_flags("    python -m main_inference --folds 3") == ["main_inference --folds"]
    assert wrong_flags("    torchrun --nproc_per_node=2 main_pretrain.py --data_dir DIR") == []
    assert wrong_flags("    torchrun --nproc_per_node=2 main_pretrain.py --labels A") == ["main_pretrain --labels"]
    assert missing_names("    from datasets.no_such_room import thing") == ["from datasets.no_such_room import thing"]
