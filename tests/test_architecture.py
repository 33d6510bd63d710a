"""Who may import whom: imports point one way, between folders and between the rooms inside them, and some packages
have one user. Read from the sources.
"""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAINS = {"main_pretrain", "main_finetune", "main_inference"}
ENCODER = "models_vit_group_channels"  # and the models for fine-tuning
MODEL = "models_mae_group_channels"
FRONT = "gridmae"  # the mains as functions
OURS = {"datasets", "util", "study", "scripts", "examples", "tests", ENCODER, MODEL, FRONT, *MAINS}

ROOMS = {
    "datasets": [
        {"ground", "layers", "loading", "synthetic"},
        {"rasters", "folds"},
        {"survey"},
        {"labels", "scenes"},
        {"pretraining", "finetuning"},
    ],
    "util": [
        {"hardware", "options", "mosaics", "plots", "geotiff"},
        {"model", "processes"},
        {"checkpoints", "training", "inference", "metrics", "run_page"},
        {"records"},
        {"finetuning", "export"},
    ],
}
"""Rooms of the two libraries, floor by floor: a room may import rooms of its own floor and of those below it."""


def project_files() -> list[str]:
    """Every Python file of the project, relative to its root."""
    folders = [ROOT / name for name in ("datasets", "util", "study", "scripts", "examples", "tests")]
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


@functools.cache
def nodes_of(source: str) -> list[ast.AST]:
    """Everything in the syntax of a source; parsed once, as many tests ask."""
    return list(ast.walk(ast.parse(source)))


@functools.cache
def imports_of(source: str) -> set[str]:
    """Full dotted names of all that a source imports, also inside functions: `from a.b import c` gives a.b.c."""
    names = set()
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the full name"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def is_within(name: str, package: str) -> bool:
    """True if the dotted name is the package or something in it."""
    return name == package or name.startswith(package + ".")


def floor_of(package: str, room: str) -> int:
    """Number of the floor that a room of `datasets` or `util` stands on, 0 for the lowest."""
    return next(number for number, rooms in enumerate(ROOMS[package]) if room in rooms)


def room_of(name: str) -> tuple[str, str] | None:
    """Package and room of a dotted name, None for what lies in no room: `util.model.patches.x` gives util, model."""
    package, _, rest = name.partition(".")
    room, _, inside = rest.partition(".")
    return (package, room) if inside and (ROOT / package / room).is_dir() and package in ROOMS else None


def is_upward(file: str, name: str) -> bool:
    """True if a file of a room imports a room of a higher floor of the same package."""
    here, there = room_of(file.removesuffix(".py").replace("/", ".")), room_of(name)
    if here is None or there is None or here[0] != there[0]:
        return False
    return floor_of(*there) > floor_of(*here)


