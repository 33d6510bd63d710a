"""Neither shapes nor Python branches of the model depend on the data: it is compiled once for all batches."""

import pytest
import torch

from scripts.benchmarks.step import OURS, make_batch, make_model, total_loss

SHAPE = {"img_size": 16, "patch_size": 8, "in_chans": 2, "channel_groups": [[0], [1]]}


@pytest.mark.parametrize("amp", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["fp32", "bf16"])
def test_one_graph_for_a_hundred_ragged_batches(amp):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = make_model("tiny", OURS, **SHAPE)
    forward = torch.compile(model, backend=counting, fullgraph=True)
    batch = make_batch(model, batch_size=2, device=torch.device("cpu"))
    found = []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        for ok in batch.valid:  # from nothing to all
            ok.copy_(torch.rand(ok.shape, generator=generator) < seed / 99)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            loss = total_loss(forward, batch, finetunes=False)
        loss.backward()
        model.zero_grad(set_to_none=True)
        found.append(float(loss.detach()))
    assert len(graphs) == 1
    assert len(set(found)) > 90
