"""How programs start: what they answer before torch is imported, from where, and how they take wrong flags."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import main_finetune
import main_inference
import main_pretrain
from datasets.synthetic.sample_survey import DEFAULT_DIRECTORY
from scripts import parsers, write_flags
from tests.surveys import environment
from util.options import early, table_names
from util.options.parser import Parser
from util.options.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = [name.replace(".", "/") + ".py" for name in write_flags.PROGRAMS]
TORCHLESS = """
import runpy, sys
program, sys.argv[:] = sys.argv[1], sys.argv[1:]
try:
    runpy.run_path(program, run_name="__main__")
finally:
    heavy = {"torch", "numpy", "rasterio", "timm", "matplotlib", "geopandas"} & set(sys.modules)
    print("imported", sorted(heavy))
"""
"""Runs a program as a file, and prints which large packages it has imported at its end."""


def start(program: str, *arguments: str, code: str = TORCHLESS, cwd: str = "/") -> subprocess.CompletedProcess:
    """Runs a program by its path, from another folder."""
    command = [sys.executable, "-c", code, str(ROOT / program), *arguments]
    variables = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    sees_root = variables | {"PYTHONPATH": str(ROOT)} if not program.startswith("scripts") else variables
    return subprocess.run(command, cwd=cwd, env=sees_root, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_wrong_flags_import_no_torch(program):
    for arguments, status, said in (
        (["--help"], 0, "usage: "),
        (["--version"], 0, f"GRID-MAE {VERSION}"),
        (["--no_such_flag"], 2, "error: "),
    ):
        ended = start(program, *arguments)
        assert ended.returncode == status and said in ended.stdout + ended.stderr, ended.stderr
        assert ended.stdout.splitlines()[-1] == "imported []"
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        ("main_pretrain.py", "--data_dir nowhere", "main_pretrain: error: --data_dir nowhere: no such file or folder"),
        ("main_pretrain.py", "--epoch 3", "unrecognized arguments: --epoch 3; did you mean --epochs?"),
        ("main_pretrain.py", "--epochs many", "argument --epochs: many: expected a whole number of at least 1"),
        ("main_finetune.py", "--finetune gone.pth", "--finetune gone.pth: no such file or folder (current folder: /)"),
        ("main_finetune.py", "--head nosuchhead", "invalid choice: 'nosuchhead' (choose from 'linear', 'upsample')"),
        ("main_inference.py", "--output maps", "argument --output: invalid choice: 'maps'"),
    ],
)
def test_typing_errors_are_told_at_once_in_one_line(program, arguments, said):
    ended = start(program, *arguments.split())
    assert ended.returncode == 2 and ended.stdout == "imported []\n"
    assert said in ended.stderr and ended.stderr.count("\n") == 1


def test_a_program_without_torch_says_what_to_do():
    code = TORCHLESS.replace(
        "import runpy, sys\n", "import importlib.util, runpy, sys\nfind = importlib.util.find_spec\n"
    )
    code = code.replace("try:", "importlib.util.find_spec = lambda name: None if name == 'torch' else find(name)\ntry:")
    ended = start("main_pretrain.py", code=code)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert f"main_pretrain: error: {sys.executable} has no package torch; " in ended.stderr


def test_ctrl_c_during_imports_is_one_line():
    code = TORCHLESS.replace(
        "try:",
        "class Impatient:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n            raise KeyboardInterrupt\n"
        "import importlib.util\nimportlib.util.find_spec = lambda name: name\n"
        "sys.meta_path.insert(0, Impatient())\ntry:",
    )
    ended = start("main_pretrain.py", code=code)
    assert ended.stderr == "\nstopped by Ctrl-C\n" and ended.returncode == -signal.SIGINT


def test_ctrl_c_that_a_package_turned_into_an_import_error(capsys):
    error = ImportError("numpy C-extensions failed")
    error.__cause__ = KeyboardInterrupt()
    early._excepthook(ImportError, error, None)
    early._unraisablehook(SimpleNamespace(exc_value=KeyboardInterrupt()))
    assert capsys.readouterr().err == "\nstopped by Ctrl-C\n"
    early._excepthook(ValueError, ValueError("another"), None)
    assert "ValueError: another" in capsys.readouterr().err


# The names of tables


def test_names_of_tables_are_those_of_the_tables():
    assert write_flags.NAMES.read_text(encoding="utf-8") == write_flags.table_names(), (
        f"util/options/table_names.py differs from the tables; write it again: {write_flags.COMMAND}"
    )


@pytest.mark.parametrize("program", [main_pretrain, main_finetune, main_inference])
def test_the_early_parser_is_that_of_the_program(program):
    first = early.early_parser(program.__name__, program.__doc__)
    early.trust_sources(first)
    assert first.format_help() == program.get_args_parser().format_help()


@pytest.mark.parametrize("name", ["describe_grids", "worth_it", "layer_report", "known_labels", "make_sample_survey"])
def test_parsers_of_scripts_have_the_same_names(name):
    module = importlib.import_module(f"scripts.{name}")
    more = {
        "describe_grids": table_names.PRETRAIN,
        "worth_it": {"tasks": table_names.FINETUNE["tasks"]},
    }
    made = getattr(parsers, f"{name}_parser")(module.__doc__, **more.get(name, {}))
    assert made.format_help() == module.get_args_parser().format_help()
    if name == "make_sample_survey":
        assert made.get_default("output_dir") == DEFAULT_DIRECTORY


def test_a_name_that_was_added_to_a_table_since_is_left_to_the_full_parser(tmp_path, monkeypatch):
    parser = early.early_parser("main_finetune", main_finetune.__doc__)
    (tmp_path / "util/model").mkdir(parents=True)
    (tmp_path / "util/model/task_heads.py").write_text('HEADS = {"brand_new": 1}', encoding="utf-8")
    monkeypatch.setattr(early, "ROOT", tmp_path)
    early.trust_sources(parser)
    assert parser.parse_args(["--head", "brand_new"]).head == "brand_new"
    with pytest.raises(SystemExit):
        parser.parse_args(["--head", "unheard_of"])


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        (".", False),
        ("gone.csv", True),
        ("https://h/a.csv", False),
        ("/vsizip/a.zip", False),
        ("xarray:a.zarr#g", False),
    ],
)
def test_only_paths_on_disk_can_be_missing(path, missing):
    assert early.is_missing(path) == missing


# Wrong flags


@pytest.fixture
def parser():
    made = Parser("program")
    made.add_argument("--batch_size", type=int)
    made.add_argument("--data_dir")
    return made


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batchsize", "3"], "program: error: unrecognized arguments: --batchsize 3; did you mean --batch_size?\n"),
        (["--batch-size=3"], "program: error: unrecognized arguments: --batch-size=3; did you mean --batch_size?\n"),
        (["-data_dir", "a"], "program: error: unrecognized arguments: -data_dir a; did you mean --data_dir?\n"),
        (["--batch", "3"], "program: error: unrecognized arguments: --batch 3; did you mean --batch_size?\n"),
        (["--xyzzy"], "program: error: unrecognized arguments: --xyzzy; --help lists the flags\n"),
        (["stray"], "program: error: unrecognized arguments: stray; --help lists the flags\n"),
    ],
)
def test_the_nearest_flag_is_named_and_none_is_completed(parser, arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments)
    assert ended.value.code == 2 and capsys.readouterr().err == said


def test_no_program_completes_flags():
    for program in (*write_flags.PROGRAMS, *write_flags.OTHER_PROGRAMS):
        made = write_flags.parser_of(program)
        assert isinstance(made, Parser) and not made.allow_abbrev


@pytest.mark.parametrize("script", sorted(name for name in os.listdir(ROOT / "scripts") if name.endswith(".py")))
def test_scripts_that_are_run_find_the_project_from_any_folder(script):
    source = (ROOT / "scripts" / script).read_text(encoding="utf-8")
    if '__name__ == "__main__"' in source and script != "environment.py":
        assert "sys.path[0] = str(Path(__file__).resolve().parents[1])" in source
