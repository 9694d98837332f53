"""Training on several processes with torch's DistributedDataParallel; with one, everything here does nothing."""

from __future__ import annotations

import ctypes
import json
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from lrtrain.engine import heartbeat
from lrtrain.errors import ConfigError, DistributedError, quoted
from lrtrain.world import World

JOIN_S = 60.0
"""How long processes wait for all to come; torchrun starts them together. $LRTRAIN_JOIN_S in tests."""
TIMEOUT = timedelta(hours=6)
"""Longer than a process may wait for one that builds a cache; of those that are gone the heartbeat tells."""
# What both gloo and NCCL send.
_SENT = {torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64}
_SENT |= {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}
# How gloo, NCCL and torch's store begin to say that a peer is gone; they raise nothing but RuntimeError.
_BACKENDS = ("nccl", "gloo")
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out", "socket", *_BACKENDS)


@contextmanager
def joined(
    world: World, choose: Callable[[], torch.device], tell: Callable[[DistributedError], None]
) -> Iterator[None]:
    """Inside, this process and its peers can talk; each learns when another is lost, and of what.

    Args:
        world: the processes.
        choose: this process's device.
        tell: shows an error to the user.

    Raises:
        DistributedError: see `needing_peers`; or not all have come.
    """
    if world.size == 1:
        with heartbeat.ending_with_torchrun(world) if world.launch else nullcontext():
            choose()
            yield
        return
    store = _heeding_signals(partial(_met, world))
    with heartbeat.ending_with_torchrun(world), heartbeat.beating(store.clone(), world, tell), needing_peers(world):
        # Tensors on the host go over gloo, so that agreeing to stop does not wait for the GPU.
        backend = "cpu:gloo,cuda:nccl" if choose().type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=TIMEOUT)
        _never_freed(dist.group.WORLD)
        yield
        # Followers stay until the leading one has saved, else torchrun would hurry it when the first has ended.
        _wait_for_all()
        dist.destroy_process_group()


