"""Averages of the weights: their numbers, and that scores and checkpoints take them while training goes on without."""

import math

import pytest
import torch

from tests import surveys
from tests.test_engine import loss_of, make_updater, samples, weights
from tests.test_resume import assert_same_end, stop_at
from util.checkpoints.encoder_weights import read_encoder_weights
from util.export.weights import shared_entries
from util.metrics.held_out import HeldOutScorer
from util.training.weight_average import WeightAverage

EMA = ["--ema_decay", "0.9"]


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def averaged(survey, tmp_path_factory):
    """The output of a run with averaged weights that nothing stopped."""
    output = tmp_path_factory.mktemp("averaged")
    assert surveys.train(survey, output, *EMA, *surveys.HELD_OUT) == 0
    return output


def parameter(*values):
    return torch.nn.Parameter(torch.tensor(values))


def average_of(average, weight):
    with average.swapped():
        return weight.detach().clone()


def test_numbers_on_paper():
    """Decays 1/10 and 2/11, then the largest, 0.2, in place of 3/12."""
    weight = parameter(0.0, 10.0)
    average = WeightAverage([weight], 0.2)
    expected = torch.tensor([0.0, 10.0])
    for value, decay in ((1.0, 1 / 10), (3.0, 2 / 11), (-2.0, 0.2), (5.0, 0.2)):
        weight.data.fill_(value)
        average.update(torch.tensor(True))
        expected = decay * expected + (1 - decay) * value
        torch.testing.assert_close(average_of(average, weight), expected)
    assert average.updates == 4


def test_a_skipped_update_changes_neither_average_nor_count():
    weight = parameter(1.0, 2.0)
    average = WeightAverage([weight], 0.9)
    average.update(torch.tensor(True))
    weight.data.fill_(7.0)
    average.update(torch.tensor(False))
    assert average_of(average, weight).tolist() == [1.0, 2.0] and average.updates == 1


def test_weights_come_back_bit_for_bit_even_after_an_error():
    weight = parameter(0.1, 0.2)
    average = WeightAverage([weight], 0.9)
    weight.data.copy_(torch.tensor([0.3, 0.7]))
    with pytest.raises(OSError, match="disk"), average.swapped():
        assert torch.equal(weight, torch.tensor([0.1, 0.2]))
        raise OSError("disk")
    assert torch.equal(weight, torch.tensor([0.3, 0.7]))
    assert torch.equal(average_of(average, weight), torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("scaler", [False, True], ids=["plain", "scaler"])
def test_once_an_update_that_is_not_skipped(scaler):
    """Two micro-batches make one update; the second of three updates overflows."""
    updater = make_updater(scaler=scaler, ema_decay=0.5)
    for factor in (1.0, math.inf, 1.0):
        for _ in range(2):
            updater.backward(loss_of(updater, samples(4)) * factor)
        updater.step(0.1)
    assert updater.average.updates == 2


def test_training_is_the_same_with_averages():
    ends = []
    for decay in (0.0, 0.9):
        updater = make_updater(ema_decay=decay)
        for _ in range(3):
            updater.backward(loss_of(updater, samples(4)))
            updater.step(0.1)
            with updater.averaged():
                updater.model(samples(1))
        ends.append(weights(updater))
    assert torch.equal(*ends)


# Whole runs


def test_the_weights_of_the_last_update_are_those_of_a_run_without(survey, averaged, tmp_path):
    assert surveys.train(survey, tmp_path, *surveys.HELD_OUT) == 0
    plain, ours = surveys.checkpoint(tmp_path), surveys.checkpoint(averaged)
    assert surveys.same_bits(dict(plain["model"]), dict(ours["raw_model"]))
    assert surveys.same_bits(plain["optimizer"], ours["optimizer"])
    assert surveys.losses(tmp_path) == surveys.losses(averaged)
    assert not {"raw_model", "averaged_updates"} & plain.keys() and "ema_decay" not in plain["facts"]["options"]


def test_what_others_read_is_the_average(averaged):
    """Fine-tuning and exports take the average, and nothing of what only resuming needs."""
    state, read = surveys.checkpoint(averaged), read_encoder_weights(averaged)
    assert state["averaged_updates"] == state["step"] == 8
    assert surveys.same_bits(read.state, dict(state["model"]))
    assert not surveys.same_bits(read.state, dict(state["raw_model"]))
    assert "raw_model" not in read.contents
    assert not {"raw_model", "averaged_updates"} & shared_entries(state).keys()


def test_the_average_is_what_is_scored(survey, tmp_path, monkeypatch):
    seen, predict = [], HeldOutScorer._predict

    def predict_and_keep(scorer, network, batch):
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return predict(scorer, network, batch)

    monkeypatch.setattr(HeldOutScorer, "_predict", predict_and_keep)
    assert surveys.train(survey, tmp_path, *EMA, *surveys.HELD_OUT) == 0
    assert surveys.same_bits(seen[-1], dict(surveys.checkpoint(tmp_path)["model"]))


def test_resumed_is_not_stopped(survey, averaged, tmp_path):
    """Stopped in the middle of the second epoch of four updates."""
    with stop_at(5):
        assert surveys.train(survey, tmp_path, *EMA, *surveys.HELD_OUT) == 0
    assert surveys.checkpoint(tmp_path)["averaged_updates"] == 6
    assert surveys.train(survey, tmp_path, *EMA, *surveys.HELD_OUT, "--resume", "auto") == 0
    assert_same_end(tmp_path, averaged)
    for key in ("raw_model", "averaged_updates"):
        assert surveys.same_bits(surveys.checkpoint(tmp_path)[key], surveys.checkpoint(averaged)[key])
    vals = [[line["val"] for line in surveys.log(path, "epoch")] for path in (tmp_path, averaged)]
    assert vals[0] == vals[1]


@pytest.mark.parametrize(("decay", "now"), [("0.5", "0.5"), ("0", "'(absent)'")])
def test_another_decay_is_refused(survey, averaged, capsys, decay, now):
    flags = [*surveys.HELD_OUT, "--ema_decay", decay, "--resume", "auto"]
    assert surveys.train(survey, averaged, *flags) == 2
    assert f"options.ema_decay: checkpoint 0.9, now {now}" in capsys.readouterr().err


@pytest.mark.parametrize("decay", ["1", "-0.1", "nan"])
def test_a_decay_that_is_none_is_refused(survey, tmp_path, capsys, decay):
    with pytest.raises(SystemExit):
        surveys.train(survey, tmp_path, f"--ema_decay={decay}")
    assert "expected a number from 0 to below 1" in capsys.readouterr().err
