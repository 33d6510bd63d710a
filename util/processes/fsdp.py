"""A network whose weights, gradients and optimiser state are shared out over processes: torch's fully_shard.

For models that do not fit a device beside their optimiser state. Each process keeps its part of every weight; a block's
weights are put together before the block computes and let go after it. Weights are gathered and gradients reduced in
float32, and autocast casts what it casts without: only the order of sums differs from a run without. Checkpoints hold
whole tensors, the same as without.

Functions take networks that are not shared out, and then do what is done without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed import ReduceOp, get_rank, get_world_size, reduce_scatter_tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def refuse_unfit(*, world_size: int, compiled: bool, device: torch.device) -> None:
    """Refuses --fsdp where it means nothing or would not compute the same; every process must call it.

    Raises:
        ValueError: one process, a compiled model, or a torch that adds gradients up where it should average them (seen
            with torch 2.7 over gloo, without a word).
    """
    if world_size == 1:
        raise ValueError(
            "--fsdp shares the weights out over processes, but there is only one; start several with torchrun, or "
            "leave it out"
        )
    if compiled:
        raise ValueError("--fsdp does not go with --compile; leave one of them out")
    mean = torch.empty(1, device=device)
    reduce_scatter_tensor(mean, torch.ones(world_size, device=device), op=ReduceOp.AVG)
    if float(mean) != 1:
        raise ValueError(
            f"--fsdp: torch {torch.__version__} adds gradients up on {device.type} where it should average them; use "
            "a newer torch or GPUs, or leave it out"
        )


def shard(network: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> nn.Module:
    """Shares the network's weights out over all processes, in place; they must be the same in each.

    Args:
        network: on the device; its parameters become other objects, so make the optimiser afterwards.
        blocks: parts of it that are gathered one at a time; what is in none of them is gathered together.
        device: where it computes.

    Returns:
        The network.
    """
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor put together from its parts; every process must call it, each gets it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_states(network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states of network and optimiser as they are in a checkpoint; every process must call it.

    Of a network that is shared out, tensors are gathered one by one into the main process's host memory; in the others
    what is returned is of no use.
    """
    if not isinstance(network, FSDPModule):
        return network.state_dict(), optimizer.state_dict()
    state = optimizer.state_dict()
    values = {index: {key: _kept(value) for key, value in entry.items()} for index, entry in state["state"].items()}
    return {name: _kept(value) for name, value in network.state_dict().items()}, {**state, "state": values}


def _kept(value: Any) -> Any:
    """The whole of a tensor in the host memory of the main process; nothing of it elsewhere."""
    if not isinstance(value, DTensor):
        return value
    gathered = value.full_tensor()
    return gathered.cpu() if get_rank() == 0 else None


def load_states(
    network: nn.Module, optimizer: torch.optim.Optimizer, *, model: Mapping[str, Any], optimizer_state: dict[str, Any]
) -> None:
    """Puts the states of a checkpoint into network and optimiser; each process has read them.

    Raises:
        RuntimeError: they are of another network.
    """
    if not isinstance(network, FSDPModule):
        network.load_state_dict(model)
        optimizer.load_state_dict(optimizer_state)
        return
    own = network.state_dict()
    network.load_state_dict({name: _part(value, own[name]) if name in own else value for name, value in model.items()})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values = {
        index: {key: value if key == "step" else _part(value, parameters[index]) for key, value in entry.items()}
        for index, entry in optimizer_state["state"].items()
    }
    optimizer.load_state_dict({**optimizer_state, "state": values})


def _part(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, as it has one of another; nothing is sent."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@contextlib.contextmanager
def gathered(network: nn.Module, make: Callable[[], nn.Module]) -> Iterator[nn.Module]:
    """A network with whole weights, which each process can use as often as it likes; every process must enter.

    Args:
        network: shared out, or not: then it is what is given.
        make: makes another network of the same kind on the device.
    """
    if not isinstance(network, FSDPModule):
        yield network
        return
    device = next(network.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        twin = make()
    own = twin.state_dict()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            own[name].copy_(whole(value))
    yield twin
