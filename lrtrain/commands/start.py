"""What a command begins with, before torch is imported: the config is read and refused where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrtrain.config.load import DEFAULT, load
from lrtrain.config.schema import RunConfig
from lrtrain.errors import CheckpointError, ConfigError
from lrtrain.lookup import is_path
from lrtrain.sinks.run_dir import RunDir, check_free, latest
from lrtrain.world import ALONE, World


@dataclass(frozen=True)
class Start:
    """A checked config: `label` is what it is called, `name` what its files are called after."""

    config: RunConfig
    label: str
    name: str
    path: Path | None


def start(config_path: Path | None, overrides: Sequence[str] | None) -> Start:
    """Read and check a config."""
    path = config_path or DEFAULT
    return Start(load(config_path, overrides or ()), str(path), path.stem, config_path)


def start_fit(
    config_path: Path | None, overrides: Sequence[str] | None, out: Path | None, *, resume: bool, world: World = ALONE
) -> tuple[Start, RunDir | None]:
    """Read and check a config to train, and find the run to go on with where `resume` says so.

    Processes that torchrun has started again go on with the run that they began.
    """
    if world.restarts:
        began = RunDir(out) if out is not None else latest((config_path or DEFAULT).stem)
        resume = began is not None and (began.checkpoints / "last.json").exists()
    elif not resume and world.leads:  # by the time that the others look, it may have begun to write
        check_free(out, "`--resume` continues the run in it")
    if not resume:
        return start(config_path, overrides), None
    if out is None and config_path is not None and (config_path.parent / "checkpoints").is_dir():
        out = config_path.parent
    name = (config_path or DEFAULT).stem
    run_dir = RunDir(out) if out is not None else latest(name)
    if run_dir is None or not run_dir.path.is_dir():
        raise CheckpointError(
            f"there is no run {str(out or f'runs/{name}')!r} to go on with", hint="leave out --resume to start one"
        )
    if not run_dir.config.exists():
        raise CheckpointError(
            f"{str(run_dir)!r} is no run directory: it has no config.yaml", hint="name one with --out"
        )
    return start(config_path or run_dir.config, overrides), run_dir


def start_from_run(path: Path, overrides: Sequence[str] | None, *, trust: bool) -> RunConfig:
    """Read the config of a run directory, which may come from anywhere.

    Raises:
        CheckpointError: it is no run directory.
        ConfigError: its config names code outside lrtrain, and `trust` is not given.
    """
    run_dir = RunDir(path)
    if not run_dir.config.exists():
        raise CheckpointError(
            f"{str(path)!r} is no run directory: it has no config.yaml", hint="such as runs/quickstart"
        )
    config = load(run_dir.config, overrides or ())
    if not trust:
        _refuse_foreign_code(config)
    return config


def _refuse_foreign_code(config: RunConfig) -> None:
    """A run directory may come from anywhere; code that it names is run only when the user says so."""
    named = [
        config.model.name,
        config.dataset.name,
        config.optimizer.name,
        *(phase.name for phase in config.schedule),
        *(t.name for ts in (config.dataset.transforms.train, config.dataset.transforms.val) for t in ts or ()),
    ]
    foreign = [name for name in named if is_path(name)]
    if foreign:
        raise ConfigError(
            f"the run's config names code outside lrtrain: {', '.join(foreign)}",
            hint="if you know the code, say --trust",
        )
