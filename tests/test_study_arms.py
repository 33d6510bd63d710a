"""Arms of a study: the table, what it must hold, and the tables that come with the project."""

from pathlib import Path

import pytest

import main_finetune
import main_pretrain
from study.arms import (
    COLUMNS,
    FOR_ALL,
    PRETRAINED_ALONE,
    SET_BY_STUDY,
    StudyArm,
    check_fractions,
    read_arms,
    shared_flags,
)

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
        against=("scratch",),
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


@pytest.mark.parametrize(
    "name", ["arms.csv", "switches.csv", "objectives.csv", "two_scales.csv", "few_arms.csv", "protocol.csv"]
)
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
    (["a,forest,none,,,,,,,"], "row 2: arm a: method 'forest', expected one of network, trees, rcf"),
    (["a,trees+embeddings,none,,,,,,,"], "takes the embeddings of a pre-trained encoder; give it pre-training"),
    (["a,trees+embeddings,--scales 1,,yes,,,,,"], "leave probe empty for method trees.embeddings"),
    (["a,network,--scales 1,,,,,,,", "b,unet,,,,a,,,,"], "as_long_as does nothing for unet; leave it empty"),
    (["a,network,none,,,,,best,,"], "role 'best', expected one of null, leak, switch"),
    (["a,network,none,,yes,,,,,"], "arm a: a probe needs pre-training"),
    (["a,network,,,perhaps,,,,,"], "probe 'perhaps', expected yes or no"),
    (["a,network,--seed 3,,,,,,,"], "pretrain has --seed, which the study sets itself"),
    (["a,network,,--epochs=3,,,,,,"], "finetune has --epochs=3, which the study sets itself"),
    (["a,network,,--patience 9,,,,,,"], "finetune has --patience, which the study sets itself"),
    (["a,network,,,,,,,some,"], "label_fractions 'some', expected numbers"),
    (["a,network,,,,,,,0 1,"], "label_fractions '0 1', expected shares above 0"),
    (["a,network,,,,,,,0.1 1 0.10,"], "label_fractions '0.1 1 0.10', expected each share once"),
    (["a,network,--epo 3,,,,,,,"], "pretrain has --epo, short for --epochs, which the study sets itself"),
    (["a,network,,--see=3,,,,,,"], "finetune has --see=3, short for --seed, which the study sets itself"),
    (
        ["a,network,,,,,,,,", "b,network,,--head 'x,,,,,,"],
        "row 3: arm b: finetune .*: No closing quotation; expected flags",
    ),
    (["a,network,,,,,,,,Is it, well, worth it?"], "row 2 has more cells than the header, which has 11; quote texts"),
    (["a,network,,,,,,,,", "b,network,,,,,,,,So, so, so"], "row 3 has more cells than the header"),
    (['a,network,,,,,,,,"Is it'], "not a CSV text file .*; save it as CSV, UTF-8"),
    (["a,network,,,,,b,,,"], "arm a: against 'b' is no other arm here; expected out of a"),
    (["a,network,,,,,a,,,"], "arm a: against 'a' is no other arm"),
    (["a,network,,,,,,,,", "a,network,,,,,,,,"], "arms of the same name among a, a"),
    (["a,network,none,,,,,,,", "b,network,,,,a,,,,"], "as_long_as 'a' must be a network with pre-training"),
    (
        ["a,trees+embeddings,--scales 1,,,,,,,", "b,network,,,,a,,,,"],
        "as_long_as 'a' must be a network with pre-training",
    ),
    (["a,network,,,,,,,,", "b,trees,,,,a,,,,"], "arm b: as_long_as does nothing for trees"),
    (["a,network,,,,,,null,,"], "role null needs in `against` the one arm that it repeats"),
    (["a,network,none,,,,,,,", "b,network,,,,,a a,,,"], "arm b: against names an arm twice"),
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
    (tmp_path / "latin.csv").write_bytes("arm,question\na,Größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.csv: not a CSV text file .*; save it as CSV, UTF-8"):
        read_arms(tmp_path / "latin.csv")


