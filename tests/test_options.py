"""Options that programs share: values that are refused, defaults, and what they turn into."""

import argparse
import inspect
import re

import pytest

import models_mae_group_channels as models
from util.options import common as options


def parser():
    made = argparse.ArgumentParser(prog="program")
    options.add_data_options(made)
    options.add_model_options(made, scale_heads=("subpixel", "shared"))
    return made


def parse(text=""):
    return parser().parse_args(text.split())


class TestValues:
    @pytest.mark.parametrize(
        "flag, value, said",
        [
            ("--input_size", "0", "0: expected a whole number of at least 1"),
            ("--input_size", "9.5", "expected a whole number of at least"),
            ("--input_size", "big", "expected a whole number of at least"),
            ("--patch_size", "-8", "-8: expected a whole number of at least 1"),
            ("--batch_size", "0", "0: expected a whole number of at least 1"),
            ("--scales", "0", "0: expected a whole number of at least 1"),
            ("--base_resolution", "0", "0: expected a number above 0"),
            ("--base_resolution", "inf", "inf: expected a number above 0"),
            ("--base_resolution", "nan", "nan: expected a number above 0"),
            ("--tile_overlap", "1", "1: expected a number from 0 to below 1"),
            ("--tile_overlap", "-0.1", "-0.1: expected a number from 0 to below 1"),
            ("--min_valid", "1.1", "1.1: expected a number from 0 to 1"),
            ("--min_valid", "nan", "nan: expected a number from 0 to 1"),
            ("--val_fraction", "1", "1: expected a number from 0 to below 1"),
            ("--val_block", "-1", "-1: expected a whole number of at least 0"),
            ("--val_buffer", "-1", "-1: expected a whole number of at least 0"),
            ("--seed", "-1", "-1: expected a whole number of at least 0"),
            ("--dropped_bands", "-1", "-1: expected a whole number of at least 0"),
            ("--masked_bands", "x", "expected a whole number of at least"),
            ("--grouped_bands", "-1", "-1: expected a whole number of at least 0"),
            ("--mask_ratio", "1", "1: expected a number from 0 to below 1"),
            ("--extent", "all", "choose from"),
            ("--cache", "disk", "choose from"),
            ("--dataset_type", "video", "choose from"),
            ("--model_type", "temporal", "choose from"),
            ("--model", "mae_vit_huge_patch14", "choose from"),
            ("--scale_heads", "heavy", "choose from"),
        ],
    )
    def test_refused_with_status_2_and_named(self, flag, value, said, capsys):
        with pytest.raises(SystemExit) as stop:
            parser().parse_args([f"{flag}={value}"])
        assert stop.value.code == 2
        assert re.search(rf"argument {flag}: .*{re.escape(said)}", capsys.readouterr().err)

    def test_unknown_flag(self, capsys):
        with pytest.raises(SystemExit) as stop:
            parse("--tile_size 96")
        assert stop.value.code == 2
        assert "--tile_size" in capsys.readouterr().err

    def test_limits_that_are_allowed(self):
        args = parse("--min_valid 1 --tile_overlap 0 --val_fraction 0 --mask_ratio 0 --val_block 0 --val_buffer 0")
        assert (args.min_valid, args.tile_overlap, args.val_fraction, args.mask_ratio) == (1.0, 0.0, 0.0, 0.0)


