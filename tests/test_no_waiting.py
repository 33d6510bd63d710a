"""Ordinary updates never wait for the device: what the host asks of it does not grow with their number."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import main_pretrain
import models_mae_group_channels as models
from tests import surveys
from util.training.engine import Updater

WAITS = {
    torch.ops.aten._local_scalar_dense,  # item(), float(), bool(), if tensor
    torch.ops.aten.nonzero,  # and indexing by booleans
    torch.ops.aten.masked_select,
    torch.ops.aten.equal,
    torch.ops.aten.is_nonzero,
    torch.ops.aten._unique2,
}
"""Operations whose result the host must know: on a GPU each of them waits until all before it is done."""

VARIANTS = {
    "plain": [],
    "one mask, half precision with a scaler, layers dropped": "--spatial_mask --amp fp16 --layer_dropout 0.5".split(),
    "accumulated, published heads, normalised": "--accum_iter 2 --scale_heads shared --norm_pix_loss".split(),
}


class Waits(TorchDispatchMode):
    """Counts what makes the host wait."""

    def __init__(self):
        super().__init__()
        self.count = self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        self.count += func.overloadpacket in WAITS or any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_) else ())
        )
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


def count(survey, output, monkeypatch, *flags, updates):
    """Waits and operations while an epoch of so many updates is trained, its losses being read once."""
    seen, epoch = Waits(), main_pretrain.train_epoch

    def watched(*args):
        with seen:
            return epoch(*args)

    monkeypatch.setattr(main_pretrain, "train_epoch", watched)
    monkeypatch.setattr(models, "_shapes_may_depend_on_data", lambda imgs: False)  # as on a GPU
    tiles = 8 * updates * (2 if "--accum_iter" in flags else 1)
    more = ["--epochs", "1", "--log_every", "1000", "--tiles_per_epoch", str(tiles), *flags]
    assert surveys.train(survey, output, *more) == 0
    monkeypatch.setattr(main_pretrain, "train_epoch", epoch)
    return seen


@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS)
def test_more_updates_mean_no_more_waits(survey, tmp_path, monkeypatch, flags):
    few = count(survey, tmp_path / "few", monkeypatch, *flags, updates=2)
    many = count(survey, tmp_path / "many", monkeypatch, *flags, updates=5)
    assert many.operations > few.operations * 2
    assert few.count == many.count > 0  # those of reading the losses


def test_a_wait_would_be_seen():
    x = torch.arange(4.0)
    with Waits() as seen:
        float(x.sum())
        _ = x[x > 1]
        assert x[0] == 0
    assert seen.count == 3
    with Waits() as seen:
        torch.where(x > 1, x, 0 * x).mean()
    assert seen.count == 0


@pytest.mark.gpu
@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS)
def test_a_gpu_is_not_waited_for(survey, tmp_path, monkeypatch, flags):
    gradients, step = main_pretrain.add_gradients, Updater.step

    def refused(do):
        def run(*args):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return do(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return run

    monkeypatch.setattr(main_pretrain, "add_gradients", refused(gradients))
    monkeypatch.setattr(Updater, "step", refused(step))
    assert surveys.train(survey, tmp_path / "out", *flags, "--device", "cuda", "--pin_mem") == 0
