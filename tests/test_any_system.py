"""Windows and macOS, simulated: the programs run without what Windows lacks, and no source names it but one."""

import ast
import ntpath
import os
import signal
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest

from datasets.layers import paths
from datasets.layers.table import read_layers_table, write_layers_table
from datasets.synthetic.sample_survey import write_sample_survey
from scripts import write_flags
from study import arms
from study.runner import hold
from tests.rasters import write_grid
from tests.surveys import environment
from tests.test_architecture import imports_of, is_within, nodes_of, project_files
from tests.windows import ABSENT_MODULES, ABSENT_OF_OS, ABSENT_OF_SIGNAL
from util.hardware import system

ROOT = Path(__file__).resolve().parents[1]
OURS = [file for file in project_files() if not file.startswith("tests/")]
KNOWS_SYSTEMS = "util/hardware/system.py"
ABSENT_CONTEXTS = {"fork", "forkserver"}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are looked up in /proc")
def test_programs_run_without_what_windows_lacks(tmp_path):
    variables = environment() | {"PYTHONIOENCODING": "cp1252", "PYTHONWARNDEFAULTENCODING": "1"}
    command = [sys.executable, "-W", "ignore::EncodingWarning", "-m", "tests.windows", str(tmp_path)]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stderr.decode("cp1252", errors="replace")[-4000:]
    assert b"all programs ran" in done.stdout and b"Gel\xe4nde \\u03a9" in done.stdout


def names_of_posix(source: str) -> list[str]:
    """What a source names that Windows lacks: modules, names of os and signal, ways to start processes."""
    found = [name for name in imports_of(source) if any(is_within(name, absent) for absent in ABSENT_MODULES)]
    for node in nodes_of(source):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            absent = {"os": ABSENT_OF_OS, "signal": ABSENT_OF_SIGNAL}.get(node.value.id, set())
            found += [f"{node.value.id}.{node.attr}"] * (node.attr in absent)
        if isinstance(node, ast.Constant) and node.value in ABSENT_CONTEXTS:
            found.append(f"{node.value!r}")
        if isinstance(node, ast.keyword) and node.arg in ("start_new_session", "pass_fds", "preexec_fn"):
            found.append(node.arg)
    return sorted(found)


def test_one_module_names_what_some_systems_lack():
    found = {file: names_of_posix((ROOT / file).read_text(encoding="utf-8")) for file in OURS if file != KNOWS_SYSTEMS}
    assert {file: names for file, names in found.items() if names} == {}


def without_encoding(source: str) -> list[int]:
    """Lines that open, read or write a text file without stating its encoding: Windows has another one."""
    lines = []
    for node in nodes_of(source):
        if not isinstance(node, ast.Call) or {"encoding", None} & {word.arg for word in node.keywords}:
            continue
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text"):
            lines.append(node.lineno)
        elif isinstance(node.func, ast.Name) and node.func.id == "open" and not any("b" in mode for mode in modes[-1:]):
            lines.append(node.lineno)
    return lines


def test_text_files_state_their_encoding():
    found = {file: without_encoding((ROOT / file).read_text(encoding="utf-8")) for file in OURS}
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_importing_a_program_starts_nothing():
    """Windows starts processes by importing the main module anew."""
    for file in (file for file in OURS if file.startswith(("scripts/", "main_"))):
        body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        assert not [node for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)], file


def test_the_rules_would_notice():
    assert names_of_posix("import fcntl\nfrom os import path\nos.fork()\nsignal.SIGUSR1") == [
        "fcntl",
        "os.fork",
        "signal.SIGUSR1",
    ]
    assert names_of_posix("get_context('fork')\nPopen(a, pass_fds=())") == ["'fork'", "pass_fds"]
    assert without_encoding("open(p)\nopen(p, 'w')\nopen(p, 'rb')\nopen(p, encoding='utf-8')\np.read_text()") == [
        1,
        2,
        5,
    ]


@pytest.mark.parametrize("program", (*write_flags.PROGRAMS, *write_flags.OTHER_PROGRAMS))
def test_help_is_plain_text_for_any_console(program):
    assert write_flags.parser_of(program).format_help().isascii()


# Paths


