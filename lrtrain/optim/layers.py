"""How deep each parameter lies, for a learning rate that falls from the head to the stem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class _Unit:
    """Parameters that share a layer; a block stands in a Sequential or ModuleList."""

    names: list[str]
    is_block: bool
    is_norm: bool


def layer_numbers(module: nn.Module) -> dict[str, int]:
    """The layer of each parameter, from 0 (the stem) to the highest (the head).

    A layer is an outermost block: a child of a Sequential or ModuleList that is none itself. What comes
    before the first block is layer 0, what follows the last one is one more layer, and a normalisation
    between blocks belongs to the block before it. Where there are no blocks each child is a layer. Modules
    count as they were registered, which in torchvision's and timm's models is the order of the forward pass.

    >>> from lrtrain.models.small_cnn import small_cnn
    >>> {name: i for name, i in layer_numbers(small_cnn(10)).items() if "bias" in name}
    {'bn1.bias': 0, 'bn2.bias': 1, 'bn3.bias': 2, 'fc.bias': 3}
    """
    units = list(_Walk(module).units("", module, inside=False))
    blocks = [i for i, unit in enumerate(units) if unit.is_block]
    first, last = (blocks[0], blocks[-1]) if blocks else (0, len(units))
    numbers: dict[str, int] = {}
    layer = -1
    for i, unit in enumerate(units):
        joins = i < first or i > last + 1 or (first < i <= last and unit.is_norm)
        if not joins or layer < 0:
            layer += 1
        numbers |= dict.fromkeys(unit.names, layer)
    return numbers


class _Walk:
    """Finds the units of a network; tied parameters count where they come first."""

    def __init__(self, root: nn.Module) -> None:
        self.parameters = dict(root.named_parameters())
        self.most = sum(p.numel() for p in self.parameters.values()) / 2

    def units(self, prefix: str, module: nn.Module, inside: bool) -> Iterator[_Unit]:
        """The units of a module, which stands `inside` a Sequential or ModuleList or not."""
        names = self._below(prefix)
        children = [(f"{prefix}{name}.", child) for name, child in module.named_children()]
        children = [(name, child) for name, child in children if self._below(name)]
        if isinstance(module, nn.Sequential | nn.ModuleList) and children:
            inside = True
            opened = any(not _is_leaf(child) for _, child in children) or self._matrices(children) != 1
        else:
            opened = not inside and bool(children) and (not prefix or self._size(names) > self.most)
        if not opened:
            if names:
                yield _Unit(names, inside, all(self.parameters[name].ndim <= 1 for name in names))
            return
        if own := [name for name in names if "." not in name[len(prefix) :]]:
            yield _Unit(own, False, False)
        for name, child in children:
            yield from self.units(name, child, inside)

    def _below(self, prefix: str) -> list[str]:
        return [name for name in self.parameters if name.startswith(prefix)]

    def _size(self, names: list[str]) -> int:
        return sum(self.parameters[name].numel() for name in names)

    def _matrices(self, children: list[tuple[str, nn.Module]]) -> int:
        """How many children have a matrix or a kernel: one, and the norms beside it belong to it."""
        return sum(any(self.parameters[n].ndim > 1 for n in self._below(name)) for name, _ in children)


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None
