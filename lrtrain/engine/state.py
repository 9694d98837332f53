"""Everything that training changes, and its exact round trip through a checkpoint."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from lrtrain.checkpoint.format import Checkpoint
from lrtrain.checkpoint.manifest import COPY
from lrtrain.engine.distributed import summed
from lrtrain.engine.finite import Gate
from lrtrain.engine.fits import refuse_not_finite, refuse_odd_state, refuse_other_module, refuse_other_optimizer
from lrtrain.engine.graph import Graphs
from lrtrain.errors import CheckpointError, ConfigError
from lrtrain.models.loading import load_unchanged, same_bits
from lrtrain.optim.kept import kept, parameters_of, put_back
from lrtrain.schedule.plan import Plan
from lrtrain.schedule.plateau import Live
from lrtrain.tensor_header import Described, described
from lrtrain.world import ALONE, World


@dataclass
class Best:
    """A monitored metric's best value so far, and how many evaluations ago it was reached."""

    value: float | None = None
    step: int = 0
    stale: int = 0


_LARGEST_SCALE = float(torch.finfo(torch.float32).max)
ROLLBACK_FACTOR = 0.5  # of the LR, each time that training goes back


@dataclass(frozen=True, slots=True)
class Rollback:
    """Step `failed` (from 1) was not finite; training went back to step `to` and goes on with LRs times `factor`."""

    failed: int
    to: int
    factor: float


@dataclass
class LossSums:
    """Sums of the training loss over images, each since its own last reset, kept on the device.

    A loss is fetched to the host only when a mean is asked for, so a step waits for nothing.
    """

    NAMES = ("log", "evaluation", "epoch")
    sums: Tensor
    world: World = ALONE
    images: list[int] = field(default_factory=lambda: [0, 0, 0])

    def add(self, loss_sum: Tensor, images: int) -> None:
        """Count one step: the loss summed over this process's images, and the images of all processes."""
        self.sums += loss_sum
        self.images = [count + images for count in self.images]

    def take(self, name: str) -> float:
        """The mean since `name` was last taken."""
        i = self.NAMES.index(name)
        mean = float(summed(self.sums[i], self.world)) / max(self.images[i], 1)
        self.sums[i] = 0.0
        self.images[i] = 0
        return mean

    def gather(self) -> None:
        """Leave the sums of all processes with the leading one, which saves them."""
        total = summed(self.sums, self.world)
        self.sums = total if self.world.leads else torch.zeros_like(total)


@dataclass
class TrainState:
    """The model, what trains it, and counters. The LR is not among them: it follows from `step`.

    Attributes:
        model: the network; `forward` is the same one, compiled and spread over processes when asked.
        parameter_names: names of the optimizer's parameters, in its order.
        step: optimizer steps taken (attempted, where a scaler skips one).
        gate: lets the optimizer step where loss and gradients are finite.
        graphs: makes the passes of a step on a GPU, where they are to be CUDA graphs.
        pending: the evaluation that is due at `step` has not been made yet.
        whole: between two steps, all that belongs to the last one is done, and can be saved.
        rollbacks: how often and where training went back, for `Plan.lowered`.
        built: `tensors_as_built` of the model.
        infinite: `infinite_buffers` of it.
        own: whether the model is code of one's own, which may compute something as it is loaded.
    """

    model: nn.Module
    forward: nn.Module
    optimizer: Optimizer
    parameter_names: tuple[str, ...]
    losses: LossSums
    gate: Gate
    graphs: Graphs | None = None
    ema: AveragedModel | None = None
    scaler: torch.amp.GradScaler | None = None
    live: Live | None = None
    world: World = ALONE
    step: int = 0
    pending: bool = False
    whole: bool = False
    rollbacks: list[Rollback] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    early: Best = field(default_factory=Best)
    built: dict[str, Tensor | Described] = field(default_factory=dict)
    infinite: frozenset[str] = frozenset()
    own: bool = False

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and used afterwards: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module


