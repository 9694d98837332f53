"""What the bits of a run depend on besides its config, and what else a checkpoint says of where it comes from."""

from __future__ import annotations

import itertools
import os
import platform
import re
from contextlib import suppress
from typing import Any

import PIL
import torch
import torchvision

import lrtrain
from lrtrain.build import Job
from lrtrain.config.schema import RunConfig
from lrtrain.data.fingerprint import fingerprint
from lrtrain.errors import printable

# What may differ between a run and its continuation, because no result depends on it.
_FREE_TO_CHANGE = ("workers", "cache", "log_every", "checkpoint.disk_full_wait", "dataset.download")
# Which checkpoints there are; with `rollback` that is where training goes back to.
_CADENCE = ("checkpoint.every", "checkpoint.keep")
# The keys of `facts`, without which nothing is resumed.
FACTS = (
    "config",
    "classes",
    "origin",
    "dataset",
    "exact",
    "channels",
    "seed",
    "total_steps",
    "steps_per_epoch",
    "written_by",
)


# What has libraries compute with other kernels than they would take, or by fewer digits.
_KERNELS = {
    "cpu": (
        "ONEDNN_MAX_CPU_ISA",
        "DNNL_MAX_CPU_ISA",
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "DNNL_DEFAULT_FPMATH_MODE",
        "MKL_CBWR",
        "MKL_ENABLE_INSTRUCTIONS",
    ),
    "cuda": ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
}
_COMPILERS = re.compile(r"TORCH(_COMPILE|DYNAMO)_DISABLE|TORCHINDUCTOR_(?!.*CACHE|COMPILE_THREADS).+")
_AS_IF_UNSET = ("", "all", "default", "strict")  # for oneDNN; MKL's "auto" changes bits
# What of a CPU's flags decides which kernels there are.
_FLAGS = frozenset(
    ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16")
    + ("amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "sve", "sve2")
)


def free_to_change(config: RunConfig) -> tuple[str, ...]:
    """The keys that may differ between a run and its continuation."""
    if config.on_nonfinite != "rollback":
        return (*_FREE_TO_CHANGE, *_CADENCE)
    # Where fp16 has no scale left is seen when a line is logged.
    return tuple(key for key in _FREE_TO_CHANGE if config.precision != "fp16" or key != "log_every")


def origin(job: Job) -> dict[str, Any]:
    """What must be the same for the same bits: sums are split among threads and processes, kernels change."""
    return {
        "device": torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else job.device.type,
        "processor": _processor() if job.device.type == "cpu" else None,
        "kernels": _kernels(job),
        "threads": torch.get_num_threads(),
        "processes": job.state.world.size,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }


def _processor(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The CPU, whose kernels are chosen by what it can and by the size of its caches; and what torch takes it for.

    A virtual machine may be given no more of its name than the maker.
    """
    said: dict[str, str] = {}
    with suppress(OSError), open(cpuinfo, encoding="utf-8", errors="replace") as lines:  # Linux
        for line in itertools.takewhile(str.strip, lines):  # the first core's
            key, _, value = line.partition(":")
            said[key.strip().lower()] = value.strip()
    name = said.get("model name") or platform.processor() or platform.machine()
    which = [f"{key} {said[key]}" for key in ("cpu family", "model", "cpu part", "cache size") if key in said]
    flags = sorted(_FLAGS.intersection(said.get("flags", said.get("features", "")).split()))
    return ", ".join([name, *which, torch.backends.cpu.get_cpu_capability(), *flags])


def _kernels(job: Job) -> str:
    """The variables of the environment by which other kernels are taken."""
    names = [
        *_KERNELS.get(job.device.type, ()),
        *(filter(_COMPILERS.fullmatch, os.environ) if job.config.compile else ()),
    ]
    given = {name: os.environ.get(name, "") for name in sorted(names)}
    return " ".join(
        f"{name}={printable(value[:40])}" for name, value in given.items() if value.lower() not in _AS_IF_UNSET
    )


def facts(job: Job) -> dict[str, Any]:
    """What a checkpoint says besides the state."""
    return {
        "config": _what_results_depend_on(job),
        "classes": list(job.source.classes),
        "origin": origin(job),
        "dataset": fingerprint(job.source),
        "exact": job.exact,
        "channels": job.source.channels,
        "seed": job.config.seed,
        "total_steps": job.recipe.total_steps,
        "steps_per_epoch": job.plan.steps_per_epoch,
        "written_by": {"lrtrain": lrtrain.__version__, "python": platform.python_version()},
    }


def _what_results_depend_on(job: Job) -> dict[str, Any]:
    """The config, without what may change, so that equal results have equal manifests."""
    config = job.config.dump()
    for key in free_to_change(job.config):
        *parents, last = key.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        section.pop(last, None)
    return config


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """A config's values by their dotted keys."""
    if isinstance(data, dict):
        return {
            key: value
            for name, item in data.items()
            for key, value in flat(item, f"{prefix}.{name}" if prefix else name).items()
        }
    return {prefix: data}
