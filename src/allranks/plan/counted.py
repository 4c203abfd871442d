"""What is counted of a model's tensors."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from allranks.plan.workload import ModelShape

Alike = Mapping[tuple[str, tuple[int, ...]], int]
"""(name, shape) of a tensor -> how many there are."""


@lru_cache(maxsize=8)
def alike(shape: ModelShape) -> Alike:
    """Of the model's tensors."""
    return alike_of(shape.tensors)


def alike_of(tensors: Mapping[str, tuple[int, ...]]) -> Alike:
    """How many of them are alike: experts of a layer come by the name of its first, for a large mixture has tens of
    thousands."""
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for name, size in tensors.items():
        module, _, of_expert = name.partition(".experts.")
        number, _, rest = of_expert.partition(".")
        found[f"{module}.experts.0.{rest}" if number.isdigit() else name, size] += 1
    return found


@lru_cache(maxsize=8)
def num_parameters(shape: ModelShape) -> int:
    """Of the whole model, tied tensors once."""
    return sum(number * math.prod(size) for (_, size), number in alike(shape).items())


@lru_cache(maxsize=8)
def largest_tensor(shape: ModelShape) -> int:
    """Elements of it, as it is stored."""
    return max(math.prod(size) for _, size in alike(shape))


@lru_cache(maxsize=32)
def elements_below(shape: ModelShape, size: int) -> int:
    """Of all tensors that have fewer than `size`."""
    sizes = ((math.prod(one), number) for (_, one), number in alike(shape).items())
    return sum(one * number for one, number in sizes if one < size)


IN_LAYERS = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")


def elements_of_layers(tensors: Alike, persistent_below: float) -> int:
    """Of those tensors of layers that have so many and more."""
    sizes = ((math.prod(shape), number) for (name, shape), number in tensors.items() if IN_LAYERS.search(name))
    return sum(number * size for size, number in sizes if size >= persistent_below)
