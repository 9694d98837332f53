"""A `RunConfig` becomes everything that training needs, and the config as it was resolved."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lrtrain import lookup
from lrtrain.config.duration import Duration
from lrtrain.config.schedule_checks import deaf_problems
from lrtrain.config.schema import RunConfig
from lrtrain.config.yaml import UNWRITABLE
from lrtrain.data.batches import Batches
from lrtrain.data.build import Pipeline, channels_seen, make_pipeline
from lrtrain.data.cache import refuse_unkept
from lrtrain.data.default_transforms import PHOTO
from lrtrain.data.open import epoch_steps, open_source
from lrtrain.data.order import smallest_part
from lrtrain.data.source import Source
from lrtrain.data.sources.webdataset import absolute
from lrtrain.engine.distributed import replicated
from lrtrain.engine.finite import Gate
from lrtrain.engine.graph import Graphs
from lrtrain.engine.memory import keep_freed_memory
from lrtrain.engine.mix import make_mix
from lrtrain.engine.precision import Precision, choose_device, choose_precision, make_deterministic
from lrtrain.engine.state import LossSums, TrainState, tensors_as_built
from lrtrain.engine.train import Recipe
from lrtrain.engine.trial import try_forward
from lrtrain.errors import ConfigError, about, out_of_memory, quoted
from lrtrain.models.build import BuiltModel, build_model, published
from lrtrain.models.small_maps import multiply_small_maps
from lrtrain.models.stem_pool import pool_before_relu
from lrtrain.optim.build import build_optimizer, momentum_of
from lrtrain.optim.groups import ParamGroup, make_groups
from lrtrain.optim.kept import parameters_of
from lrtrain.schedule.curve import NEVER
from lrtrain.schedule.extend import former_ends
from lrtrain.schedule.plan import GroupLR, Plan, make_plan, run_steps
from lrtrain.world import ALONE, World


@dataclass(frozen=True)
class Job:
    """One training run, ready to start: `config` is the config as resolved."""

    config: RunConfig
    source: Source
    pipeline: Pipeline
    batches: Batches
    built: BuiltModel
    groups: tuple[ParamGroup, ...]
    plan: Plan
    state: TrainState
    recipe: Recipe
    device: torch.device
    exact: bool = True
    """Whether the bits are those of a run that was never interrupted."""


def build(
    config: RunConfig,
    *,
    load_weights: bool = True,
    trained_with: Mapping[str, Any] | None = None,
    trains: bool = True,
    world: World = ALONE,
) -> Job:
    """Open the data, build model, optimizer and plan.

    Args:
        config: the run.
        load_weights: False where the model's state comes from a checkpoint.
        trained_with: `mean`, `std` and `input_size` of `BuiltModel`, where these weights are not loaded.
        trains: False where it is only evaluated, for which neither the training batches nor the schedule matter.
        world: the processes that train together, joined already.

    Raises:
        LrtrainError: whatever is wrong, before anything is trained or written.
    """
    device = choose_device(config.device, config.where("device"), world)
    precision = choose_precision(config.precision, device)
    make_deterministic(device, config.deterministic is True)
    if device.type == "cpu":
        keep_freed_memory()
    source = open_source(config.dataset, config.seed, config.where)
    per_epoch = epoch_steps(source, config.batch_size, config.drop_last, config.where)
    _refuse_sync_bn(config, device)
    built, groups, optimizer, plan = _planned(config, source, device, per_epoch, load_weights, precision, trains)
    built = replace(built, **(trained_with or {}))
    pipeline = _pipeline(config, source, built)
    try_forward(config, built.module, pipeline, len(source.classes), device)
    if trains:
        refuse_single_images(config, built.module, len(source.train), per_epoch, world)
    batches = Batches(
        pipeline,
        batch_size=config.batch_size,
        where=config.where,
        drop_last=config.drop_last,
        workers=config.workers,
        cache=config.cache,
        device=device,
        channels_last=True,
        world=world,
    )
    if config.sync_bn and world.size > 1:
        built = replace(built, module=torch.nn.SyncBatchNorm.convert_sync_batchnorm(built.module))  # type: ignore[no-untyped-call]
    names = {
        id(own): name for group in groups for own, name in zip(group.parameters, group.parameter_names, strict=True)
    }
    state = TrainState(
        model=built.module,
        forward=_compiled(built.module, config),
        optimizer=optimizer,
        parameter_names=tuple(names[id(parameter)] for parameter in parameters_of(optimizer)),
        gate=Gate(optimizer, device),
        graphs=_graphs(config, built.module, device, precision, world),
        losses=LossSums(
            torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device), world
        ),
        ema=_averaged(built.module, config),
        scaler=torch.amp.GradScaler(device.type) if precision == "fp16" else None,
        live=plan.start_live(),
        world=world,
        built=tensors_as_built(built.module),
        infinite=built.infinite,
        own=lookup.is_path(config.model.name),
    )
    recipe = _recipe(config, plan, precision, source)
    return Job(
        _resolved(config, device, precision, pipeline, world),
        source,
        pipeline,
        batches,
        built,
        groups,
        plan,
        state,
        recipe,
        device,
    )


def _pipeline(
    config: RunConfig, source: Source, built: BuiltModel, tried: Mapping[str, Sequence[int]] | None = None
) -> Pipeline:
    return make_pipeline(
        source,
        config.dataset,
        seed=config.seed,
        where=config.where,
        mean_std=None if built.mean is None or built.std is None else (built.mean, built.std),
        photo_size=built.input_size or PHOTO,
        tried=tried,
    )


def refuse_unfit(
    config: RunConfig, source: Source, left: Source, tried: Mapping[str, Sequence[int]], weights: bool
) -> None:
    """Refuse what `build` would of a config and its images, with nothing kept or downloaded, on the CPU.

    Own models alone are tried on a GPU where they will be trained on it: they may have been written for one.

    Args:
        config: the run.
        source: may have problems.
        left: what can be read of it.
        tried: the images of train and val of these that the transforms are tried on; without any they are not.
        weights: whether to load the file of weights that the config names.

    Raises:
        LrtrainError: as of `build`.
    """
    on_gpu = ":" in config.model.name and torch.cuda.is_available()
    device = choose_device(config.device if on_gpu else "cpu", config.where("device"), ALONE)
    per_epoch = epoch_steps(source, config.batch_size, config.drop_last, config.where)
    load = weights and config.model.weights is not None
    built, _, _, plan = _planned(config, source, device, per_epoch, load_weights=load, precision="fp32")
    if config.model.pretrained:
        built = replace(built, **published(config.model, built.module))
    refuse_single_images(config, built.module, len(source.train), per_epoch)
    _recipe(config, plan, "fp32", source)
    # What `auto` will be is for the machine to say that trains.
    said = device if config.device == "cpu" else torch.device("cuda")
    _refuse_sync_bn(config, said)
    _refuse_graph(config, _obstacle(config, said, config.precision, ALONE))
    if all(tried.get(split) for split in ("train", "val")):
        pipeline = _pipeline(config, left, built, tried)
        for name, split, stages in (("train", left.train, pipeline.train), ("val", left.val, pipeline.val)):
            refuse_unkept(name, split, stages, config.cache, config.where)
        try_forward(config, built.module, pipeline, len(source.classes), device)


def replicate(job: Job) -> None:
    """Average gradients over all processes, once it is known that they were given the same: torch fails where not."""
    with about(job.config.where("model", "name")):
        module = replicated(job.built.module, job.state.world, job.device)
    job.state.forward = _compiled(module, job.config)


def _compiled(module: torch.nn.Module, config: RunConfig) -> torch.nn.Module:
    """What trains, compiled where the config says so, for the same bits whatever was compiled before.

    Left alone torch compiles for any batch size after the second one that it sees, and runs as they are the last of
    many blocks that are compiled one by one; a process that goes on may see another one first.
    """
    if not config.compile:
        return module
    import torch._dynamo  # which takes seconds

    alike = Counter(
        getattr(type(part), "forward", type(part))  # a scripted one's class has none
        for part in module.modules()
        if not type(part).__module__.startswith("torch.nn.")
    )
    limits, most = torch._dynamo.config, 8 * max(alike.values(), default=1)
    limits.recompile_limit = max(limits.recompile_limit, most)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, most)
    # The compiler begins Pythons to look what the machine can do. They shall not take modules of the working folder's,
    # which may be a run from elsewhere.
    os.environ["PYTHONSAFEPATH"] = "1"
    return cast(torch.nn.Module, torch.compile(module, dynamic=False))


def _planned(
    config: RunConfig,
    source: Source,
    device: torch.device,
    per_epoch: int,
    load_weights: bool,
    precision: Precision,
    trains: bool = True,
) -> tuple[BuiltModel, tuple[ParamGroup, ...], Optimizer, Plan]:
    channels = channels_seen(source, config.dataset)
    built = build_model(config.model, len(source.classes), channels, config.seed, config.where, load_weights)
    # On the CPU only the images are channels-last, which is what makes the convolutions so: oneDNN brings the weights
    # into its own layout either way, and the fused optimizers copy whatever is not contiguous (3 % of a step).
    built.module.to(device=device)
    if device.type == "cpu":
        multiply_small_maps(built.module)
        pool_before_relu(built.module)
    else:
        channels_last(built.module)
    groups = make_groups(built.module, config.optimizer, config.where)
    optimizer = build_optimizer(groups, config.optimizer, device, config.where, scaled=precision == "fp16")
    # A name by import path, or a class made from torch's, is known only now.
    if isinstance(optimizer, torch.optim.Rprop) and (problems := deaf_problems(config)):
        raise ConfigError(problems)
    lrs = _group_lrs(config, groups, optimizer, per_epoch)
    # A long schedule takes minutes to plan.
    unplanned = {} if trains else {"schedule": (), "steps": 1, "epochs": None, "extended": None}
    return built, groups, optimizer, make_plan(config.model_copy(update=unplanned), lrs, per_epoch)


def channels_last(module: torch.nn.Module) -> None:
    """Lay out what images are multiplied with as the images are; torch fails where the module has a tensor of 5 sides.

    Also of a depthwise or 1 x 1 kernel, which is contiguous in either way, the strides are those: of gray images torch
    chooses the layout of what follows by them.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def model_and_plan(config: RunConfig, source: Source, per_epoch: int) -> tuple[torch.nn.Module, Plan]:
    """The network, with no weights loaded, and the plan, whose groups need its parameters; nothing to train with.

    Raises:
        ConfigError: the config's model, optimizer, groups or schedule contradict each other.
    """
    built, _, _, plan = _planned(config, source, torch.device("cpu"), per_epoch, load_weights=False, precision="fp32")
    return built.module, plan


