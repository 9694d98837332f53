"""The transform lists that are compared: written once, read by lrtrain and, on its own, as torchvision's objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Entry = dict[str, Any]

NORMALIZE: list[Entry] = [
    {"name": "ToDtype", "dtype": "float32", "scale": True},
    {"name": "Normalize", "mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]},
]
# Together every transform that lrtrain does batch by batch.
LISTS: dict[str, list[Entry]] = {
    "crop": [
        {"name": "RandomCrop", "size": 32, "padding": 4},
        {"name": "RandomHorizontalFlip"},
        {"name": "RandAugment"},
        *NORMALIZE,
        {"name": "RandomErasing", "p": 0.25},
    ],
    "resized-crop": [
        {"name": "RandomResizedCrop", "size": 32, "scale": [0.5, 1.0]},
        {"name": "RandomHorizontalFlip"},
        {"name": "RandomVerticalFlip", "p": 0.2},
        {"name": "ColorJitter", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05},
        {"name": "TrivialAugmentWide"},
        *NORMALIZE,
    ],
}


def torchvisions(entries: Sequence[Entry]) -> Any:
    """The list as torchvision applies it to one PIL image. Nothing of lrtrain has a part in it."""
    import torch
    from torchvision.transforms import v2

    made: list[Any] = []
    for entry in entries:
        arguments = {name: value for name, value in entry.items() if name != "name"}
        if entry["name"] == "ToDtype":
            made.append(v2.ToImage())
            arguments["dtype"] = getattr(torch, arguments["dtype"])
        made.append(getattr(v2, entry["name"])(**arguments))
    return v2.Compose([*made, v2.ToPureTensor()])