def test_a_comparison_with_an_arm_that_is_not_chosen_is_left_out(caplog):
    with caplog.at_level("INFO", logger="study.arms"):
        scratch, trees = read_arms(SHIPPED / "arms.csv", only=["scratch", "trees"])
    assert scratch == StudyArm("scratch") and trees == StudyArm("trees", method="trees")
    assert [record.message for record in caplog.records] == [
        "trees is not compared with scale124: not among --only_arms"
    ]
    kept = read_arms(SHIPPED / "arms.csv", only=["scratch", "scale1"])[1]
    assert kept.against == ("scratch",) and kept.question
    multi = read_arms(SHIPPED / "protocol.csv", only=["scratch", "scale124", "trees"])[1]
    assert multi.against == ("scratch", "trees") and multi.question


@pytest.mark.parametrize(
    ("only", "pattern"),
    [
        (["scratch", "scratch_as_long"], "arm scratch_as_long: as_long_as 'scale124' is no other arm here"),
        (["scratch", "scale124_again"], "arm scale124_again: against 'scale124' is no other arm here"),
    ],
)
def test_an_arm_that_needs_another_is_not_chosen_alone(only, pattern):
    with pytest.raises(ValueError, match=pattern):
        read_arms(SHIPPED / "arms.csv", only=only)


def test_only_an_arm_of_the_table_may_be_left_out_of_a_comparison(tmp_path):
    path = write(tmp_path, "a,network,,,,,typo,,,", "b,network,,,,,,,,")
    with pytest.raises(ValueError, match="arm a: against 'typo' is no other arm here"):
        read_arms(path, only=["a"])


@pytest.mark.parametrize("flag", PRETRAINED_ALONE)
def test_what_changes_the_input_of_some_arms_is_for_the_table(tmp_path, flag):
    with pytest.raises(ValueError, match=f"--pretrain_flags has {flag}, .*scratch and trees would not get"):
        shared_flags("--pretrain_flags", f"--lr 1 {flag} 3")
    (arm,) = read_arms(write(tmp_path, f"a,network,{flag} 3,,,,,,,"))
    assert arm.pretrain == (flag, "3")


@pytest.mark.parametrize(
    ("option", "text", "pattern"),
    [
        ("--pretrain_flags", "--mode base", "--pretrain_flags has --mode, short for --model, which must be the same"),
        ("--pretrain_flags", "--drop=3", "has --drop=3, short for --dropped_bands, which networks from scratch"),
        ("--finetune_flags", "--inp 3", "--finetune_flags has --inp, short for --input_size, which must be the same"),
        ("--finetune_flags", "--lr 1 --epo 3", "--finetune_flags has --epo, short for --epochs, which the study sets"),
        ("--finetune_flags", "--head 'x", "--finetune_flags .*: No closing quotation; expected flags quoted as for"),
    ],
)
def test_flags_that_cannot_be_shared_are_refused(option, text, pattern):
    with pytest.raises(ValueError, match=pattern):
        shared_flags(option, text)


def test_other_flags_are_shared():
    assert shared_flags("--pretrain_flags", "--min_valid 0.2 --mask_ratio=0.9 --batch_size 8") == (
        *("--min_valid", "0.2", "--mask_ratio=0.9", "--batch_size", "8"),
    )
    assert shared_flags("--finetune_flags", "--tree_samples 400 --label_scale log")[0] == "--tree_samples"


def test_no_flag_of_the_programs_is_refused_as_if_it_were_short_for_another():
    refused = {*SET_BY_STUDY, *FOR_ALL, *PRETRAINED_ALONE}
    for main in (main_pretrain, main_finetune):
        flags = {flag for action in main.get_args_parser()._actions for flag in action.option_strings}
        begun = {(flag, name) for flag in flags for name in refused if name.startswith(flag) and name != flag}
        assert begun == {("--model", "--model_type")}


def test_shares_of_the_labels_are_above_0_and_each_once():
    check_fractions([0.01, 0.1, 1.0], "x")
    for values in ([0.0, 1.0], [2.0], [float("nan")], [-0.1]):
        with pytest.raises(ValueError, match="x, expected shares above 0 and at most 1"):
            check_fractions(values, "x")
    with pytest.raises(ValueError, match="x, expected each share once"):
        check_fractions([0.1, 0.1], "x")
