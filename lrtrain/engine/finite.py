"""Loss and gradients are looked at before the optimizer steps: what is not finite changes no weight.

On the CPU the answer is there at once. On a GPU asking would make the host wait in every step, so the fused optimizers
are handed the answer where it lies: they skip this step and all after it, and the host learns of it when it fetches
the loss. Either way the weights are those from before the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.engine.distributed import summed
from lrtrain.errors import Diverged
from lrtrain.models.infinite import first_bad_tensor
from lrtrain.world import World

LEAST_SCALE = 2.0**-14  # of fp16's loss: at 65536 in the beginning, halved at each step with a gradient out of range


@dataclass(frozen=True)
class Trouble:
    """What is known of a step whose loss or gradients are not finite.

    Attributes:
        step: the step's number, from 1; it was not taken.
        lr: of each group.
        loss: mean over the images of the batch.
        gradient_norms: of each group.
        culprit: the first layer or parameter that is not finite, in words.
        index: of the batch's images in the training split.
    """

    step: int
    lr: dict[str, float]
    loss: float
    gradient_norms: dict[str, float]
    culprit: str
    index: tuple[int, ...]

    def dump(self) -> dict[str, Any]:
        """As JSON: numbers that it does not have are text."""

        def number(value: float) -> float | str:
            return value if math.isfinite(value) else repr(value)

        return {
            "step": self.step,
            "lr": self.lr,
            "loss": number(self.loss),
            "gradient_norms": {name: number(norm) for name, norm in self.gradient_norms.items()},
            "culprit": self.culprit,
        }


class NotFinite(Diverged):
    """The loss, a gradient or a weight is no finite number; nothing was updated with it."""

    def __init__(self, trouble: Trouble, what: str | None = None):
        self.trouble = trouble
        rates = ", ".join(f"{name} {lr:g}" for name, lr in trouble.lr.items())
        said = what or f"the training loss is {trouble.loss:g}"
        super().__init__(
            f"{said} at step {trouble.step:,} (LR {rates}): {trouble.culprit}",
            hint="lower optimizer.lr, warm up longer, or set clip_norm: 1.0; `lrtrain range-test` finds an LR",
        )


class Gate:
    """Lets the optimizer step, or not.

    Args:
        optimizer: fused on a GPU where `waits` is to be false.
        device: of the parameters.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device):
        fused = all(group.get("fused") for group in optimizer.param_groups)
        self.waits = device.type == "cpu" or not (fused and getattr(optimizer, "_step_supports_amp_scaling", False))
        self._bad = torch.zeros((), dtype=torch.float32, device=device)
        self._steps = torch.zeros((), dtype=torch.float32, device=device)
        """Good steps before the first bad one."""

    def opens(self, optimizer: Optimizer, unsound: Tensor, world: World) -> bool:
        """Whether the step may be taken; True where the optimizer itself will know.

        Args:
            optimizer: about to step.
            unsound: from `unsoundness`.
            world: the processes, which all answer alike.
        """
        total = summed(unsound, world)
        if self.waits:
            return math.isfinite(float(total))
        self._bad = torch.maximum(self._bad, (~total.isfinite()).float())
        self._steps += 1 - self._bad
        optimizer.found_inf, optimizer.grad_scale = self._bad, None  # type: ignore[attr-defined]
        return True

    def passed(self) -> int | None:
        """Steps that were let through before one was not; None where all were. Waits for the GPU."""
        return int(self._steps) if not self.waits and bool(self._bad) else None


def unsoundness(figures: Sequence[Tensor]) -> Tensor:
    """0 where all figures, such as loss and gradient norms, are finite, and else NaN."""
    # 0 times a number is 0, and times anything else NaN: one sum instead of a test of each.
    return (torch.stack([figure.float() for figure in figures]) * 0).sum()


def gradient_norms(optimizer: Optimizer) -> list[Tensor]:
    """The 2-norm of each gradient there is."""
    return norms_of([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None])


def norms_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The 2-norm of each: one pass over memory, a twentieth of the time that `isfinite` takes."""
    return list(torch._foreach_norm(list(tensors))) if tensors else []


def group_norms(optimizer: Optimizer, names: Sequence[str]) -> dict[str, float]:
    """The 2-norm of each group's gradients."""
    found = {}
    for name, group in zip(names, optimizer.param_groups, strict=True):
        norms = [float(p.grad.float().norm()) for p in group["params"] if p.grad is not None]
        found[name] = math.hypot(*norms) if all(map(math.isfinite, norms)) else float("nan")
    return found


@torch.no_grad()
def culprit(model: nn.Module, images: Tensor, autocast: torch.autocast) -> str:
    """The first thing that is not finite, looked for where numbers come from: weights, images, layers, gradients.

    Args:
        model: as it was when the step failed, gradients included.
        images: the step's.
        autocast: as in training.
    """
    if name := first_bad_tensor(list(model.named_parameters())):
        return f"the weights of {name!r} are not finite"
    if not bool(images.isfinite().all()):
        return "the images are not finite: look at dataset.transforms"
    if name := _first_bad_layer(model, images, autocast):
        return f"the first layer whose output is not finite is {name}"
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    # Gradients are computed from the last layer to the first.
    if name := first_bad_tensor(gradients[::-1]):
        return f"the layers' outputs are finite, the gradient of {name!r} is not"
    return "layers and gradients are finite when computed again; the loss is not"


def _first_bad_layer(model: nn.Module, images: Tensor, autocast: torch.autocast) -> str | None:
    bad: list[str] = []

    def look(name: str, module: nn.Module, output: Any) -> None:
        if not bad and isinstance(output, Tensor) and not bool(output.isfinite().all()):
            bad.append(f"{name!r} ({type(module).__name__})" if name else f"the whole {type(module).__name__}")

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: look(name, module, output))
        for name, module in model.named_modules()
    ]
    try:
        with autocast:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return bad[0] if bad else None
