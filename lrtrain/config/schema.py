"""The config as frozen types. Defaults stand beside each field, with their unit.

`model`, `dataset`, `optimizer` and each phase of `schedule` name something and pass it arguments of its own:
what is not a field here is such an argument, and `checks.py` holds it against the signature of what is named.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from lrtrain.config.duration import Duration
from lrtrain.config.yaml import Document

Monitor = Literal["val_loss", "val_acc1", "val_acc5", "train_loss"]


def monitor_mode(monitor: str) -> Literal["min", "max"]:
    """Whether less or more is better, which follows from the name."""
    return "min" if monitor.endswith("loss") else "max"


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _without_absent(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A null among the arguments of something named is a value: its default may be another.
        given = self.__pydantic_extra__ or {}
        return {key: value for key, value in values(self).items() if value is not None or key in given}


class Named(_Section):
    """Something found by name, and the arguments it is given."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)

    name: str = Field(min_length=1, description="torch's or torchvision's name, a file of ours, or pkg.mod:attr")

    @property
    def args(self) -> dict[str, Any]:
        """The named thing's own arguments: a copy, as code of one's own may change a list that it is given."""
        return deepcopy(self.__pydantic_extra__ or {})


class Model(Named):
    """The network. Further keys are arguments of its constructor."""

    pretrained: bool = Field(False, description="start from torchvision's or timm's default weights")
    weights: str | None = Field(None, description="start from a local .safetensors, .pth or .pt file")
    stem: Literal["standard", "small"] = Field(
        "standard", description="small: 3x3 stride-1 first convolution without max-pool, for images of 64 px or less"
    )


Bare = BeforeValidator(_named)


class Transforms(_Section):
    """torchvision.transforms.v2 names, in order; a missing list means the dataset's default."""

    train: Annotated[tuple[Annotated[Named, Bare], ...], Field(strict=False)] | None = None
    val: Annotated[tuple[Annotated[Named, Bare], ...], Field(strict=False)] | None = None


class Dataset(Named):
    """Where images and labels come from. Further keys are arguments of the dataset itself."""

    root: str | None = Field(None, description="folder of the data; ~ is expanded")
    val_fraction: float | None = Field(
        None, gt=0, lt=1, description="part of the training data held out, per class, where there is no split for it"
    )
    transforms: Transforms = Transforms()


class Group(Named):
    """Parameters that train differently. Further keys are arguments of the optimizer, for this group only."""

    name: str = Field("", description="what tables and files call the group; the pattern when absent")
    params: str = Field(min_length=1, description="regular expression searched in parameter names, or norm_and_bias")
    lr: float | None = Field(None, gt=0, le=1000)
    lr_scale: float | None = Field(None, gt=0, le=1000, description="times optimizer.lr")
    frozen_until: Duration | None = Field(None, description="LR 0 and no gradients before this point of the run")

    @model_validator(mode="after")
    def _one_lr(self) -> Group:
        if self.lr is not None and self.lr_scale is not None:
            raise ValueError(f"lr {self.lr} and lr_scale {self.lr_scale} contradict each other: keep one")
        return self


class Optimizer(Named):
    """torch.optim. Further keys are arguments of the optimizer."""

    lr: float = Field(gt=0, le=1000, description="the peak LR")
    layer_decay: float | None = Field(None, gt=0, le=1, description="LR of each layer below the head, times this")
    groups: tuple[Group, ...] = Field((), strict=False)


class Phase(Named):
    """A stretch of the schedule. Further keys are arguments of the scheduler."""

    length: Duration | Literal["rest"] | None = Field(
        None, alias="for", description="how long the phase is; rest fills what is left"
    )
    every: Literal["epoch", "step"] | None = Field(
        None, description="how often the scheduler ticks: the unit of bare integers and of per-tick rates"
    )
    warmup: Duration | None = Field(None, description="short for a LinearLR phase of this length before it")
    monitor: Monitor | None = Field(None, description="ReduceLROnPlateau: the metric it watches")


class EarlyStop(_Section):
    """Stop when a metric has not improved for a number of evaluations."""

    monitor: Monitor = "val_loss"
    patience: int = Field(5, ge=1, description="evaluations without improvement")
    min_delta: float = Field(0.0, ge=0, description="a smaller change is no improvement")


