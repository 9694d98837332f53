"""What the hardware is good at, said once: device, autocast type, memory format."""

from __future__ import annotations

import os
import re
import warnings
from typing import Literal

import torch

from lrtrain.errors import ConfigError, EnvironmentFault
from lrtrain.world import ALONE, World

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, where: str, world: World = ALONE) -> torch.device:
    """The device that `device:` names; auto takes CUDA, then MPS, then the CPU; several processes a GPU each.

    A GPU by number is torch's current one from then on: its generators, streams and graphs are the current one's.

    Raises:
        ConfigError: it is not there. Nothing else is taken instead.
        EnvironmentFault: the environment takes threads away that torch counts on.
    """
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps and world.size == 1 else "cpu"
    device = torch.device(name)
    if world.size > 1:
        if device.type == "mps" or device.index is not None:
            what = f"device {name!r} is one device, and there are {world.size} processes"
            raise ConfigError(what, where, "write `device: cuda`, cpu or auto: each process takes one of its own")
        device = torch.device("cuda", world.local_rank) if device.type == "cuda" else device
    there = {"cuda": cuda > (device.index or 0), "mps": mps, "cpu": True}[device.type]
    if not there:
        found = ", ".join(["cpu", *(f"cuda:{i}" for i in range(cuda)), *(["mps"] if mps else [])])
        raise ConfigError(
            f"device {str(device)!r} is not on this machine",
            where,
            f"available: {found}; `device: auto` takes the best of them",
        )
    if device.type == "cpu":
        _refuse_missing_threads()
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _refuse_missing_threads() -> None:
    """OneDNN's convolutions wait for as many threads as were asked for; with fewer they wait for ever."""
    threads = torch.get_num_threads()
    limit = os.environ.get("OMP_THREAD_LIMIT", "").strip()
    found = {
        "OMP_THREAD_LIMIT": re.fullmatch(r"\+?0*[1-9][0-9]{0,9}", limit) is not None and int(limit) < threads,
        "OMP_MAX_ACTIVE_LEVELS": os.environ.get("OMP_MAX_ACTIVE_LEVELS", "").strip() == "0",
        "OMP_DYNAMIC": os.environ.get("OMP_DYNAMIC", "").strip().lower() == "true",
    }
    if threads > 1 and any(found.values()):
        name = next(name for name, so in found.items() if so)
        what = f"{name}={os.environ[name].strip()[:80]} lets fewer threads start than torch counts on, {threads}"
        hint = f"unset {name}, or set OMP_NUM_THREADS=1: torch's convolutions would wait for the others for ever"
        raise EnvironmentFault(what, hint=hint)


def choose_precision(name: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """`auto` is bf16 autocast where the device has it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if native else "fp32"
    return "fp32"


def make_deterministic(device: torch.device, wanted: bool) -> None:
    """On CPU always, elsewhere when asked: operations that do not repeat exactly raise an error."""
    if device.type == "cuda" and wanted:
        # cuBLAS repeats exactly only with workspaces of fixed size, which it reads before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted or device.type == "cpu")
    # Filling every new tensor with NaN finds reads of memory that nothing wrote; no result depends on it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not wanted
    if wanted or device.type == "cpu":
        # What torch.jit has fused by its third call differs in the last bits from what it ran before.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and so is all of torch.jit
            torch.jit.set_fusion_strategy([])