class TestDefaults:
    def test_as_documented(self):
        args = parse()
        assert (args.patch_size, args.mask_ratio, args.scales) == (8, 0.75, [1, 2, 4])
        assert (args.tile_overlap, args.min_valid, args.val_fraction) == (0.75, 0.5, 0.1)
        assert (args.model, args.model_type, args.dataset_type) == ("mae_vit_tiny_patch16", "group_c", "grid")
        assert args.grouped_bands is None and args.data_dir is None and args.train_path is None

    def test_help_gives_the_default_of_every_number(self):
        """A number in brackets at the end of each help text of an option with a number for a default."""
        for action in parser()._actions:
            if isinstance(action.default, int | float) and not isinstance(action.default, bool):
                said = re.search(r"\(([\d.e-]+)(?:[^\d].*)?\)$", action.help)
                assert said and float(said[1]) == action.default, action.option_strings

    def test_options_that_are_given_with_their_default(self):
        args, given = options.parsed(parser(), "--seed 0 --grouped_bands 0 --grouped_bands 1 2 --reproject".split())
        assert given == {"seed", "grouped_bands", "reproject"}
        assert (args.seed, args.grouped_bands, args.reproject, args.input_size) == (0, [[0], [1, 2]], True, 48)
        assert options.parsed(parser(), [])[1] == frozenset()

    def test_groups_are_given_one_flag_each(self):
        assert parse("--grouped_bands 0 2 --grouped_bands 1").grouped_bands == [[0, 2], [1]]

    def test_lists_of_one_run_do_not_leak_into_the_next(self):
        made = parser()
        made.parse_args(["--dropped_bands", "1", "--scales", "1"])
        args = made.parse_args([])
        assert args.dropped_bands is None and args.scales == [1, 2, 4]


class TestSizes:
    @pytest.mark.parametrize(
        "size, patch, fits", [(100, 8, "96 or 104"), (9, 4, "8 or 12"), (97, 96, "96 or 192"), (4, 8, "8")]
    )
    def test_input_size_that_is_no_multiple_of_the_patch(self, size, patch, fits):
        message = rf"--input_size {size} is not a multiple of --patch_size {patch}; {fits} would be"
        with pytest.raises(ValueError, match=message):
            options.check_sizes(input_size=size, patch_size=patch, scales=[1])

    @pytest.mark.parametrize("scales", [[2, 4], [1, 2, 2], []])
    def test_scales_without_1_or_twice(self, scales):
        with pytest.raises(ValueError, match="--scales.*expected distinct whole numbers with 1 among them"):
            options.check_sizes(input_size=8, patch_size=8, scales=scales)

    def test_good_sizes(self):
        options.check_sizes(input_size=96, patch_size=8, scales=[4, 1, 2])

    def test_are_checked_before_anything_is_opened(self):
        with pytest.raises(ValueError, match="not a multiple"):
            options.survey_options(parse("--data_dir nowhere --input_size 10"))


class TestWhatTheyTurnInto:
    def test_survey_options(self):
        found = options.survey_options(
            parse("--train_path a.csv --model_type vanilla --dropped_bands 3 1 --base_resolution 200 --reproject")
        )
        assert found["layers_table"] == "a.csv" and found["data_dir"] is None
        assert found["one_group"] is True and found["dropped_bands"] == [3, 1]
        assert (found["base_resolution"], found["reproject"], found["extent"]) == (200.0, True, "union")

    def test_model_options_and_channels_build_a_model(self):
        args = parse("--model tiny --input_size 16 --patch_size 4 --spatial_mask --grad_checkpointing")
        channels = {
            "in_chans": 3,
            "channel_groups": ((0, 2), (1,)),
            "scales": (1, 2),
            "scored": {1: (0, 1, 2), 2: (0, 2)},
            "native_scales": (2, 1, 2),
            "detail_scales": (0.5, 0.0, 0.5),
        }
        network = models.build_model(args.model, **options.model_options(args), **channels)
        assert network.spatial_mask and network.scales == (1, 2) and network.num_groups == 2
        parameters = set(inspect.signature(models.MaskedAutoencoderGroupChannelViT).parameters)
        assert {*options.model_options(args), *channels} <= parameters

    @pytest.mark.parametrize("name", options.MODEL_NAMES)
    def test_models_have_a_long_and_a_short_name(self, name):
        assert parse(f"--model {name}").model == name
        assert parse(f"--model mae_vit_{name}_patch16").model == f"mae_vit_{name}_patch16"
