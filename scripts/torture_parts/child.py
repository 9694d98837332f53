"""In the forked process: what is to happen to it is prepared outside lrtrain's code, then lrtrain's command runs."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torture_parts.ask import Ask

PROBE_EVERY = 500  # updates
LONGEST = 60  # characters of a folder in which a data worker can still make the socket that it sends images over


def import_everything() -> None:
    """What a run of any kind imports; no operation of torch is run, no thread started."""
    for name in ("build", "cli", "commands.fit", "commands.range_test", "commands.start", "sinks.plan_view"):
        importlib.import_module(f"lrtrain.{name}")
    for name in ("torchvision.transforms.v2", "torch.utils.data", "safetensors.torch", "torch.distributed"):
        importlib.import_module(name)


def run(ask: Ask, rank: int, port: int) -> int:
    """Do what is asked; the exit code."""
    log = os.open(ask.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.chdir(ask.folder)
    if ask.package is not None:
        _import_from(ask.package)
    _separate_processes(ask, rank, port)
    _arrange(ask, rank)
    try:
        if ask.function is not None:
            module, _, attribute = ask.function.partition(":")
            answer = getattr(importlib.import_module(module), attribute)(**ask.arguments)
            Path(ask.folder, "answer.json").write_text(json.dumps(answer))
            return 0
        for arguments in ask.commands:
            code = _command(arguments)
            if code:
                return code
        return 0
    finally:
        atexit._run_exitfuncs()


def _command(arguments: list[str]) -> int:
    """The `lrtrain` command, from its own entry."""
    main = importlib.import_module("lrtrain.cli").main
    sys.argv = ["lrtrain", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _import_from(package: str) -> None:
    """From now on `import lrtrain` finds another copy."""
    for name in [name for name in sys.modules if name == "lrtrain" or name.startswith("lrtrain.")]:
        del sys.modules[name]
    sys.path.insert(0, package)
    found = importlib.import_module("lrtrain").__file__ or ""
    if not found.startswith(package):
        raise SystemExit(f"lrtrain was imported from {found}, not from {package}")


def _separate_processes(ask: Ask, rank: int, port: int) -> None:
    """Make equal what torchrun would set, and different what two processes that were not forked would have."""
    # What a shell starts in the background inherits that SIGINT is ignored, and under nohup SIGHUP.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    os.environ["COLUMNS"] = "200"
    if len(ask.folder) < LONGEST:
        tempfile.tempdir = ask.folder
    random.seed()
    import numpy

    numpy.random.seed()
    if ask.start_method is not None:
        import multiprocessing

        multiprocessing.set_start_method(ask.start_method, force=True)
    if ask.ranks > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "torture",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ask.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }


def _arrange(ask: Ask, rank: int) -> None:
    """Hook into torch, so that lrtrain's own code is as it is."""
    if ask.strange_folders:
        _list_strangely()
    mine = ask.only_rank is None or ask.only_rank == rank
    before: list[Callable[[int, Any], None]] = []
    after: list[Callable[[int, Any], None]] = []
    if ask.lrs is not None and rank == 0:
        before.append(_record_lrs(ask.lrs))
    if ask.probes is not None:
        after.append(_record_probes(ask.probes))
    if ask.at_step is not None and mine:
        (after if ask.after else before).append(_acting(ask.at_step, ask.act))
    if before or after:
        _at_updates(before, after)
    if ask.at_evaluation is not None and mine:
        _at_evaluations(_acting(ask.at_evaluation, ask.act))


def _at_updates(before: list[Callable[[int, Any], None]], after: list[Callable[[int, Any], None]]) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    for register, hooks in ((register_optimizer_step_pre_hook, before), (register_optimizer_step_post_hook, after)):
        register(_counting(hooks))


def _counting(hooks: list[Callable[[int, Any], None]]) -> Callable[..., None]:
    count = 0

    def hook(optimizer: Any, *_: Any) -> None:
        nonlocal count
        if sum(len(group["params"]) for group in optimizer.param_groups) == 1:
            return  # asked what it keeps, before a checkpoint is loaded
        count += 1
        for one in hooks:
            one(count, optimizer)

    return hook


def _at_evaluations(act: Callable[[int, Any], None]) -> None:
    from torch.nn.modules.module import register_module_forward_pre_hook

    from torture_parts.nets import Net

    count = -1  # lrtrain tries the model on two images before anything else

    def hook(module: Any, _: Any) -> None:
        nonlocal count
        if isinstance(module, Net) and not module.training:
            count += 1
            act(count, None)

    register_module_forward_pre_hook(hook)


def _acting(at: int, act: str) -> Callable[[int, Any], None]:
    def hook(count: int, _: Any) -> None:
        if count == at:
            _act(act)

    return hook


def _act(act: str) -> None:
    """Be killed, lose a data `worker`, or get signals: `SIGTERM`, `group:SIGTERM`, or two with a comma between."""
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "worker":
        import multiprocessing

        multiprocessing.active_children()[0].kill()
        return
    for one in act.split(","):
        name = one.removeprefix("group:")
        send = os.killpg if one.startswith("group:") else os.kill
        send(os.getpid(), getattr(signal, name))


def _record_lrs(path: str) -> Callable[[int, Any], None]:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def hook(_: int, optimizer: Any) -> None:
        lrs = [float(group["lr"]).hex() for group in optimizer.param_groups]
        os.write(file, (" ".join(lrs) + "\n").encode())

    return hook


def _record_probes(path: str) -> Callable[[int, Any], None]:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def hook(count: int, _: Any) -> None:
        if count == 1 or count % PROBE_EVERY == 0:
            os.write(file, (json.dumps(probe(count)) + "\n").encode())

    return hook


def probe(step: int) -> dict[str, float]:
    """This process's memory, open files, threads and clock."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "step": step,
        "memory_mib": int(status["VmRSS"].split()[0]) / 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "seconds": time.monotonic(),
    }


def _list_strangely() -> None:
    """Have folders listed in an order of this process's own, as another file system might."""
    real = os.scandir

    @contextmanager
    def scandir(*arguments: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
        with real(*arguments) as entries:
            shuffled = sorted(entries, key=lambda entry: entry.name, reverse=True)
        yield iter(shuffled)

    names = os.listdir
    os.scandir = scandir  # type: ignore[assignment, misc]
    os.listdir = lambda *arguments: sorted(names(*arguments), reverse=True)  # type: ignore[assignment]
