"""Who may import whom: imports point one way, and some modules are the only user of theirs. Read from the
source.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAINS = {"main_pretrain", "main_finetune", "main_inference"}
ENCODER = "models_vit_group_channels"  # and the models for fine-tuning
MODEL = "models_mae_group_channels"
OURS = {"datasets", "util", "study", "scripts", "tests", ENCODER, MODEL, *MAINS}


def project_files() -> list[str]:
    """Every Python file of the project, relative to its root."""
    folders = [ROOT, *(ROOT / name for name in ("datasets", "util", "study", "scripts", "tests"))]
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in folder.glob("*.py"))


def imports_of(source: str) -> set[str]:
    """Full dotted names of all that a source imports, also inside functions: `from a.b import c` gives a.b.c."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the full name"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def is_within(name: str, package: str) -> bool:
    """True if the dotted name is the package or something in it."""
    return name == package or name.startswith(package + ".")


def uses_environ(source: str) -> bool:
    """True if a source reads or sets environment variables."""
    names = imports_of(source)
    attributes = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return bool((names | attributes) & {"os.environ", "os.getenv", "os.putenv"})


def may_import(file: str, name: str) -> bool:
    """The rule: tests and scripts import anything below them, mains the model, datasets and util, and so on
    down.
    """
    folder, module = file.rpartition("/")[::2]
    top = name.split(".")[0]
    if top not in OURS:
        return True
    if folder == "tests":
        return True
    if folder == "scripts":
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
    return top in {"datasets", "util", ENCODER, MODEL}  # a main: neither scripts nor another main


@pytest.mark.parametrize("file", project_files())
def test_imports_point_one_way(file):
    names = imports_of((ROOT / file).read_text())
    assert sorted(name for name in names if not may_import(file, name)) == []


@pytest.mark.parametrize(
    ("package", "only"),
    [
        ("torch.distributed", {"util/distributed.py", "util/fsdp.py"}),
        ("torch.nn.parallel", {"util/distributed.py"}),
        ("torch.utils.tensorboard", {"util/log.py"}),
        ("tensorboard", {"util/log.py"}),
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
    assert {file for file in users if not file.startswith(("tests/", "scripts/"))} <= {"util/distributed.py"}


def test_the_model_leans_on_nothing_that_reads_writes_or_talks():
    """What the model imports, directly or not, is none of the modules with files, processes or pictures."""
    reached, queue = set(), [MODEL]
    while queue:
        module = queue.pop()
        path = ROOT / (module.replace(".", "/") + ".py")
        if module in reached or not path.is_file():
            continue
        reached.add(module)
        names = imports_of(path.read_text())
        queue += [".".join(name.split(".")[:2]) for name in names if name.startswith("util.")]
        queue += [ENCODER for name in names if is_within(name, ENCODER)]
    forbidden = {
        f"util.{name}" for name in ("checkpoint", "distributed", "log", "figures", "device", "engine", "options")
    }
    assert {MODEL, ENCODER} <= reached and not reached & forbidden


def test_the_rules_would_notice():
    source = (
        "import os\nfrom os import environ\ndef f():\n    import torch.distributed as d\n    from util import log\n"
    )
    assert imports_of(source) == {"os", "os.environ", "torch.distributed", "util.log"}
    assert uses_environ(source) and uses_environ("import os\nos.getenv('A')") and not uses_environ("import os\nos.sep")
    assert not may_import("datasets/grid.py", "util.log") and may_import("datasets/grid.py", "datasets.tiles.Tile")
    assert not may_import("util/log.py", "datasets.tiles") and may_import("util/engine.py", "util.distributed")
    assert not may_import("main_pretrain.py", "main_finetune.main")
    assert not may_import("main_pretrain.py", "scripts.describe_grids")
    assert may_import("main_pretrain.py", "numpy") and may_import("scripts/a.py", "main_pretrain.main")
    assert may_import(f"{MODEL}.py", f"{ENCODER}.check_images") and not may_import(f"{ENCODER}.py", f"{MODEL}.a")
    assert not may_import(f"{MODEL}.py", "datasets.layers") and may_import("tests/test_a.py", "main_pretrain")
    assert may_import("study/report.py", "util.scores") and may_import("scripts/a.py", "study.report")
    assert may_import("study/outcomes.py", MODEL) and not may_import("study/outcomes.py", "datasets.grid")
    assert not any(
        may_import("study/report.py", name) for name in ("datasets.grid", "main_finetune", "scripts.a", MODEL)
    )
    assert not any(may_import(file, "study.report") for file in ("util/log.py", "datasets/grid.py", "main_pretrain.py"))
    assert is_within("torch.distributed.rpc", "torch.distributed") and not is_within(
        "torch.distributedx", "torch.distributed"
    )