def snapshot(state: TrainState) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The state as tensors by part and JSON, from which `restore` makes the same bits again.

    Raises:
        CheckpointError: the optimizer keeps what a checkpoint cannot hold.
        ConfigError: the model has changed a buffer that a checkpoint leaves out, or the shape of one that it holds, or
            has other parameters.
    """
    refuse_lost(state.model, state.built)
    if state.own:
        refuse_replaced(state.model, dict(zip(state.parameter_names, parameters_of(state.optimizer), strict=True)))
        _refuse_outdated(state.model)
    tensors, scalars = kept(state.optimizer, state.parameter_names)
    parts: dict[str, dict[str, Tensor]] = {"model": dict(state.model.state_dict()), "optimizer": tensors}
    if state.ema is not None:
        parts["ema"] = dict(state.ema.module.state_dict())
    manifest = {
        "pending": state.pending,
        "rollbacks": [asdict(rollback) for rollback in state.rollbacks],
        "best": vars(state.best),
        "early": vars(state.early),
        "loss_sums": state.losses.sums.tolist(),
        "loss_images": state.losses.images,
        "optimizer": scalars,
        "optimizer_parameters": sum(bool(kept) for kept in state.optimizer.state.values()),
        "ema_updates": None if state.ema is None else int(state.ema.n_averaged),
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
        "plateau": None if state.live is None else dict(state.live.state()),
    }
    return parts, manifest


def tensors_as_built(module: nn.Module) -> dict[str, Tensor | Described]:
    """Type and shape of all that a checkpoint holds, and copies of the buffers and frozen parameters that it does not.

    Those follow from the model.
    """
    return {**described(module.state_dict()), **{name: buffer.detach().clone() for name, buffer in _unsaved(module)}}


def _unsaved(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    saved = module.state_dict()
    places = {tensor.data_ptr() for tensor in saved.values()} - {0}  # an own network may give them other names
    frozen = [(name, parameter) for name, parameter in module.named_parameters() if not parameter.requires_grad]
    held = dict((*module.named_buffers(), *frozen))
    # Under other names it may give copies too: of all that torch would have saved.
    renamed = not saved.keys() <= {*held, *dict(module.named_parameters())}
    parts = module.named_modules()
    short_lived = {f"{path}.{name}".lstrip(".") for path, part in parts for name in part._non_persistent_buffers_set}
    for name, tensor in held.items():
        if name in saved or tensor.layout != torch.strided or tensor.data_ptr() in places:
            continue
        if name in short_lived or not renamed:
            yield name, tensor


def refuse_lost(module: nn.Module, built: dict[str, Tensor | Described]) -> None:
    """Refuse a model that could not be resumed as it is now.

    What a checkpoint holds is of other shapes than the model is built with; or buffers with `persistent=False` are no
    constants, so that what they hold would be lost. Of those, one that was None or of another shape before passes for a
    cache, such as of positions, that is made anew where it is needed: it may not change from here on.

    Args:
        module: as training has left it.
        built: its `tensors_as_built`, to which such caches are added.

    Raises:
        ConfigError: names the first such tensor.
    """
    saved = described(module.state_dict())
    were = {name: kind for name, kind in built.items() if isinstance(kind, Described)}
    if changed := [name for name in saved | were if saved.get(name) != were.get(name)]:
        first = changed[0]
        raise ConfigError(
            f"the model changes the type or shape of its {first!r} while it trains, from {were.get(first, 'none')} to "
            f"{saved.get(first, 'none')}, and a checkpoint fits only the model as it is built",
            hint="register it in the type and shape that it ends with, and write into it, as `copy_` does",
        )
    for name, new in _unsaved(module):
        old = built.get(name)
        if isinstance(old, Tensor) and old.shape == new.shape and not same_bits(old, new):
            why, hint = "with `persistent=False`", "leave `persistent=False` out where it is registered"
            if name in dict(module.named_parameters()):
                why, hint = "as state_dict() leaves it out,", "let state_dict() give it"
            what = f"the model changes its {'parameter' if 'state_dict' in why else 'buffer'} {name!r} while it trains"
            raise ConfigError(f"{what}, and {why} no checkpoint holds it", hint=hint)
        if not isinstance(old, Tensor) or old.shape != new.shape:
            built[name] = new.detach().clone()


def refuse_replaced(module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Refuse a model that has other parameters by now: the optimizer goes on with those that it was built with.

    Args:
        module: as training has left it.
        parameters: those that it had, by name.

    Raises:
        ConfigError: names the first.
    """
    held = set(map(id, module.parameters()))
    if lost := [name for name, parameter in parameters.items() if id(parameter) not in held]:
        what = f"the model replaces its parameter {lost[0]!r} while it trains, and the new one is trained by nobody"
        raise ConfigError(what, hint="write into the one that it has, as `copy_` does")


def _refuse_outdated(module: nn.Module) -> None:
    """Refuse buffers that a resumed run would have otherwise, as they follow from weights that have changed since.

    The module is loaded with what it has, as it will be then; what it makes of that is taken away again.
    """
    were = {name: tensor.detach().clone() for name, tensor in _unsaved(module)}
    if not were:
        return
    held = [(part, dict(part._buffers)) for part in module.modules()]
    state = module.state_dict()
    load_unchanged(module, state, {name: tensor.detach().clone() for name, tensor in state.items()})
    now = dict((*module.named_buffers(), *module.named_parameters()))
    changed = [name for name, old in were.items() if name in now and not same_bits(old, now[name])]
    if outdated := [name for name in changed if now[name].shape == were[name].shape]:
        what = f"the model computes its buffer {outdated[0]!r} when it is loaded, and has another one while it trains"
        raise ConfigError(what, hint="compute it in forward(), or leave `persistent=False` out where it is registered")
    for part, buffers in held:
        part._buffers.clear()
        part._buffers.update(buffers)