def _graphs(
    config: RunConfig, module: torch.nn.Module, device: torch.device, precision: Precision, world: World
) -> Graphs | None:
    """What makes the passes of a step CUDA graphs, where that can be and was not refused."""
    if config.cuda_graph is False:
        return None
    obstacle = _obstacle(config, device, precision, world)
    _refuse_graph(config, obstacle)
    # What other code does in a forward pass besides starting kernels, a graph would leave out.
    known = not config.model.name.startswith("timm/") and ":" not in config.model.name
    if obstacle is None and (known or config.cuda_graph is True):
        return Graphs(list(module.parameters()), spare=config.cuda_graph == "auto")
    return None


def _obstacle(config: RunConfig, device: torch.device, precision: str, world: World) -> str | None:
    obstacles = (
        (f"device {device.type}", device.type != "cuda"),
        ("accumulate", config.accumulate > 1),
        ("precision fp16, whose loss is scaled", precision == "fp16"),
        (f"{world.size} processes", world.size > 1),
    )
    return next((what for what, there in obstacles if there), None)


def _refuse_graph(config: RunConfig, obstacle: str | None) -> None:
    if config.cuda_graph is True and obstacle is not None:
        what = f"cuda_graph: true cannot be with {obstacle}: a step must be one pass on one GPU"
        raise ConfigError(what, config.where("cuda_graph"), "leave it out: it is used where it can be")


