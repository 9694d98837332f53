"""What a command begins with, before torch is imported: the config is read and refused where it is wrong.

A config that lies in a run directory may come from anywhere, as the directory may. Code that it names is run only when
the user says `--trust`; a config of the user's own may name what it likes.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrtrain.config.load import DEFAULT, load
from lrtrain.config.schema import Named, RunConfig
from lrtrain.data.composed import flat
from lrtrain.errors import CheckpointError, ConfigError, LrtrainError, quoted
from lrtrain.lookup import is_path, texts
from lrtrain.sinks.run_dir import RunDir, check_free, is_run, latest, refuse_lost_link, refuse_other_files, was_begun
from lrtrain.world import ALONE, World
from lrtrain.writing import is_of_the_system

# Each machine may have its images where it likes, and prepare them as it can.
OWN_OF_A_MACHINE = ("workers", "cache", "dataset.root", "dataset.download")
# Transforms that convert to float or normalise; a default of each comes last.
_ENDINGS = ("ToDtype", "Normalize", "ToTensor", "ConvertImageDtype")


@dataclass(frozen=True)
class Start:
    """A checked config: `label` is what it is called, `name` what its files are called after; and its `--set`s."""

    config: RunConfig
    label: str
    name: str
    path: Path | None
    overrides: tuple[str, ...] = ()


def start(config_path: Path | None, overrides: Sequence[str] | None, *, trust: bool = False) -> Start:
    """Read and check a config.

    Raises:
        ConfigError: it is wrong, or it lies in a run directory and names code outside lrtrain, without `trust`.
    """
    path = config_path or DEFAULT
    foreign = is_from_a_run(path)  # before and after it is read: meanwhile it may be moved out of a run, and back
    config = load(config_path, overrides or ())
    if foreign or is_from_a_run(path):
        config = _without_downloads(config)
        if not trust:
            own = f"name your own config in place of {path}, or if you know the code, say --trust"
            _refuse_foreign_code(config, own)
    return Start(config, str(path), path.stem, config_path, tuple(overrides or ()))


def is_from_a_run(path: Path) -> bool:
    """Whether a config lies in a run directory, by any of its names."""
    places = (path, Path(os.path.abspath(path)), Path(os.path.realpath(path)))
    return any(is_run(place.parent) or _is_of_a_run(place) for place in places)


def start_fit(
    config_path: Path | None,
    overrides: Sequence[str] | None,
    out: Path | None,
    *,
    resume: bool,
    trust: bool = False,
    world: World = ALONE,
) -> tuple[Start, RunDir | None]:
    """Read and check a config to train, and find the run to go on with where `resume` says so.

    Processes that torchrun has started again go on with the run that they began, by the config that they began with,
    whatever was begun or edited since.
    """
    if world.restarts:
        began = RunDir(out) if out is not None else latest((config_path or DEFAULT).stem, world)
        if began is not None and was_begun(began, world) and began.config.exists():
            if not resume:
                refuse_lost_link(began)
                refuse_other_files(began)
                config = _begun_here(began, config_path or DEFAULT, overrides or (), trust=trust)
                return Start(config, str(began.config), began.config.stem, began.config), began
            out = began.path
    if not resume and world.leads and out is not None:  # by the time that the others look, it may have begun to write
        check_free(out)
    if not resume:
        started = start(config_path, overrides, trust=trust)
        if out is None and world.leads:
            check_free(None)
        return started, None
    if out is None and config_path is not None and config_path.name == "config.yaml" and is_run(config_path.parent):
        out = config_path.parent
    name = (config_path or DEFAULT).stem
    run_dir = RunDir(out) if out is not None else latest(name)
    refuse_lost_link(run_dir)
    if run_dir is None or not run_dir.path.is_dir():
        raise CheckpointError(
            f"there is no run {quoted(str(out or f'runs/{name}'))} to go on with",
            hint="leave out --resume to start one",
        )
    if not run_dir.config.exists():
        raise CheckpointError(
            f"{quoted(str(run_dir))} is no run directory: it has no config.yaml", hint="name one with --out"
        )
    refuse_other_files(run_dir)
    if config_path is not None:
        return start(config_path, overrides, trust=trust), run_dir
    config = _of_a_run(run_dir, overrides or ())
    if not trust:
        again = f"lrtrain fit CONFIG --resume --out {run_dir.typed}"
        own = f"name your own config: `{again}`; or if you know the code, say --trust"
        _refuse_foreign_code(config, own)
    return Start(config, str(run_dir.config), run_dir.config.stem, run_dir.config), run_dir


def _begun_here(run: RunDir, config_path: Path, overrides: Sequence[str], *, trust: bool) -> RunConfig:
    """The config that a run began with, as it is on this machine, whose images may lie elsewhere.

    Raises:
        ConfigError: without `trust`, it names code that the command's own config does not, and others may have
            written it since.
    """
    own = [override for override in overrides if override.partition("=")[0] in OWN_OF_A_MACHINE]
    config = load(run.config, own)
    if not trust and not _is_ours_alone(run) and (named := code_of(config)):
        said = [*overrides, *([config_path.read_text("utf-8", "replace")] if config_path.is_file() else [])]
        if is_from_a_run(config_path) or any(not any(code in text for text in said) for code in named):
            _refuse_foreign_code(config, f"see that {config_path} still names it, or if you know the code, say --trust")
    root = config.dataset.root
    if root is not None and not config.overridden("dataset", "root") and not os.path.exists(root):
        with suppress(LrtrainError):  # it may be being edited
            moved = load(config_path, overrides).dataset.root
            config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"root": moved})})
    return config


def _is_ours_alone(run: RunDir) -> bool:
    """Whether nobody else may write the config of a run, or put another in its place."""
    found = [os.stat(path) for path in (run.path, run.config)]
    return all(status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for status in found)


def start_from_run(path: Path, overrides: Sequence[str] | None, *, trust: bool, evaluates: bool = False) -> RunConfig:
    """Read the config of a run directory, which may come from anywhere; to evaluate it, perhaps on other images.

    Raises:
        CheckpointError: it is no run directory.
        ConfigError: its config names code outside lrtrain, and `trust` is not given.
    """
    run_dir = RunDir(path)
    refuse_lost_link(run_dir)
    if not run_dir.config.exists():
        raise CheckpointError(
            f"{quoted(str(path))} is no run directory: it has no config.yaml", hint="such as runs/quickstart"
        )
    if run_dir.config.is_symlink() or not run_dir.config.is_file():
        what = f"a run's config.yaml is a file, and this is {'a link' if run_dir.config.is_symlink() else 'none'}"
        raise CheckpointError(what, str(run_dir.config), "restore it from a copy")
    config = _of_a_run(run_dir, overrides or ())
    if evaluates and config.dataset != (own := _of_a_run(run_dir, ())).dataset:
        config = _as_trained(config, own)
    if not trust:  # the last step, since whatever is added before may name code
        _refuse_foreign_code(config, "if you know the code, say --trust")
    return config


def _as_trained(config: RunConfig, own: RunConfig) -> RunConfig:
    """The config with the run's val list where `--set` gives none: other defaults suit other images.

    The train list, which is not used and may not take these images, is what val's is but for how the run normalises:
    val's must not do so otherwise, and does likewise where it does not say.
    """
    given, trained = _flat(config.dataset.transforms.val), _flat(own.dataset.transforms.val)
    lists = {"train": trained, "val": trained}
    if trained is None:
        lists = {"train": own.dataset.transforms.train, "val": given}
    elif given is not None:
        ending = [one for one in trained if one.name in _ENDINGS]
        first = next((i for i, one in enumerate(given) if one.name in _ENDINGS), len(given))
        rest = [one for one in given[first:] if one.name not in _ENDINGS]
        lists = {"train": (*given[:first], *ending, *rest), "val": given}
    transforms = config.dataset.transforms.model_copy(update=lists)
    return config.model_copy(update={"dataset": config.dataset.model_copy(update={"transforms": transforms})})


def _flat(written: tuple[Named, ...] | None) -> tuple[Named, ...] | None:
    if written is None:
        return None
    entries = [{"name": item.name, **item.args} for item in written]
    return tuple(Named.model_validate(entry) for _, entry in flat(entries))


def _of_a_run(run_dir: RunDir, overrides: Sequence[str]) -> RunConfig:
    return _without_downloads(load(run_dir.config, overrides))


def _without_downloads(config: RunConfig) -> RunConfig:
    """What a run was to download it has, and a directory from elsewhere shall not have it put anywhere.

    What `--set` asks for is no word of the directory's.
    """

    def asked(args: Mapping[str, Any], *loc: str) -> bool:
        return "download" in args and not config.overridden("dataset", *loc, "download")

    left: dict[str, Any] = {"download": False} if asked(config.dataset.args) else {}
    splits = config.dataset.args.get("splits")
    if isinstance(splits, Mapping):
        left["splits"] = {
            split: {**own, "download": False} if isinstance(own, Mapping) and asked(own, "splits", split) else own
            for split, own in splits.items()
        }
    return config.model_copy(update={"dataset": config.dataset.model_copy(update=left)}) if left else config


def start_check(target: Path | None, overrides: Sequence[str] | None, *, trust: bool) -> RunConfig | Path:
    """Read and check a config, or a run directory's; a folder of images is what is left.

    Raises:
        ConfigError: the config is wrong, or overrides are given for a folder.
    """
    if target is None or not _is_folder(target):
        return start(target, overrides, trust=trust).config
    # A run that was killed at once has nothing but its config, which folders of photos may have beside them.
    if is_run(target) or ((target / "config.yaml").is_file() and not _has_folders(target)):
        return start_from_run(target, overrides, trust=trust)
    if overrides:
        what = f"--set changes a config, and {str(target)!r} is none"
        raise ConfigError(what, hint="leave --set out, or name a config")
    return target


def refuse_overwriting(
    written: Mapping[str, Path | None], config_path: Path | None, config: RunConfig | Path | None
) -> None:
    """Refuse to write two files in one, or over the config, a file that it names, such as a manifest, or a run's own.

    Args:
        written: the files to be written, by their options.
        config_path: the config, or the run directory that it lies in; ./lrtrain.yaml when None.
        config: what it says; a folder of images says nothing.

    Raises:
        ConfigError: names both.
    """
    path = config_path or DEFAULT
    named = _files_of(config) if isinstance(config, RunConfig) else ()
    taken = {os.path.realpath(path / "config.yaml" if path.is_dir() else path): "the config"}
    taken |= {os.path.realpath(file): "a file that the config names" for file in named}
    for option, file in written.items():
        if file is None or is_of_the_system(file):
            continue
        other = taken.setdefault(os.path.realpath(file), option)
        # A run's checkpoints may be a link to another disk, and the file a link into a run.
        if any(_is_of_a_run(Path(path)) for path in (os.path.abspath(file), os.path.realpath(file))):
            other = "a run's own"
        if other != option:
            what = f"{option} would write over {other}: {quoted(str(file))}"
            raise ConfigError(what, f"{option} {quoted(str(file))}", "name another file")


def _is_of_a_run(file: Path) -> bool:
    """Whether a run keeps it: one of its own files, or anything among its checkpoints."""
    run = RunDir(file.parent)
    own = (run.config, run.curve, run.metrics, run.timing, run.status)
    if file in own and is_run(run.path):
        return True
    return any(RunDir(folder.parent).checkpoints == folder and is_run(folder.parent) for folder in file.parents)


def _files_of(config: RunConfig) -> list[str]:
    """The files that a config names: its weights, and a dataset's manifest, skip list and the like."""
    named = texts({"model": config.model.weights, "dataset": config.dataset.args})
    return [file for file in map(os.path.expanduser, named) if os.path.isfile(file)]


