"""What DistributedDataParallel sends: every gradient once an update, whatever model and data are, while it computes."""

from typing import Any

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from models_mae_group_channels import MODEL_SIZES, MaskedAutoencoderGroupChannelViT, build_model
from tests.small_main import SMALL
from tests.test_distributed import CPU, run_ranks
from util.processes import distributed as dist

SIZES = {"img_size": 16, "patch_size": 4, "in_chans": 3, "channel_groups": ((0, 1), (2,))}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("light heads", {"scale_heads": "subpixel"}, {}),
    ("published heads", {"scale_heads": "shared"}, {}),
    ("nothing hidden", {"scale_heads": "subpixel"}, {"mask_ratio": 0.0}),
    ("nearly all hidden", {"scale_heads": "shared"}, {"mask_ratio": 0.9}),
    ("a layer missing", {"scale_heads": "subpixel"}, {"missing": [0]}),
    ("a group missing", {"scale_heads": "shared"}, {"missing": [2]}),
    ("all missing", {"scale_heads": "subpixel"}, {"missing": [0, 1, 2]}),
    ("finer scales not scored", {"scale_heads": "subpixel", "scored": {1: [0, 1, 2]}}, {}),
    ("places hidden in all groups", {"spatial_mask": True, "norm_pix_loss": True}, {}),
    ("blocks computed again", {"grad_checkpointing": True}, {}),
]


def loss_of(model: Any, network: MaskedAutoencoderGroupChannelViT, *, missing=(), mask_ratio: float = 0.75):
    """The loss of one tile, some of whose channels are not there."""
    images = [torch.randn(1, 3, 16 * s, 16 * s) for s in network.scales]
    valid = [torch.ones_like(image, dtype=torch.bool) for image in images]
    for each in valid:
        each[:, list(missing)] = False
    loss, finer, _, _ = model(images[0], images[1:], mask_ratio=mask_ratio, valid=valid[0], valid_up=valid[1:])
    return 0.6 * loss + 0.4 * finer


def _count(ranks: dist.Ranks) -> list[tuple[str, int, list[int], int]]:
    """For each case: name, buckets sent by the first of two micro-batches and by the second, parameters.

    Only the second process lacks something, and what it lacks changes with the update.
    """
    MODEL_SIZES["tiny"] = SMALL
    found = []
    for name, arguments, data in CASES:
        torch.manual_seed(0)
        network = build_model("tiny", **SIZES, **arguments)
        model = dist.wrap(network, CPU)
        assert isinstance(model, DistributedDataParallel)
        sent: list[int] = []

        def count(group, bucket, sent=sent):
            sent.append(bucket.buffer().numel())
            return allreduce_hook(group, bucket)

        model.register_comm_hook(None, count)
        for update in range(3):
            here = data if ranks.rank and update else {k: v for k, v in data.items() if k != "missing"}
            sent.clear()
            with dist.gradients_shared(model, False):
                loss_of(model, network, **here).backward()
            first = len(sent)
            with dist.gradients_shared(model, True):
                loss_of(model, network, **here).backward()
            found.append((name, first, list(sent), sum(p.numel() for p in network.parameters() if p.requires_grad)))
            network.zero_grad(set_to_none=True)
    return found


def test_every_gradient_is_sent_once_an_update(tmp_path):
    first, second = run_ranks(_count, tmp_path)
    assert first == second and len(first) == 3 * len(CASES)
    for name, early, sent, parameters in first:
        assert early == 0 and sum(sent) == parameters, name


def _order(ranks: dist.Ranks) -> list[list[str]]:
    """What happens in each of two backward passes of a model of several buckets: buckets go, gradients are there."""
    torch.manual_seed(0)
    network = build_model("tiny", **{**SIZES, "img_size": 32, "patch_size": 8}, scales=(1,))
    model = dist.wrap(network, CPU)
    events: list[str] = []

    def note(group, bucket):
        events.append(f"bucket {bucket.index()}")
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, note)
    names = {"last": network.decoder_pred[0].weight, "first": network.patch_embed[0].proj.weight}
    for name, parameter in names.items():
        parameter.register_post_accumulate_grad_hook(
            lambda _, name=name: events.append(f"gradient of the {name} layer")
        )
    passes = []
    for _ in range(2):
        images = torch.randn(1, 3, 32, 32)
        model(images, [])[0].backward()
        passes.append(list(events))
        events.clear()
    return passes


def test_gradients_are_sent_while_others_are_computed(tmp_path):
    """From the second update on, when torch has seen in which order they come; it has 1 MiB in the first bucket."""
    first, second = run_ranks(_order, tmp_path)
    assert first == second
    events = first[1]
    buckets = [event for event in events if event.startswith("bucket")]
    assert len(buckets) >= 2 and buckets[0] == "bucket 0"
    assert events.index("bucket 0") < events.index("gradient of the first layer")
    assert events.index("gradient of the last layer") < events.index("bucket 0")


def _settings(_: dist.Ranks) -> dict[str, Any]:
    model = dist.wrap(torch.nn.Linear(2, 2), CPU)
    names = ("find_unused_parameters", "static_graph", "gradient_as_bucket_view")
    return {name: getattr(model, name) for name in names} | {"bytes": model.bucket_bytes_cap}


def test_settings(tmp_path):
    expected = {"find_unused_parameters": False, "static_graph": False, "gradient_as_bucket_view": True}
    assert run_ranks(_settings, tmp_path)[0] == expected | {"bytes": 25 * 2**20}
