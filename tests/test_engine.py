"""One optimiser step: accumulation, clipping, gradients that are not finite; and what is remembered of steps."""

import copy
import math
import os
import signal

import pytest
import torch
from torch import nn

from datasets.loading.batch_plan import plan_epoch
from util.processes.program import RunFailed
from util.processes.signals import Stop
from util.training.engine import MOST_SKIPPED, Updater, make_adamw
from util.training.step_meter import StepMeter

CPU = torch.device("cpu")


def make_updater(*, clip_grad=None, scaler=False, lr=0.1, groups=None, ema_decay=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return Updater(
        model,
        make_adamw(groups(model) if groups else [{"params": list(model.parameters()), "weight_decay": 0.1}], lr=lr),
        amp_dtype=None,
        scaler=torch.amp.GradScaler("cpu", enabled=scaler, init_scale=1024.0),
        device_type="cpu",
        clip_grad=clip_grad,
        ema_decay=ema_decay,
    )


def weights(updater):
    return torch.cat([p.detach().flatten() for p in updater.model.parameters()]).clone()


def gradients(updater):
    return torch.cat([p.grad.flatten() for p in updater.model.parameters()]).clone()


def moments(updater):
    """Copy of the optimiser's state, its step counts included."""
    return copy.deepcopy(updater.optimizer.state_dict()["state"])


def samples(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, generator=generator)


def loss_of(updater, x):
    return (updater.model(x) - 1.0).square().mean()


class TestUpdater:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("clip_grad", [None, 1.0])
    def test_a_gradient_that_is_not_finite_leaves_everything_as_it_was(self, bad, clip_grad):
        updater = make_updater(clip_grad=clip_grad)
        updater.backward(loss_of(updater, samples(4)))
        updater.step(0.1)  # so that there is state to spoil
        before, state = weights(updater), moments(updater)
        updater.backward(loss_of(updater, samples(4)))
        next(updater.model.parameters()).grad[0, 0] = bad
        norm = updater.step(0.1)
        assert not torch.isfinite(norm)
        assert torch.equal(weights(updater), before)
        after = moments(updater)
        for number, values in state.items():
            for key, value in values.items():
                assert torch.equal(after[number][key], value), key
        assert all(p.grad is None for p in updater.model.parameters())

    def test_the_step_after_a_bad_one_is_an_ordinary_one(self):
        clean, spoiled = make_updater(), make_updater()
        for updater in (clean, spoiled):
            updater.backward(loss_of(updater, samples(4)))
            updater.step(0.1)
        spoiled.backward(loss_of(spoiled, samples(4)) * math.nan)
        spoiled.step(0.1)
        for updater in (clean, spoiled):
            updater.backward(loss_of(updater, samples(6)))
            updater.step(0.05)
        assert torch.equal(weights(clean), weights(spoiled))

    def test_a_loss_that_is_not_finite_spoils_the_whole_accumulated_update(self):
        updater = make_updater()
        before = weights(updater)
        updater.backward(loss_of(updater, samples(2)) * 0.5)
        updater.backward(loss_of(updater, samples(2)) * math.inf)
        updater.step(0.1)
        assert torch.equal(weights(updater), before)

    def test_returns_the_norm_before_clipping(self):
        updater = make_updater(clip_grad=1e-3)
        updater.backward(loss_of(updater, samples(4)))
        expected = gradients(updater).norm()
        assert expected > 1e-3
        torch.testing.assert_close(updater.step(0.1), expected)

    @pytest.mark.parametrize("limit, factor", [(None, 1.0), (1e9, 1.0), (0.5, 0.5), (0.01, 0.01)])
    def test_clipping(self, limit, factor, monkeypatch):
        """The gradient that the optimiser sees has at most the norm of the limit."""
        updater = make_updater(clip_grad=limit)
        updater.backward(loss_of(updater, samples(4)))
        norm = gradients(updater).norm()
        for p in updater.model.parameters():
            p.grad /= norm  # a gradient of norm 1
        seen = []
        monkeypatch.setattr(updater.optimizer, "step", lambda: seen.append(gradients(updater)))
        updater.step(0.1)
        assert seen[0].norm().item() == pytest.approx(factor, rel=1e-4)

    @pytest.mark.parametrize("tiles, batch_size, accum_iter", [(6, 2, 3), (5, 2, 3), (7, 4, 2)])
    def test_accumulated_micro_batches_equal_one_big_batch(self, tiles, batch_size, accum_iter):
        """With the weights of `plan_epoch`, also where the last micro-batch is smaller."""
        x = samples(tiles)
        whole, parts = make_updater(), make_updater()
        whole.backward(loss_of(whole, x))
        for micro in plan_epoch(tiles, batch_size=batch_size, accum_iter=accum_iter, rank=0, world_size=1):
            parts.backward(loss_of(parts, x[micro.positions]) * micro.weight)
            assert micro.update == 0
        torch.testing.assert_close(gradients(parts), gradients(whole))
        for updater in (whole, parts):
            updater.step(0.01)
        torch.testing.assert_close(weights(parts), weights(whole))

    def test_two_ranks_average_to_one_big_batch(self):
        """What DistributedDataParallel does with gradients: the mean over ranks."""
        x = samples(7)
        whole, ranks = make_updater(), [make_updater(), make_updater()]
        whole.backward(loss_of(whole, x))
        for rank, updater in enumerate(ranks):
            for micro in plan_epoch(7, batch_size=2, accum_iter=2, rank=rank, world_size=2):
                updater.backward(loss_of(updater, x[micro.positions]) * micro.weight)
        torch.testing.assert_close((gradients(ranks[0]) + gradients(ranks[1])) / 2, gradients(whole))

    def test_rate_is_set_for_every_group(self):
        def groups(model):
            first, *_, last = model
            return [{"params": first.parameters(), "lr_scale": 0.5}, {"params": last.parameters()}]

        updater = make_updater(groups=groups)
        updater.backward(loss_of(updater, samples(2)))
        updater.step(0.2)
        assert [group["lr"] for group in updater.optimizer.param_groups] == [0.1, 0.2]

    def test_a_rate_of_zero_moves_nothing(self):
        updater = make_updater()
        before = weights(updater)
        updater.backward(loss_of(updater, samples(2)))
        updater.step(0.0)
        assert torch.equal(weights(updater), before)

    def test_optimiser_is_adamw_as_written_down(self):
        """First step of AdamW: decay by lr * wd, then lr * sign of the gradient."""
        updater = make_updater()
        before = weights(updater)
        updater.backward(loss_of(updater, samples(4)))
        gradient = gradients(updater)
        updater.step(0.01)
        expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(weights(updater), expected, rtol=1e-5, atol=1e-6)
        assert updater.optimizer.param_groups[0]["betas"] == (0.9, 0.95)

    def test_with_a_gradient_scaler_the_update_is_the_same(self):
        plain, scaled = make_updater(clip_grad=0.1), make_updater(clip_grad=0.1, scaler=True)
        norms = []
        for updater in (plain, scaled):
            updater.backward(loss_of(updater, samples(4)))
            norms.append(updater.step(0.1))
        torch.testing.assert_close(norms[1], norms[0])
        torch.testing.assert_close(weights(scaled), weights(plain))

    def test_a_gradient_scaler_skips_and_backs_off(self):
        updater = make_updater(scaler=True)
        before = weights(updater)
        updater.backward(loss_of(updater, samples(4)) * math.inf)
        updater.step(0.1)
        assert torch.equal(weights(updater), before)
        assert updater.scaler.get_scale() == 512.0

    def test_autocast(self):
        updater = Updater(
            nn.Linear(2, 2),
            make_adamw([{"params": []}, {"params": [nn.Parameter(torch.zeros(1))]}], lr=0.1),
            amp_dtype=torch.bfloat16,
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            device_type="cpu",
            clip_grad=None,
        )
        with updater.autocast():
            assert updater.model(torch.ones(1, 2)).dtype == torch.bfloat16
        with make_updater().autocast():
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def meter(updates=4, scales=1, channels=2, check_gradients=True):
    return StepMeter(updates=updates, scales=scales, channels=channels, device=CPU, check_gradients=check_gradients)


def add(to, *losses, weight=1.0, sums=((1.0, 2.0),), counts=((1.0, 1.0),)):
    first = losses[0]
    base, finer = losses[1:] or (first, first)
    to.add(
        losses=(torch.tensor(first), torch.tensor(base), torch.tensor(finer)),
        weight=weight,
        error_sums=torch.tensor(sums),
        error_counts=torch.tensor(counts),
    )


def same(tensor):
    return tensor


class TestStepMeter:
    def test_means_over_updates_of_weighted_micro_batches(self):
        """Update 0: two micro-batches of weights 0.75 and 0.25; update 1: one."""
        window = meter()
        add(window, 4.0, 2.0, 1.0, weight=0.75)
        add(window, 8.0, 6.0, 5.0, weight=0.25)
        window.end_update(torch.tensor(3.0))
        add(window, 1.0, 1.0, 0.0)
        window.end_update(torch.tensor(5.0))
        found = window.read(same, same)
        assert (found.loss, found.base_loss, found.scale_loss, found.grad_norm) == (3.0, 2.0, 1.0, 4.0)
        assert found.first_bad is None and not found.bad_here

    def test_norms_of_skipped_updates_are_left_out(self):
        """The gradient scaler skips an update whose gradients are not finite."""
        window = meter(check_gradients=False)
        for norm in (3.0, math.inf, 5.0):
            add(window, 1.0)
            window.end_update(torch.tensor(norm))
        found = window.read(same, same)
        assert (found.grad_norm, found.first_bad) == (4.0, None)
        add(window, 1.0)
        window.end_update(torch.tensor(math.inf))
        assert math.isnan(window.read(same, same).grad_norm)

    def test_a_fourth_loss_is_that_of_textures(self):
        window = meter()
        losses = tuple(map(torch.tensor, (7.0, 2.0, 1.0, 4.0)))
        window.add(losses=losses, weight=1.0, error_sums=torch.ones(1, 2), error_counts=torch.ones(1, 2))
        window.end_update(torch.tensor(3.0))
        found = window.read(same, same)
        assert (found.loss, found.texture_loss, found.grad_norm) == (7.0, 4.0, 3.0)
        assert found.shown == {"loss": "7.0000", "texture": "4.0000"}
        add(window, 1.0)
        window.end_update(torch.tensor(1.0))
        plain = window.read(same, same)
        assert plain.texture_loss is None and plain.shown == {"loss": "1.0000"}

    def test_layer_losses_are_sums_over_counts(self):
        window = meter(scales=2)
        add(window, 1.0, sums=((6.0, 1.0), (2.0, 0.0)), counts=((2.0, 1.0), (1.0, 0.0)))
        add(window, 1.0, sums=((0.0, 3.0), (2.0, 0.0)), counts=((1.0, 1.0), (3.0, 0.0)))
        window.end_update(torch.tensor(0.0))
        found = window.read(same, same).layer_losses
        assert found[0].tolist() == [2.0, 2.0] and found[1, 0].item() == 1.0 and math.isnan(found[1, 1])

    def test_a_rank_that_repeats_a_tile_at_weight_zero_does_not_count(self):
        window = meter()
        add(window, 4.0)
        add(window, 100.0, weight=0.0, sums=((50.0, 50.0),), counts=((1.0, 1.0),))
        window.end_update(torch.tensor(0.0))
        found = window.read(same, same)
        assert found.loss == 4.0 and found.layer_losses.tolist() == [[1.0, 2.0]]

    def test_is_full_and_reading_clears(self):
        window = meter(updates=2)
        for number in range(2):
            assert not window.is_full and window.count == number
            add(window, 1.0)
            window.end_update(torch.tensor(1.0))
        assert window.is_full
        window.read(same, same)
        assert window.count == 0 and not window.is_full
        add(window, 5.0, sums=((7.0, 7.0),))
        window.end_update(torch.tensor(2.0))
        found = window.read(same, same)
        assert (found.loss, found.grad_norm, found.layer_losses.tolist()) == (5.0, 2.0, [[7.0, 7.0]])

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_finds_the_first_bad_update(self, bad):
        window = meter(updates=5)
        for loss in (1.0, 1.0, bad, 1.0, bad):
            add(window, loss)
            window.end_update(torch.tensor(1.0))
        found = window.read(same, same)
        assert found.first_bad == 2 and found.bad_here

    def test_a_bad_gradient_counts_unless_a_scaler_is_looking_for_its_scale(self):
        for check, expected in ((True, 1), (False, None)):
            window = meter(check_gradients=check)
            for norm in (1.0, math.inf):
                add(window, 1.0)
                window.end_update(torch.tensor(norm))
            found = window.read(same, same)
            assert found.first_bad == expected and not found.bad_here  # the loss itself was finite

    def test_a_bad_loss_of_another_rank_is_found_but_not_here(self):
        window = meter()
        for _ in range(2):
            add(window, 1.0)
            window.end_update(torch.tensor(1.0))
        other = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [math.nan, 1.0, 1.0, 1.0, 1.0]])
        found = window.read(lambda rows: (rows + other) / 2, same)
        assert found.first_bad == 1 and not found.bad_here

    def test_reduced_over_ranks(self):
        window = meter()
        add(window, 2.0)
        window.end_update(torch.tensor(1.0))
        found = window.read(lambda rows: rows * 10, lambda sums: sums + torch.tensor([[[3.0, 2.0]], [[1.0, 1.0]]]))
        assert found.loss == 20.0
        assert found.layer_losses.tolist() == [[(1 + 3) / 2, (2 + 2) / 2]]

    def test_keeps_no_graph(self):
        window = meter()
        loss = torch.ones((), requires_grad=True) * 2
        window.add(losses=(loss, loss, loss), weight=1.0, error_sums=torch.ones(1, 2), error_counts=torch.ones(1, 2))
        assert not window._rows.requires_grad