def _averaged(module: torch.nn.Module, config: RunConfig) -> AveragedModel | None:
    if config.ema is None:
        return None
    try:
        return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)  # type: ignore[no-untyped-call]
    except Exception as error:  # of a network that may be anybody's
        if out_of_memory(error):
            raise
        why = str(error).partition(". ")[0][:200]
        hint = "leave it out; of torch's, parametrizations.weight_norm can be copied, and not weight_norm"
        raise ConfigError(
            f"ema needs a copy of the model, and none can be made: {why}", config.where("ema"), hint
        ) from error


def _refuse_sync_bn(config: RunConfig, device: torch.device) -> None:
    if config.sync_bn and device.type != "cuda":
        what = f"sync_bn needs CUDA: torch's SyncBatchNorm does not run on {device.type}"
        raise ConfigError(what, config.where("sync_bn"), "leave it out; each process then normalises its own images")


def refuse_single_images(
    config: RunConfig, model: torch.nn.Module, images: int, per_epoch: int, world: World = ALONE
) -> None:
    """Refuse to train BatchNorm on one image at a time: it has no variance over images, and torch may raise in the end.

    Args:
        config: the run.
        model: may have BatchNorm.
        images: in train.
        per_epoch: steps.
        world: the processes that train together.

    Raises:
        ConfigError: a batch, or a part of one, has a single image, and the model has BatchNorm.
    """

    def smallest(batch_size: int, drop_last: bool = config.drop_last) -> int:
        return smallest_part(images, batch_size, drop_last, config.accumulate, world.size)

    norms = [name for name, part in model.named_modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    synchronised = config.sync_bn and world.size > 1
    never_last = run_steps(config, per_epoch) < per_epoch
    if not norms or synchronised or smallest(config.batch_size, config.drop_last or never_last) > 1:
        return
    size, accumulate = config.batch_size, config.accumulate
    near = (size + way * k * accumulate for k in range(1, images + 1) for way in (-1, 1))
    other = next((b for b in near if accumulate < b <= images and smallest(b) > 1), None)
    last_only = images > size and smallest(size, drop_last=True) > 1
    fixes = ["`drop_last: true`"] if last_only else []
    fixes += [f"`batch_size: {other}`"] if other is not None else []
    fixes += ["a smaller `accumulate`"] if accumulate > 1 and not last_only else []
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    which = "the last batch of an epoch" if last_only else "a batch"
    raise ConfigError(
        f"BatchNorm needs two images or more at a time, and {which} leaves it one: {images:,} training images in "
        f"batches of {size}{parts}; {config.model.name} has {len(norms)} BatchNorm layers, such as {norms[0]}",
        config.where("batch_size"),
        f"write {', or '.join(fixes)}, or take a model without BatchNorm"
        if fixes
        else "take a model without BatchNorm",
    )


def _group_lrs(config: RunConfig, groups: Sequence[ParamGroup], optimizer: Optimizer, per_epoch: int) -> list[GroupLR]:
    # A share of the run as it was first planned: a group does not freeze again because the run is made longer.
    total = run_steps(_first(config), per_epoch)

    def frozen(until: Duration | None) -> int:
        if until is None:
            return 0
        return NEVER if until.unit == "%" and until.value >= 100 else min(until.to_steps(per_epoch, total), NEVER)

    lrs = [
        GroupLR(group.name, group.lr, momentum_of(own), frozen(group.frozen_until))
        for group, own in zip(groups, optimizer.param_groups, strict=True)
    ]
    if all(group.frozen_steps > 0 for group in lrs):
        where = config.where("optimizer", "groups")
        raise ConfigError("every group is frozen at first, so nothing would train", where, "leave one group unfrozen")
    return lrs


def _first(config: RunConfig) -> RunConfig:
    """The run as it was before it was extended."""
    return config.model_copy(update={"extended": None})


def _recipe(config: RunConfig, plan: Plan, precision: Precision, source: Source) -> Recipe:
    # As it was first planned: what a part of the run is does not change because the run is made longer.
    first = run_steps(_first(config), plan.steps_per_epoch)

    def steps(duration: Duration, *loc: str) -> int:
        count = duration.to_steps(plan.steps_per_epoch, first)
        if count == 0:
            raise ConfigError(
                f"{'.'.join(loc)}: {duration} is less than half a step", config.where(*loc), "1step or more"
            )
        return count

    return Recipe(
        seed=config.seed,
        total_steps=plan.total_steps,
        log_every=steps(config.log_every, "log_every"),
        eval_every=steps(config.eval_every, "eval_every"),
        checkpoint_every=steps(config.checkpoint.every, "checkpoint", "every"),
        precision=precision,
        val_images=len(source.val),
        accumulate=config.accumulate,
        clip_norm=config.clip_norm,
        label_smoothing=config.label_smoothing,
        mix=make_mix(config.mixup, config.cutmix, len(source.classes)),
        best=config.checkpoint.best,
        early_stop=config.early_stop,
        plateau=None if plan.live_from is None else config.schedule[-1].monitor or "val_loss",
        live_from=plan.live_from or 0,
        flip=config.tta == "flip",
        thawed_from=max(group.frozen_steps for group in plan.groups),
        former_ends=former_ends(config, first),
    )


def _resolved(
    config: RunConfig, device: torch.device, precision: Precision, pipeline: Pipeline, world: World
) -> RunConfig:
    """The config with everything decided that was automatic, and paths that hold from any folder."""
    data: dict[str, Any] = config.dump()
    # Of several processes each takes a GPU of its own, by the same config.
    data["device"] = str(device) if world.size == 1 else device.type
    data["precision"] = precision
    data["deterministic"] = device.type == "cpu" or config.deterministic is True
    data["dataset"]["transforms"] = pipeline.resolved_transforms
    dataset, name = data["dataset"], config.dataset.name
    paths = [("dataset", "root"), ("model", "weights")]
    if name in lookup.ours("dataset"):  # another's arguments of these names may be anything
        paths += [("dataset", "manifest"), ("dataset", "skip_list")]
    if name == "webdataset":
        paths.append(("dataset", "classes"))
    for section, option in paths:
        if data[section].get(option) is not None:
            data[section][option] = _from_anywhere(data[section][option], config.where(section, option))
    if not lookup.is_path(name):
        for split, own in dataset.get("splits", {}).items():
            if isinstance(own.get("root"), str):
                own["root"] = _from_anywhere(own["root"], config.where("dataset", "splits", split, "root"))
    if name == "webdataset":
        for part in [part for part in ("train", "val", "test") if part in dataset]:
            dataset[part] = absolute(dataset[part])
            _refuse_unwritable("".join(dataset[part]), config.where("dataset", part))
    resolved = RunConfig.model_validate(data)
    resolved._document = config._document
    return resolved


def _from_anywhere(path: str, where: str) -> str:
    # Links stay: what lies beside one, or how it is called, may not be so where it leads to.
    found = str(Path(os.path.expanduser(path)).absolute())
    _refuse_unwritable(found, where)
    return found


def _refuse_unwritable(path: str, where: str) -> None:
    """Refuse what the run's config.yaml could not say: the folder that one is in may have such a name."""
    if UNWRITABLE.search(path):
        what = f"a folder's name must be UTF-8 text, for the run's config.yaml to name it; got {quoted(path)}"
        raise ConfigError(what, where, "rename the folder; or make a link to the data elsewhere, and give its path")
