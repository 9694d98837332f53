"""The LR suggestions once more, in plain loops, written from their definitions and not from lrtrain's code.

`python tests/independent_suggest.py` writes the expected numbers of loss_curves.json.
"""

import json
import math
from itertools import pairwise
from pathlib import Path

CURVES = Path(__file__).parent / "loss_curves.json"


def smoothed_losses(recorded, beta=0.98):
    """Mean of all points so far, weighted by (1-beta) beta^age: the newest plus a mean difference."""
    result = []
    for k in range(len(recorded)):
        total = weights = 0.0
        for j in range(k + 1):
            weight = (1 - beta) * beta ** (k - j)
            total += weight * (recorded[j] - recorded[k])
            weights += weight
        result.append(recorded[k] + total / weights)
    return result


def usable(points, planned):
    """(lr, loss) pairs without the first planned // 10 and the last 5, up to the first that is not finite."""
    result = []
    for k, (lr, loss) in enumerate(points):
        if k < planned // 10 or k >= len(points) - 5:
            continue
        if math.isnan(loss) or math.isinf(loss):
            break
        result.append((lr, loss))
    return result


def first_stop(smoothed):
    """The index of the step after which the sweep stops, None if it goes on."""
    best = None
    for k, value in enumerate(smoothed):
        if math.isnan(value) or math.isinf(value):
            return k
        if best is None or value < best:
            best = value
        if value > 4 * best:
            return k
    return None


def steep(points):
    if len(points) < 2:
        return None
    best = None
    for (lr0, loss0), (lr1, loss1) in pairwise(points):
        slope = (loss1 - loss0) / (math.log(lr1) - math.log(lr0))
        if best is None or slope < best[0]:
            best = (slope, lr0)
    return best[1]


def minimum(points):
    if not points:
        return None
    low = min(loss for _, loss in points)
    return next(lr for lr, loss in points if loss == low) / 10


def slide(points, lr_diff=15, thresh=0.005):
    n = len(points)
    if n < lr_diff + 1:
        return None
    losses = [loss for _, loss in points]
    gradient = [losses[1] - losses[0]]
    for k in range(1, n - 1):
        gradient.append((losses[k + 1] - losses[k - 1]) / 2)
    gradient.append(losses[-1] - losses[-2])
    r = -1
    l = r - lr_diff  # noqa: E741
    keep = points[l][0]
    while l >= -n and abs(gradient[r] - gradient[l]) > thresh:
        keep = points[l][0]
        r -= 1
        l -= 1  # noqa: E741
    return keep


def valley(points):
    n = len(points)
    if n < 2:
        return None
    lds = [1] * n
    start = end = 0
    for i in range(n):
        for j in range(i):
            if points[i][1] < points[j][1] and lds[j] + 1 > lds[i]:
                lds[i] = lds[j] + 1
        if lds[i] > lds[end]:
            end = i
            start = end - lds[end]
    sections = (end - start) / 3
    index = start + int(sections) + int(sections / 2)
    return None if index < 0 else points[index][0]


def expected(curve):
    smoothed = smoothed_losses(curve["losses"])
    points = usable(list(zip(curve["lrs"], smoothed, strict=True)), curve["steps_planned"])
    return {
        "stop": first_stop(smoothed),
        "points": len(points),
        "steepest": steep(points),
        "valley": valley(points),
        "minimum_tenth": minimum(points),
        "slide": slide(points),
    }


if __name__ == "__main__":
    curves = json.loads(CURVES.read_text())
    for curve in curves.values():
        curve["expected"] = expected(curve)
    lines = [f" {json.dumps(name)}: {json.dumps(curve)}" for name, curve in curves.items()]
    CURVES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
