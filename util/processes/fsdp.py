"""Sharded training (`--fsdp`): weights, gradients and optimiser state split over processes by torch's fully_shard.

For models that do not fit a device beside their optimiser state. Each process keeps its part of every weight; the
weights of a block are gathered before it computes and freed after it. Weights are gathered and gradients reduced in
float32, and autocast casts the same operations as without sharding: only the order of sums differs. Checkpoints hold
whole tensors, the same as those of an unsharded run.

All functions also take networks that are not sharded, and then do what an unsharded run does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed import ReduceOp, get_world_size, reduce_scatter_tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""Of `get_state_dict`: whole tensors in the main process's host memory."""


def refuse_unfit(*, world_size: int, compiled: bool, device: torch.device) -> None:
    """Refuses --fsdp where it has no effect or would not compute the same; every process must call it.

    Raises:
        ValueError: one process, a compiled model, or a torch that sums gradients where it should average them (torch
            2.7 over gloo, without any error).
    """
    if world_size == 1:
        raise ValueError(
            "--fsdp splits the weights over processes, but there is only one; start several with torchrun, or leave "
            "it out"
        )
    if compiled:
        raise ValueError("--fsdp cannot be combined with --compile; leave one of them out")
    mean = torch.empty(1, device=device)
    reduce_scatter_tensor(mean, torch.ones(world_size, device=device), op=ReduceOp.AVG)
    if float(mean) != 1:
        raise ValueError(
            f"--fsdp: torch {torch.__version__} sums gradients on {device.type} where it should average them; use a "
            "newer torch or GPUs, or leave it out"
        )


def shard(network: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> nn.Module:
    """Splits the network's weights over all processes, in place; they must be the same in each.

    Args:
        network: on the device; its parameters become other objects, so make the optimiser afterwards.
        blocks: parts of it that are gathered one at a time; the other weights are gathered together.
        device: where it computes.

    Returns:
        The network.
    """
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a whole tensor, gathered from its parts into every process; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Returns this process's part of a tensor, which shares its memory; of one that is not sharded, all of it."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_weights(network: nn.Module) -> dict[str, Any]:
    """A copy of the network's state in host memory, complete in the main process; every process must call it."""
    if not isinstance(network, FSDPModule):
        return {name: value.to("cpu", copy=True) for name, value in network.state_dict().items()}
    return get_model_state_dict(network, options=WHOLE)


def whole_states(network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states of network and optimiser as a checkpoint holds them; every process must call it.

    The states of a sharded network are gathered tensor by tensor into the main process's host memory; the other
    processes get empty ones.
    """
    if not isinstance(network, FSDPModule):
        return network.state_dict(), optimizer.state_dict()
    model, by_name = get_state_dict(network, optimizer, options=WHOLE)
    if not model:
        return {}, {}
    numbers = {name: number for number, name in enumerate(_trained_names(network, optimizer))}
    groups = [{**g, "params": [numbers[name] for name in g["params"]]} for g in by_name["param_groups"]]
    return model, {"state": {numbers[name]: entry for name, entry in by_name["state"].items()}, "param_groups": groups}


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
    names = _trained_names(network, optimizer)
    by_name = {
        "state": {names[number]: entry for number, entry in optimizer_state["state"].items()},
        "param_groups": [
            {**g, "params": [names[number] for number in g["params"]]} for g in optimizer_state["param_groups"]
        ],
    }
    set_state_dict(
        network,
        optimizer,
        model_state_dict=dict(model),
        optim_state_dict=by_name,
        options=StateDictOptions(full_state_dict=True),
    )
    for own, stored in zip(optimizer.param_groups, optimizer_state["param_groups"], strict=True):
        own["betas"] = tuple(stored["betas"])  # torch makes a list of it


def _trained_names(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters in the order in which the optimiser numbers them."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


@contextlib.contextmanager
def gathered(network: nn.Module, make: Callable[[], nn.Module]) -> Iterator[nn.Module]:
    """A network with whole weights, which each process can then use alone; every process must enter.

    Args:
        network: yielded as it is if it is not sharded.
        make: builds another network of the same configuration on the device.
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
