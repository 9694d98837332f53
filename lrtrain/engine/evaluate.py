"""Loss and accuracy over a split."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrtrain.data.batches import Batch
from lrtrain.engine.distributed import summed
from lrtrain.engine.events import Evaluating, Metrics
from lrtrain.engine.precision import DTYPES, Precision
from lrtrain.random import key, seed_model
from lrtrain.world import ALONE, World


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    total: int,
    precision: Precision,
    stopping: Callable[[], object] = lambda: None,
    each: Callable[[Tensor, Batch], None] | None = None,
    world: World = ALONE,
    flip: bool = False,
    seed: int = 0,
) -> Generator[Evaluating, None, Metrics | None]:
    """Evaluate a network on every image once.

    Args:
        model: left in the mode that it came in.
        batches: the split's images, in order.
        total: how many images there are, those of other processes included.
        precision: as in training.
        stopping: asked before each batch, by every process equally often; when it answers, the evaluation is given up.
        each: is handed the logits (batch, classes) and the batch, for further statistics.
        world: the processes, whose batches take turns: some may have one less than the first.
        flip: take the mean of each image's logits and those of its mirror image.
        seed: of what the network draws, should it draw in evaluation too.

    Returns:
        The means, or None when given up. acc5 counts the first five classes, or all where there are fewer.
    """
    was_training = model.training
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    given_up = True
    model.eval()
    device = next(model.parameters()).device
    seed_model(key(seed, "evaluate"), device)
    sums = torch.zeros(4, dtype=_sum_dtype(device), device=device)
    done = 0
    try:
        yield Evaluating(0, total)
        for batch in batches:
            if stopping():
                return None
            with autocast(batch.images.device, precision):
                mirrored = batch.images.flip(-1) if flip else None  # before a network writes into what it is given
                logits = model(batch.images).float()
                if mirrored is not None:
                    logits = (logits + model(mirrored).float()) / 2
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            answers = answer(logits)
            first = answers == batch.labels  # of equal logits, topk takes any
            top = (logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]).any(1) | first
            top &= answers >= 0
            count = loss.new_full((), len(batch.labels))
            sums += torch.stack([loss, first.sum().float(), top.sum().float(), count]).to(sums.dtype)
            if each is not None:
                each(logits, batch)
            done += batch.total
            yield Evaluating(done, total)
        if done < total and stopping():  # others have one more batch, before which all are asked
            return None
        given_up = False
    finally:
        model.train(was_training)
        for name, buffer in model.named_buffers() if given_up else ():  # what it changed, changes when it is made anew
            buffer.data = before.get(name, buffer)
    loss_sum, first, five, images = summed(sums, world).tolist()
    n = max(images, 1)
    return Metrics(int(images), loss_sum / n if images else float("nan"), first / n, five / n)


def answer(logits: Tensor) -> Tensor:
    """The class of each row, the first of equal ones; -1 where a logit is NaN, which torch would take for the largest.

    Args:
        logits: (images, classes).
    """
    return logits.argmax(1).where(~logits.isnan().any(1), -1)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Autocast to the precision's type, off for fp32."""
    enabled = precision != "fp32"
    return torch.autocast(device.type, dtype=DTYPES[precision] if enabled else None, enabled=enabled)


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