def _is_folder(path: Path) -> bool:
    """Whether `path` is meant as a folder: it is one, or an archive of one, or nothing that a config is called."""
    archives = tuple(ending for _, endings, _ in shutil.get_unpack_formats() for ending in endings)
    is_file = path.is_file() or path.is_fifo()
    is_config = path.suffix in (".yaml", ".yml") or (is_file and not path.name.lower().endswith(archives))
    return path.is_dir() or not is_config


def _has_folders(path: Path) -> bool:
    try:
        with os.scandir(path) as entries:
            return any(entry.is_dir() for entry in entries if not entry.name.startswith("."))
    except OSError:  # said by who reads it
        return False


def code_of(config: RunConfig) -> list[str]:
    """The import paths that a config names, wherever: also a chain's schedulers and transforms inside transforms."""
    return list(dict.fromkeys(text for text in texts(config.dump()) if is_path(text)))


def again(run_dir: RunDir, config: RunConfig) -> str:
    """The command that goes on with a run, as it is typed."""
    return f"lrtrain fit --resume --out {run_dir.typed}" + (" --trust" if code_of(config) else "")


def _refuse_foreign_code(config: RunConfig, hint: str) -> None:
    if foreign := code_of(config):
        what = f"the run's config names code outside lrtrain: {', '.join(map(quoted, foreign[:4]))}"
        raise ConfigError(what + f" and {len(foreign) - 4} more" * (len(foreign) > 4), config.where(), hint)