@pytest.fixture
def windows(monkeypatch):
    """The code of paths with the rules of Windows."""
    monkeypatch.setattr(ntpath, "abspath", lambda path: ntpath.normpath(ntpath.join(r"D:\work", path)))
    monkeypatch.setattr(paths, "os", SimpleNamespace(path=ntpath, sep="\\"))
    monkeypatch.setattr(paths, "Path", PureWindowsPath)


def test_a_drive_is_no_scheme():
    for path in (r"C:\data\grid.tif", "C:/data/grid.tif", "c://data/grid.tif", r"\\server\share\grid.tif"):
        assert paths.is_plain_path(path) and not paths.is_url(path) and not paths.is_remote(path)
    assert paths.is_url("s3://bucket/a.zarr") and not paths.is_plain_path("/vsicurl/http://h/a.tif")


def test_absolute_paths_by_the_rules_of_windows(windows):
    folder = PureWindowsPath(r"E:\survey")
    for path, expected in (
        ("gravity.tif", r"E:\survey\gravity.tif"),
        (r"grids\gravity.tif", r"E:\survey\grids\gravity.tif"),
        ("grids/gravity.tif", r"E:\survey\grids\gravity.tif"),
        (r"..\gravity.tif", r"E:\gravity.tif"),
        (r"C:\data\gravity.tif", r"C:\data\gravity.tif"),
        ("C:/data/gravity.tif", r"C:\data\gravity.tif"),
        (r"\\server\share\gravity.tif", r"\\server\share\gravity.tif"),
        ("https://host/gravity.tif", "https://host/gravity.tif"),
        ("/vsizip/a.zip/gravity.tif", "/vsizip/a.zip/gravity.tif"),
        (r'NETCDF:"C:\data\a.nc":gravity', r"NETCDF:C:\data\a.nc:gravity"),
        (r"NETCDF:a.nc:gravity", r"NETCDF:E:\survey\a.nc:gravity"),
        (r"xarray:C:\data\a.zarr#fine/gravity", r"xarray:C:\data\a.zarr#fine/gravity"),
        ("xarray:a.zarr#gravity", r"xarray:E:\survey\a.zarr#gravity"),
    ):
        assert paths.absolute_path(path, folder) == expected


@pytest.mark.parametrize(
    ("path", "file", "stem", "variable"),
    [
        (r"C:\data\gravity.v2.tif", r"C:\data\gravity.v2.tif", "gravity.v2", ""),
        (r'NETCDF:"C:\data\a.nc":Band1', r"C:\data\a.nc", "a_Band1", "Band1"),
        (r"NETCDF:C:\data\a.nc:Band1", r"C:\data\a.nc", "a_Band1", "Band1"),
        (r"HDF5:C:\data\a.h5://fine/g", r"C:\data\a.h5", "a_fine_g", "fine/g"),
        (r"xarray:C:\data\a.zarr#fine/gravity", r"C:\data\a.zarr", "fine_gravity", "fine/gravity"),
        (r"xarray:C:\data\a.zarr", r"C:\data\a.zarr", "a", ""),
    ],
)
def test_names_out_of_paths_of_windows_on_every_system(path, file, stem, variable):
    assert (paths.file_of(path), paths.stem_of(path), paths.variable_of(path)) == (file, stem, variable)


def test_a_table_of_layers_written_on_windows_is_read_everywhere(tmp_path):
    (tmp_path / "grids").mkdir()
    for name in ("gravity", "magnetics"):
        write_grid(tmp_path / f"grids/{name}.tif", [[1.0, 2.0], [3.0, 4.0]], resolution=100.0, nodata=-1.0)
    (tmp_path / "layers.csv").write_text("path,units\r\ngrids\\gravity.tif,mGal\r\ngrids\\magnetics.tif,nT\r\n")
    layers = read_layers_table(tmp_path / "layers.csv")
    assert [(layer.name, layer.path) for layer in layers] == [
        (name, str(tmp_path / "grids" / f"{name}.tif")) for name in ("gravity", "magnetics")
    ]
    write_layers_table(tmp_path / "again.csv", layers)
    assert read_layers_table(tmp_path / "again.csv") == layers


def test_a_backslash_may_be_part_of_a_name(tmp_path, monkeypatch):
    (tmp_path / "a\\b.tif").touch()
    assert paths.with_own_separators("a\\b.tif", tmp_path) == "a\\b.tif"
    assert paths.with_own_separators("a\\c.tif", tmp_path) == "a\\c.tif"  # nowhere: as the user wrote it


