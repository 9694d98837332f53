"""Training on several processes with torch's DistributedDataParallel; with one, everything here does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from lrtrain.errors import DistributedError
from lrtrain.world import World

TIMEOUT = timedelta(minutes=10)
# How gloo, NCCL and torch's store begin to say that a peer is gone; they raise nothing but RuntimeError.
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out", "nccl", "gloo", "socket")


@contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """Inside, this process and its peers can talk.

    Raises:
        DistributedError: see `needing_peers`.
    """
    if world.size == 1:
        yield
        return
    # Tensors on the host go over gloo, so that agreeing to stop does not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with needing_peers(world):
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        # torchrun's store outlives a restart, with the addresses of processes that are gone.
        own = PrefixStore(f"lrtrain/{world.restarts}", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=TIMEOUT)
        yield
        dist.destroy_process_group()


@contextmanager
def needing_peers(world: World) -> Iterator[None]:
    """Inside, what torch raises when a peer is gone becomes an error for people.

    Raises:
        DistributedError: a peer was lost, or could not be reached.
    """
    try:
        yield
    except RuntimeError as error:
        if world.size > 1 and any(sign in str(error).lower() for sign in _LOST):
            raise DistributedError(
                f"process {world.rank} of {world.size} lost another: {str(error).splitlines()[0][:200]}",
                hint="the error of the process that ended first is the cause; "
                "`torchrun ... -m lrtrain fit --resume` goes on from the last checkpoint",
            ) from error
        raise


def replicated(module: nn.Module, world: World, device: torch.device, some_frozen: bool) -> nn.Module:
    """The network whose gradients are averaged over all processes.

    Args:
        module: the same in every process.
        world: the processes.
        device: this process's.
        some_frozen: some parameters get no gradient for a time.
    """
    if world.size == 1:
        return module
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, find_unused_parameters=some_frozen)


def unsynchronised(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, gradients stay with the process and add up."""
    inner = getattr(module, "_orig_mod", module)  # where it is compiled
    return inner.no_sync() if isinstance(inner, DistributedDataParallel) else nullcontext()


def summed(tensor: Tensor, world: World) -> Tensor:
    """The sum over all processes."""
    if world.size > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def share_buffers(module: nn.Module, world: World) -> None:
    """Give every process the leading one's buffers: BatchNorm's statistics are of each process's own images."""
    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def agreed(stop: Callable[[], str | None], world: World, reasons: tuple[str, ...]) -> Callable[[], str | None]:
    """`stop`, answered alike in every process as soon as one has a reason.

    Args:
        stop: this process's own answer, one of `reasons` or None.
        world: the processes; each must ask equally often.
        reasons: what may be answered.
    """
    if world.size == 1:
        return stop

    def together() -> str | None:
        own = stop()
        number = torch.tensor(0 if own is None else reasons.index(own) + 1)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return reasons[int(number) - 1] if number else None

    return together
