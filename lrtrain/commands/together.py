"""Whether all processes of a run were given the same; the gradients of others would be averaged in silence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrtrain.checkpoint.format import Checkpoint, open_checkpoint
from lrtrain.commands.origin import flat
from lrtrain.commands.start import OWN_OF_A_MACHINE
from lrtrain.config.schema import RunConfig
from lrtrain.engine.distributed import other_than_the_leader, told_by_the_leader
from lrtrain.errors import CheckpointError, ConfigError, DataError, DistributedError, Problem, printable, quoted
from lrtrain.world import World

_MOST = 10


def refuse_other_config(config: RunConfig, options: Mapping[str, Any], world: World) -> None:
    """Refuse a config or a command line that is not the leading process's.

    Args:
        config: this process's.
        options: of its command line, by name.
        world: the processes; each must ask.

    Raises:
        ConfigError: it differs.
    """
    own = {key: value for key, value in flat(config.dump()).items() if key not in OWN_OF_A_MACHINE}
    differ = other_than_the_leader({**options, **own}, world)
    if differ:
        raise ConfigError(
            Problem(
                f"{key} is {_shown(own)} in process {world.rank}, and {_shown(leaders)} in process 0",
                None if key in options else config.where(*key.split(".")),
                "give every process the same: copy the config to every machine, and type the same command",
            )
            for key, (leaders, own) in list(differ.items())[:_MOST]
        )


def refuse_other_start(known: Mapping[str, Any], world: World) -> None:
    """Refuse images, or what else the bits depend on, that are not the leading process's.

    Args:
        known: what a checkpoint would say of this process, `facts`.
        world: the processes; each must ask.

    Raises:
        DataError: its images differ.
        DistributedError: its device, number of threads or versions do.
    """
    parts = {f"{split}/{name}": part for split, classes in known["dataset"].items() for name, part in classes.items()}
    data = {"its classes": known["classes"], **parts}
    differ = other_than_the_leader({**data, **known["origin"]}, world)
    if images := [key for key in differ if key not in known["origin"]]:
        shown = ", ".join(map(printable, images[:_MOST])) + " ..." * (len(images) > _MOST)
        raise DataError(
            f"the dataset of process {world.rank} is not that of process 0; they differ in {shown}",
            hint="every machine needs the same images, under the same names: copy the dataset once more",
        )
    if differ:
        kinds = (f"{key} {own or 'none'} and not {leaders or 'none'}" for key, (leaders, own) in differ.items())
        raise DistributedError(
            f"process {world.rank} would not compute what process 0 does: it has {', '.join(kinds)}",
            hint="every machine needs the same GPUs (without any, the same CPU) and versions, and the same environment "
            "variables, OMP_NUM_THREADS among them",
        )


def the_leaders(own: Checkpoint | None, root: Path, world: World) -> Checkpoint | None:
    """The checkpoint that the leading process goes on from, in every process; None where it has none.

    Args:
        own: found by the leading process, which alone looks: another folder may have a newer or an older one.
        root: where this process finds checkpoints.
        world: the processes; each must ask.

    Raises:
        CheckpointError: this process lacks it, or has other bytes under its name.
    """
    name = told_by_the_leader("" if own is None else own.path.name, world)
    if not name:
        return None
    path = root / name
    found = own or (open_checkpoint(path) if path.exists() else None)
    if found is None or other_than_the_leader({"digest": found.digest}, world):
        raise CheckpointError(
            f"process 0 goes on from {name}, and process {world.rank} has {'none' if found is None else 'another'} "
            "of that name",
            str(path),
            "give --out a folder that all machines share, or copy the run of process 0 to every machine",
        )
    return found


def _shown(value: Any) -> str:
    return "absent" if value is None else quoted(str(value))