class TestStop:
    def test_remembers_a_signal_and_lets_the_run_go_on(self):
        with Stop() as stop:
            assert stop.signal is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)  # impatience of a scheduler changes nothing

    def test_a_second_interrupt_ends_at_once(self):
        with pytest.raises(KeyboardInterrupt), Stop() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signal == signal.SIGINT
            signal.raise_signal(signal.SIGINT)

    def test_handlers_are_put_back(self):
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
        with Stop():
            assert signal.getsignal(signal.SIGTERM) != before[0]
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


class TestSkippedUpdates:
    """A gradient scaler skips updates whose gradients overflow, and halves its scale."""

    def skip(self, updater, count):
        for _ in range(count):
            updater.backward(loss_of(updater, samples(4)) * math.inf)
            updater.step(0.1)

    def test_they_are_counted_since_the_last_reading(self, tmp_path, caplog):
        caplog.set_level("INFO")
        updater = make_updater(scaler=True)
        before = weights(updater)
        self.skip(updater, 3)
        assert updater.require_updates(tmp_path) == {"skipped": 3, "loss_scale": 128.0}
        assert "skipped 3 updates whose gradients overflowed fp16; loss scale now 128" in caplog.text
        assert torch.equal(weights(updater), before)
        assert updater.require_updates(tmp_path) == {"skipped": 0, "loss_scale": 128.0}

    def test_too_many_in_a_row_end_the_run(self, tmp_path):
        updater = make_updater(scaler=True)
        self.skip(updater, MOST_SKIPPED - 1)
        updater.require_updates(tmp_path)  # readings between do not break the row
        self.skip(updater, 1)
        with pytest.raises(RunFailed, match=rf"the last {MOST_SKIPPED} updates were skipped.*loss scale.*--amp off"):
            updater.require_updates(tmp_path)

    def test_one_good_update_begins_the_row_again(self, tmp_path):
        updater = make_updater(scaler=True)
        self.skip(updater, MOST_SKIPPED - 1)
        updater.backward(loss_of(updater, samples(4)))
        updater.step(0.1)
        self.skip(updater, 1)
        assert updater.require_updates(tmp_path)["skipped"] == MOST_SKIPPED

    def test_nothing_without_a_scaler(self, tmp_path):
        updater = make_updater()
        self.skip(updater, MOST_SKIPPED)
        assert updater.require_updates(tmp_path) == {}