def uses_environ(source: str) -> bool:
    """True if a source reads or sets environment variables."""
    names = imports_of(source)
    attributes = {
        f"{node.value.id}.{node.attr}"
        for node in nodes_of(source)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return bool((names | attributes) & {"os.environ", "os.getenv", "os.putenv"})


def may_import(file: str, name: str) -> bool:
    """The rule: tests and scripts import anything below them, mains the model, datasets and util, and so on
    down.
    """
    module = file.rpartition("/")[2]
    folder = file.partition("/")[0] if "/" in file else ""
    top = name.split(".")[0]
    if top not in OURS:
        return True
    if is_upward(file, name):
        return False
    if folder == "tests":
        return True
    if folder in ("scripts", "examples"):
        return top != "tests"
    if folder == "datasets":
        return top == "datasets"
    if folder == "util":
        return top == "util"
    if folder == "study":  # runs the mains as commands, and else reads what they wrote
        return top in {"study", "util"} or (top == MODEL and module == "outcomes.py")  # which counts operations
    if module == f"{ENCODER}.py":
        return top == "util"
    if module == f"{MODEL}.py":
        return top in {"util", ENCODER}
    if module == f"{FRONT}.py":
        return top in {"datasets", "util", *MAINS}
    return top in {"datasets", "util", ENCODER, MODEL}  # a main: neither scripts nor another main


@pytest.mark.parametrize("file", project_files())
def test_imports_point_one_way(file):
    names = imports_of((ROOT / file).read_text())
    assert sorted(name for name in names if not may_import(file, name)) == []


LONGEST_MAIN, LONGEST_FUNCTION = 400, 60
"""Lines of a main program, and of a function without its docstring."""


def function_lengths(source: str) -> dict[str, int]:
    """Lines of each function, without its docstring."""
    lengths = {}
    for node in nodes_of(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            docstring = 0 if text is None else text.count("\n") + 1
            lengths[node.name] = int(node.end_lineno or 0) - node.lineno + 1 - docstring
    return lengths


@pytest.mark.parametrize("main", sorted(MAINS))
def test_mains_can_be_read_in_one_go(main):
    assert len((ROOT / f"{main}.py").read_text().splitlines()) <= LONGEST_MAIN


def test_functions_are_short():
    files = [file for file in project_files() if not file.startswith("tests/")]
    lengths = {
        f"{file}: {name}": n for file in files for name, n in function_lengths((ROOT / file).read_text()).items()
    }
    assert {place: n for place, n in lengths.items() if n > LONGEST_FUNCTION} == {}


def test_parsed_options_stay_where_they_are_parsed():
    """Functions outside of the mains, util/options and scripts take values, not the object of parsed options."""
    rooms = ("datasets/", "util/", "study/", "models_")
    users = {
        file
        for file in project_files()
        if file.startswith(rooms)
        and not file.startswith("util/options/")
        and ": argparse.Namespace" in (ROOT / file).read_text()
    }
    assert users == set()


@pytest.mark.parametrize("package", ROOMS)
def test_every_folder_stands_on_one_floor(package):
    folders = sorted(path.parent.name for path in (ROOT / package).glob("*/__init__.py"))
    assert folders == sorted(room for rooms in ROOMS[package] for room in rooms)
    assert sorted(path.name for path in (ROOT / package).glob("*.py")) == ["__init__.py"]


def test_rooms_import_each_other_in_one_direction():
    arrows = set()
    for file in project_files():
        here = room_of(file.removesuffix(".py").replace("/", "."))
        theirs = {room_of(name) for name in imports_of((ROOT / file).read_text())}
        arrows |= {(here, there) for there in theirs if here is not None and there not in (None, here)}
    while leaves := {there for _, there in arrows} - {here for here, _ in arrows}:
        arrows = {(here, there) for here, there in arrows if there not in leaves}
    assert sorted(arrows) == []


@pytest.mark.parametrize(
    ("package", "only"),
    [
        ("torch.distributed", {"util/processes/distributed.py", "util/processes/fsdp.py"}),
        ("torch.nn.parallel", {"util/processes/distributed.py"}),
        ("torch.utils.tensorboard", {"util/records/log.py"}),
        ("tensorboard", {"util/records/log.py"}),
        ("matplotlib.pyplot", set()),  # global state
    ],
)
def test_some_packages_have_one_user(package, only):
    users = {
        file
        for file in project_files()
        if not file.startswith("tests/")
        and any(is_within(name, package) for name in imports_of((ROOT / file).read_text()))
    }
    assert users <= only


def test_environment_variables_are_read_in_one_place():
    users = {file for file in project_files() if uses_environ((ROOT / file).read_text())}
    assert {file for file in users if not file.startswith(("tests/", "scripts/"))} <= {"util/processes/distributed.py"}


def test_the_model_leans_on_its_own_room_alone():
    """Everything of ours that the model imports, directly or not, is in util/model or one of the two model files."""
    reached, queue = set(), [MODEL]
    while queue:
        module = queue.pop()
        path = ROOT / (module.replace(".", "/") + ".py")
        if module in reached or not path.is_file():
            continue
        reached.add(module)
        for name in imports_of(path.read_text()):
            queue += [name, name.rpartition(".")[0]]
    assert {MODEL, ENCODER} <= reached
    assert {name for name in reached if not name.startswith("util.model.")} == {MODEL, ENCODER}


def test_upward_imports_are_noticed_in_every_room():
    for package, floors in ROOMS.items():
        for number, rooms in enumerate(floors):
            higher = {room for later in floors[number + 1 :] for room in later}
            for room in rooms:
                file = f"{package}/{room}/module.py"
                assert {other for other in higher if may_import(file, f"{package}.{other}.module.name")} == set()
                assert may_import(file, f"{package}.{room}.other.name")
                assert all(may_import(file, f"{package}.{other}.module") for other in floors[0])


def test_the_rules_would_notice():
    inside = "    import torch.distributed as d\n    from util.records import log\n"
    source = "import os\nfrom os import environ\ndef f():\n" + inside
    assert imports_of(source) == {"os", "os.environ", "torch.distributed", "util.records.log"}
    assert uses_environ(source) and uses_environ("import os\nos.getenv('A')") and not uses_environ("import os\nos.sep")
    assert not may_import("datasets/survey/survey.py", "util.records.log") and may_import(
        "datasets/survey/survey.py", "datasets.survey.tiles.Tile"
    )
    assert not may_import("util/records/log.py", "datasets.survey.tiles") and may_import(
        "util/training/engine.py", "util.processes.distributed"
    )
    assert not may_import("main_pretrain.py", "main_finetune.main")
    assert not may_import("main_pretrain.py", "scripts.describe_grids")
    assert may_import("gridmae.py", "main_pretrain.main") and not may_import("main_pretrain.py", "gridmae.pretrain")
    assert may_import("main_pretrain.py", "numpy") and may_import("scripts/a.py", "main_pretrain.main")
    assert may_import(f"{MODEL}.py", f"{ENCODER}.check_images") and not may_import(f"{ENCODER}.py", f"{MODEL}.a")
    assert not may_import(f"{MODEL}.py", "datasets.layers.table") and may_import("tests/test_a.py", "main_pretrain")
    assert may_import("study/report.py", "util.metrics.scores") and may_import("scripts/a.py", "study.report")
    assert may_import("study/outcomes.py", MODEL) and not may_import("study/outcomes.py", "datasets.survey.survey")
    assert not any(
        may_import("study/report.py", name) for name in ("datasets.survey.survey", "main_finetune", "scripts.a", MODEL)
    )
    assert not any(
        may_import(file, "study.report")
        for file in ("util/records/log.py", "datasets/survey/survey.py", "main_pretrain.py")
    )
    assert is_within("torch.distributed.rpc", "torch.distributed") and not is_within(
        "torch.distributedx", "torch.distributed"
    )