def test_flags_of_a_study_keep_their_paths(monkeypatch):
    text = r'--aoi C:\areas\north.gpkg --name "two words"'
    monkeypatch.setattr(arms, "os", SimpleNamespace(sep="\\"))
    assert arms._split(text, "flags") == ["--aoi", r"C:\areas\north.gpkg", "--name", "two words"]
    monkeypatch.setattr(arms, "os", SimpleNamespace(sep="/"))
    assert arms._split(r"a\ b", "flags") == ["a b"]


# Files and processes


def test_a_sample_survey_takes_the_place_of_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "survey").mkdir()
    rename = Path.rename

    def refuse(path, target):
        assert not Path(target).exists(), "Windows renames nothing to a name that is taken"
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert (write_sample_survey(tmp_path / "survey", rows=64, cols=64) / "layers.csv").exists()


def test_a_file_that_is_open_elsewhere_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    replace, refused = os.replace, []

    def busy(source, target):
        if len(refused) < 3:
            refused.append(target)
            raise PermissionError(13, "used by another process")
        replace(source, target)

    monkeypatch.setattr(system, "os", SimpleNamespace(name="nt", replace=busy))
    monkeypatch.setattr(system.time, "sleep", lambda _: None)
    system.replace_file(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new" and len(refused) == 3
    monkeypatch.setattr(system, "REPLACE_PATIENCE_S", -1.0)
    refused.clear()
    with pytest.raises(
        PermissionError, match=r"old cannot be replaced: another program .* has it open; close it there"
    ):
        system.replace_file(tmp_path / "new", tmp_path / "old")


def test_elsewhere_a_refusal_is_told_at_once(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(system, "os", SimpleNamespace(name="posix", replace=refuse))
    with pytest.raises(PermissionError, match="Permission denied"):
        system.replace_file(tmp_path / "new", tmp_path / "old")


def program_with_a_child() -> subprocess.Popen[bytes]:
    """A Python that has started another, whose number it says."""
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-S', '-c', {child!r}]);"
    code += "print(p.pid, flush=True); time.sleep(60)"
    return subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, **system.in_a_group())


@pytest.mark.parametrize("has_groups", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_program_ends_with_those_that_it_started(monkeypatch, has_groups, at_once):
    process = program_with_a_child()
    child = system.psutil.Process(int(process.stdout.readline()))
    if not has_groups:
        monkeypatch.delattr(os, "killpg")
    system.end_group(process, at_once=at_once)
    assert process.wait(timeout=30) == -(signal.SIGKILL if at_once else signal.SIGTERM)
    process.stdout.close()
    system.psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == system.psutil.STATUS_ZOMBIE
    system.end_group(process, at_once=at_once)  # has ended


def test_windows_starts_and_ends_programs_in_its_own_way(monkeypatch):
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    assert system.in_a_group(keeps=(3,)) == {"creationflags": 512}
    monkeypatch.delattr(os, "killpg")
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    sent = []
    system.end_group(SimpleNamespace(pid=0, send_signal=sent.append), at_once=False)
    assert sent == [1]


def test_a_held_folder_says_so(tmp_path):
    lock = hold(tmp_path)
    with pytest.raises(ValueError, match="another worth_it, or programs that it left behind, are at work there"):
        hold(tmp_path)
    lock.close()
    hold(tmp_path).close()


def test_memory_and_cores_without_proc_and_getrusage(monkeypatch):
    monkeypatch.setattr(system, "optional_module", lambda name: None)
    monkeypatch.setattr(system.Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert system.peak_resident_bytes() > 1 << 25
    memory = SimpleNamespace(rss=5, peak_wset=7)
    process = SimpleNamespace(memory_info=lambda: memory)
    monkeypatch.setattr(system.psutil, "Process", lambda: process)
    assert (system.peak_resident_bytes(), system.resident_bytes()) == (7, 5)
    assert system.usable_cpus() == system.psutil.cpu_count()  # macOS has no cpu_affinity


def test_paths_of_this_system_stay_as_they_were():
    assert paths.absolute_path("a/../b.tif", Path("/d")) == "/d/b.tif"
    assert paths.absolute_path("/x//b.tif", Path("/d")) == "/x/b.tif"
    assert paths.absolute_path("~/b.tif", Path("/d")) == str(Path.home() / "b.tif")