class Checkpoint(_Section):
    """When the run is saved, and what is kept."""

    every: Duration = Field(Duration.parse("1ep"))
    keep: int = Field(2, ge=1, description="newest checkpoints kept, besides the best")
    best: Monitor = "val_acc1"
    disk_full_wait: float = Field(
        600.0, ge=0, description="seconds that training waits in memory where the disk is full, before it ends"
    )


class Extension(_Section):
    """A run was made longer: written by `lrtrain fit --resume --extend`, so that the config still says the whole LR."""

    policy: Literal["hold", "rescale", "restart"]
    at: int = Field(ge=0, description="optimizer steps taken when it was extended")
    steps: int = Field(gt=0, le=20_000_000, description="the run's length since then, in optimizer steps")


# torch draws Beta in float32: with an alpha of 0.001 it often answers 1/2 where almost 0 or 1 is meant, and with none
# that float32 holds it fails.
_ALPHA = "alpha of Beta(alpha, alpha), which torch draws in float32: below 0.01 it would underflow to 1/2"


class RunConfig(_Section):
    """One training run."""

    seed: int = Field(0, ge=0, lt=2**63)
    epochs: int | None = Field(None, gt=0, le=1_000_000, description="length of the run; give this or steps")
    steps: int | None = Field(None, gt=0, le=20_000_000, description="length of the run in optimizer steps")
    batch_size: int = Field(gt=0, le=1_000_000, description="images per optimizer step, over all devices")
    model: Annotated[Model, Bare]
    dataset: Annotated[Dataset, Bare]
    optimizer: Optimizer
    schedule: Annotated[tuple[Annotated[Phase, Bare], ...], BeforeValidator(_listed)] = Field(
        (), strict=False, description="a phase or a list of phases; the LR is fixed when absent"
    )

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?)$")
    deterministic: Literal["auto"] | bool = Field("auto", description="auto: always on CPU, on GPU when true")
    compile: bool = Field(False, description="torch.compile the model")
    cuda_graph: Literal["auto"] | bool = Field(
        "auto",
        description="start forward and backward pass of a step as one CUDA graph; auto: on a GPU of its own for "
        "torchvision's models and lrtrain's, where the step is one pass and its memory fits twice",
    )
    sync_bn: bool = Field(False, description="several GPUs: BatchNorm over the images of all of them")
    accumulate: int = Field(1, ge=1, description="micro-batches that a batch is split into")
    drop_last: bool = Field(False, description="leave out an epoch's last batch where it is smaller")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of all gradients together")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    ema: float | None = Field(None, gt=0, lt=1, description="decay per step of the averaged weights")
    mixup: float | None = Field(None, ge=0.01, le=1000, description=_ALPHA)
    cutmix: float | None = Field(None, ge=0.01, le=1000, description=_ALPHA)
    tta: Literal["flip"] | None = Field(None, description="evaluate an image together with its mirror image")
    early_stop: EarlyStop | None = None
    on_nonfinite: Literal["stop", "rollback"] = Field(
        "stop",
        description="a loss or gradient that is not finite: end, or go back to the last checkpoint and on with half "
        "the LR, three times at most",
    )
    eval_every: Duration = Field(Duration.parse("1ep"))
    log_every: Duration = Field(Duration.parse("20step"))
    checkpoint: Checkpoint = Checkpoint()
    workers: int = Field(2, ge=0, le=256, description="processes that decode and augment what is not batched")
    cache: Literal["auto", "memory", "disk", "off"] = Field(
        "auto",
        description="where images are kept after the transforms that draw nothing; auto: in memory where they fill at "
        "most a quarter of it, else in a file in $LRTRAIN_CACHE (~/.cache/lrtrain) where there is room, else nowhere",
    )
    extended: Annotated[tuple[Extension, ...], Field(strict=False)] | None = Field(
        None, description="written by lrtrain: how the run was made longer than epochs or steps"
    )

    _document: Document = PrivateAttr(default_factory=lambda: Document("config", None))

    def where(self, *loc: str | int) -> str:
        """`configs/a.yaml:14  schedule[1].T_max`, for an error about that value."""
        return self._document.where(*loc)

    def overridden(self, *loc: str | int) -> bool:
        """Whether a `--set` gave this value, or something that holds it."""
        return self._document.overridden(*loc)

    def written(self, key: str) -> Any:
        """What the file, or `--set`, says of a key, as plain data; None where it says nothing."""
        return self._document.data.get(key) if isinstance(self._document.data, dict) else None

    def dump(self) -> dict[str, Any]:
        """The config as plain data that reads back as the same config."""
        return self.model_dump(mode="json", by_alias=True)