def _never_freed(group: object) -> None:
    """Keep a process group to the process's end.

    To free it, torch waits for gloo's thread, with Python's lock, which that thread may be waiting for to let go of
    the tensors of the last collective: now and then a process that was done hung for ever (seen with torch 2.11).
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def _wait_for_all() -> None:
    """Until all have come here, or one is gone: by then the leading process has saved all, and nobody needs it."""
    try:
        dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        if not _says_lost(error):
            raise


def _heeding_signals(wait: Callable[[], Store]) -> Store:
    """Wait in a thread of its own: in the midst of torch no signal handler of Python's would run, Ctrl-C's neither."""
    came: list[Store] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            came.append(wait())
        except BaseException as error:
            failed.append(error)

    waiting = threading.Thread(target=run, name="lrtrain-join", daemon=True)
    waiting.start()
    while waiting.is_alive():
        waiting.join(0.1)
    if failed:
        raise failed[0]
    return came[0]


def _met(world: World) -> Store:
    """The store that all processes share, once all have come to it."""
    patience_s = heartbeat.seconds("JOIN_S", JOIN_S)
    address = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')}, MASTER_PORT={os.environ.get('MASTER_PORT')}"
    try:
        found, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=patience_s)))
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"process {world.rank} of WORLD_SIZE={world.size} cannot meet the others at {address}: "
            f"{str(error).splitlines()[0][:200]}",
            hint="torchrun sets both; with --rdzv-endpoint HOST:PORT every machine must reach HOST, and PORT be free",
        ) from error
    # torchrun's store outlives a restart, with the addresses of processes that are gone.
    store = PrefixStore(f"lrtrain/{world.restarts}", found)
    store.set(f"here/{world.rank}", "")
    if store.add("here", 1) == world.size:
        store.set("all here", "")
    try:
        store.wait(["all here"], timedelta(seconds=patience_s))
    except RuntimeError as error:
        absent = [rank for rank in range(world.size) if not store.check([f"here/{rank}"])]
        raise DistributedError(
            f"{len(absent)} of WORLD_SIZE={world.size} processes did not come to {address} within {patience_s:g} s: "
            f"RANK {', '.join(map(str, absent[:20]))}",
            hint="see their own errors; --nnodes and --nproc-per-node must be the same for torchrun on every machine",
        ) from error
    store.set_timeout(TIMEOUT)  # NCCL waits in it for the first, who may be preparing images
    return store


@contextmanager
def needing_peers(world: World) -> Iterator[None]:
    """Inside, what torch raises when a peer is gone becomes an error for people: what ended that one.

    Raises:
        DistributedError: a peer was lost, or could not be reached.
    """
    try:
        yield
    except RuntimeError as error:
        if world.size > 1 and _says_lost(error):
            raise heartbeat.cause() or DistributedError(
                f"process {world.rank} of {world.size} lost its connection to others, which are alive: "
                f"{str(error).splitlines()[0][:200]}",
                hint=heartbeat.AGAIN,
            ) from error
        raise


def _says_lost(error: RuntimeError) -> bool:
    """Whether torch says so; code of the user's own may ask a server, say, and raise the like.

    Such code may also wait by itself for what the processes exchange, and then the backend's name is in the text.
    """
    said = str(error).lower()
    *_, (raised, _) = traceback.walk_tb(error.__traceback__)
    package, _, _ = raised.f_globals.get("__name__", "torch").partition(".")  # code that torch writes may have none
    signs = _LOST if package in ("torch", "lrtrain") else _BACKENDS
    return any(sign in said for sign in signs)


def replicated(module: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The network whose gradients are averaged over all processes.

    Args:
        module: the same in every process.
        world: the processes.
        device: this process's.

    Raises:
        ConfigError: it has a buffer that processes cannot send each other.
    """
    if world.size == 1:
        return module
    for name, buffer in module.named_buffers():
        if buffer.dtype not in _SENT or buffer.layout != torch.strided:
            kind = str(buffer.dtype if buffer.layout == torch.strided else buffer.layout).removeprefix("torch.")
            what = f"the model's buffer {quoted(name)} is {kind}, which several processes cannot send each other"
            raise ConfigError(what, hint="make it dense, of a type such as int64 or float32, or train with one process")
    ids = [device.index] if device.type == "cuda" else None
    # Of 1x1 kernels, whose numbers lie in the same order by either strides.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # Parameters may be frozen for a time. Besides, torch lays gradients out anew after a process's first step unless
    # they may be unused, and of three numbers or more the sum depends on the layout: a run that is resumed would add
    # them otherwise in one step than the run that was left alone.
    return DistributedDataParallel(module, device_ids=ids, find_unused_parameters=True)


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


def told_by_the_leader(text: str, world: World) -> str:
    """What the leading process says, in every process."""
    if world.size == 1:
        return text
    said = [text]
    dist.broadcast_object_list(said, 0)
    return said[0]


def gathered(text: str, world: World) -> list[str]:
    """What every process says, by rank."""
    if world.size == 1:
        return [text]
    said = [""] * world.size
    dist.all_gather_object(said, text)
    return said


def other_than_the_leader(own: Mapping[str, Any], world: World) -> dict[str, tuple[Any, Any]]:
    """What this process says otherwise than the leading one: by key, that one's and its own; None where it is absent.

    Args:
        own: plain data, as JSON can say it.
        world: the processes; each must ask.
    """
    if world.size == 1:
        return {}
    leaders = json.loads(told_by_the_leader(json.dumps(own), world))
    mine = json.loads(json.dumps(own))
    keys = [*leaders, *(mine.keys() - leaders.keys())]
    other = {key: (leaders.get(key), mine.get(key)) for key in keys if leaders.get(key) != mine.get(key)}
    if not other:
        dist.all_reduce(torch.zeros(1))  # none goes on before all have agreed
    return other


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
