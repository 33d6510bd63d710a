"""Arms of a study: the table, what it must hold, and the tables that come with the project."""

from pathlib import Path

import pytest

from study.arms import COLUMNS, StudyArm, read_arms

SHIPPED = Path(__file__).resolve().parents[1] / "study"


def write(folder: Path, *rows: str, header: str = ",".join(COLUMNS)) -> Path:
    path = folder / "arms.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_a_row_says_what_an_arm_does(tmp_path):
    path = write(
        tmp_path,
        "scratch,network,none,,,,,,,",
        'light,network,--scales 1 2 --mask_ratio 0.9,--head linear,yes,,scratch,switch,0.1 1,"Is it, well, worth it?"',
        "long,network,,,,light,,,,",
        "woods,trees,,,,,light,,,",
        "again,network,--scales 1 2 --mask_ratio 0.9,--head linear,,,light,null,,",
    )
    scratch, light, long, woods, again = read_arms(path)
    assert scratch == StudyArm("scratch") and scratch.pretrain is None
    assert light == StudyArm(
        "light",
        pretrain=("--scales", "1", "2", "--mask_ratio", "0.9"),
        finetune=("--head", "linear"),
        probe=True,
        against="scratch",
        role="switch",
        label_fractions=(0.1, 1.0),
        question="Is it, well, worth it?",
    )
    assert long.pretrain == () and long.as_long_as == "light"
    assert woods.method == "trees" and woods.pretrain is None
    assert again.seed_offset == 1000 and light.seed_offset == 0
    assert [arm.name for arm in read_arms(path, only=["scratch", "light"])] == ["scratch", "light"]


def test_only_the_name_must_be_there(tmp_path):
    assert read_arms(write(tmp_path, "plain", header="arm")) == [StudyArm("plain")]


@pytest.mark.parametrize("name", ["arms.csv", "switches.csv", "two_scales.csv", "few_arms.csv"])
def test_the_tables_that_come_with_it_can_be_read(name):
    arms = read_arms(SHIPPED / name)
    assert len({arm.name for arm in arms}) == len(arms) >= 6
    assert all(arm.question for arm in arms if arm.against)


def test_the_standard_table_has_what_an_answer_needs():
    arms = {arm.name: arm for arm in read_arms(SHIPPED / "arms.csv")}
    assert {arm.role for arm in arms.values()} == {"", "null", "leak"}
    assert {name for name, arm in arms.items() if arm.as_long_as} == {"scale1_as_long", "scratch_as_long"}
    assert arms["published_heads"].pretrain == ("--scales", "1", "2", "4", "--scale_heads", "shared")


BAD = [
    (["a b,network,none,,,,,,,"], "row 2: arm 'a b': expected letters"),
    (["a,forest,none,,,,,,,"], "row 2: arm a: method 'forest', expected network or trees"),
    (["a,network,none,,,,,best,,"], "role 'best', expected one of null, leak, switch"),
    (["a,network,none,,yes,,,,,"], "arm a: a probe needs pre-training"),
    (["a,network,,,perhaps,,,,,"], "probe 'perhaps', expected yes or no"),
    (["a,network,--seed 3,,,,,,,"], "pretrain has --seed, which the study sets itself"),
    (["a,network,,--epochs=3,,,,,,"], "finetune has --epochs=3, which the study sets itself"),
    (["a,network,,,,,,,some,"], "label_fractions 'some', expected numbers"),
    (["a,network,,,,,,,0 1,"], "label_fractions '0 1', expected shares above 0"),
    (["a,network,,,,,b,,,"], "arm a: against 'b' is no other arm here; expected out of a"),
    (["a,network,,,,,a,,,"], "arm a: against 'a' is no other arm"),
    (["a,network,,,,,,,,", "a,network,,,,,,,,"], "arms of the same name among a, a"),
    (["a,network,none,,,,,,,", "b,network,,,,a,,,,"], "as_long_as 'a' must be an arm with pre-training"),
    (["a,network,,,,,,,,", "b,trees,,,,a,,,,"], "arm b: as_long_as does nothing for trees"),
    (["a,network,,,,,,null,,"], "role null needs `against`"),
    (["a,network,,,,,,,,", "b,network,--scales 1,,,,a,null,,"], "role null, but method, flags or as_long_as differ"),
]


@pytest.mark.parametrize(("rows", "pattern"), BAD, ids=[pattern[:40] for _, pattern in BAD])
def test_a_wrong_table_is_refused_by_name(tmp_path, rows, pattern):
    with pytest.raises(ValueError, match=pattern) as error:
        read_arms(write(tmp_path, *rows))
    assert "arms.csv" in str(error.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv: no such file; expected a CSV with a row for each arm"):
        read_arms(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="expected a header with the column 'arm'"):
        read_arms(write(tmp_path, "1,2", header="a,b"))
    with pytest.raises(ValueError, match="unknown column colour; expected out of arm"):
        read_arms(write(tmp_path, "a,red", header="arm,colour"))
    with pytest.raises(ValueError, match="--only_arms z: no such arm; expected out of a"):
        read_arms(write(tmp_path, "a", header="arm"), only=["z"])