def restore(state: TrainState, plan: Plan, checkpoint: Checkpoint) -> None:
    """Put a checkpoint into a freshly built state.

    Raises:
        CheckpointError: it is of another model, optimizer or config.
    """
    manifest = checkpoint.manifest
    missing = [
        key
        for key in (
            "pending",
            "rollbacks",
            "best",
            "early",
            "loss_sums",
            "loss_images",
            "optimizer",
            "optimizer_parameters",
            "ema_updates",
            "scaler",
            "plateau",
        )
        if key not in manifest
    ]
    if missing:
        raise CheckpointError(f"the manifest lacks {', '.join(missing)}", str(checkpoint.path), COPY)
    if (state.ema is None) != ("ema.safetensors" not in checkpoint.files):
        what = (
            f"the checkpoint has {'averaged weights' if state.ema is None else 'no averaged weights'}, unlike this run"
        )
        raise CheckpointError(what, str(checkpoint.path), "go on with the config that it was made with: `ema` differs")
    momenta = [group.momentum for group in plan.groups]
    refuse_other_optimizer(state.optimizer, state.parameter_names, momenta, checkpoint)
    try:
        load_module(state.model, checkpoint, "model", state.infinite)
        if state.ema is not None:
            load_module(state.ema.module, checkpoint, "ema", state.infinite)
            state.ema.n_averaged.fill_(manifest["ema_updates"])
        tensors = checkpoint.tensors("optimizer")
        refuse_not_finite(tensors, checkpoint, "optimizer")
        refuse_odd_state({**tensors, **manifest["optimizer"]}, state.optimizer, checkpoint)
        put_back(state.optimizer, state.parameter_names, tensors, manifest["optimizer"])
        _refuse_other_scaler(state.scaler, manifest["scaler"], checkpoint)
        if state.scaler is not None:
            state.scaler.load_state_dict(manifest["scaler"])
        state.live = plan.start_live(manifest["plateau"])
        state.step, state.pending = checkpoint.step, manifest["pending"]
        state.rollbacks = [Rollback(**rollback) for rollback in manifest["rollbacks"]]
        state.best, state.early = _best(manifest["best"]), _best(manifest["early"])
        if state.world.leads:
            state.losses.sums.copy_(torch.tensor(manifest["loss_sums"], dtype=torch.float64))
        else:
            state.losses.sums.zero_()
        state.losses.images = list(manifest["loss_images"])
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        what = f"the checkpoint does not hold a state of this run: {why}"
        raise CheckpointError(what, str(checkpoint.path), "go on with the config that it was made with") from error


def _refuse_other_scaler(
    scaler: torch.amp.GradScaler | None, saved: Mapping[str, float] | None, checkpoint: Checkpoint
) -> None:
    own = None if scaler is None else scaler.state_dict()
    moving = {} if own is None or saved is None else {key: saved.get(key, 0.0) for key in ("scale", "_growth_tracker")}
    if saved is None or own is None:
        why = None if saved is own else f"there is {'none' if saved is None else 'one'}, unlike in this run"
    elif {**saved, **moving} != {**own, **moving}:
        why = f"this run's has {', '.join(f'{key} {own[key]}' for key in own if key not in moving)}"
    elif not 0 < moving["scale"] <= _LARGEST_SCALE:
        why = f"scale must be above 0 and at most {_LARGEST_SCALE:g}; it is {moving['scale']:g}"
    elif moving["_growth_tracker"] not in range(int(own["growth_interval"])):
        why = f"_growth_tracker counts to {own['growth_interval']}; it is {moving['_growth_tracker']:g}"
    else:
        why = None
    if why is not None:
        raise CheckpointError(f"the manifest's scaler is not this run's: {why}", str(checkpoint.path), COPY)


def _best(saved: Mapping[str, Any]) -> Best:
    return Best(saved["value"], saved["step"], saved["stale"])


def load_module(module: nn.Module, checkpoint: Checkpoint, part: str, infinite: Container[str] = ()) -> None:
    """Load one part of a checkpoint into a module, of exactly its shapes and types, and finite but for `infinite`."""
    refuse_other_module(module, checkpoint, part)
    tensors = checkpoint.tensors(part)
    refuse_not_finite({name: t for name, t in tensors.items() if name not in infinite}, checkpoint, part)
    # Its own dict says the versions of its layers, by which some read their tensors: MNASNet takes none without.
    state = module.state_dict()
    state.update(tensors)
    load_unchanged(module, state, tensors)
