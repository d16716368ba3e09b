"""Layout of a multi-resolution hash grid (Mueller et al. 2022): levels, tables, hash."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

FEATURES = 2  # numbers per entry and level; Mueller et al. 2022
HASH_PRIMES = (1, 2654435761, 805459861)  # Mueller et al. 2022, eq. 4


@dataclass(frozen=True)
class HashGrid:
    """Sizes of a hash grid over the unit cube.

    Level l has `scales[l]` cells along the cube, shifted by half a cell so that the levels' planes
    do not meet; all conventions are tiny-cuda-nn's. Levels whose vertices fit into a table are
    dense, x fastest; the others share entries by the hash of their vertex.
    """

    levels: int = 12  # from base to finest in equal ratios
    base: int = 16  # vertices along the cube at the coarsest level: 15 cells
    finest: int = 384  # the same at the finest level
    log2_entries: int = 17  # entries of a level are at most 2 to this

    def __post_init__(self) -> None:
        if self.levels < 1 or self.base < 2 or self.finest < self.base or self.log2_entries < 1:
            raise ValueError(
                f"HashGrid: needs levels >= 1, 2 <= base <= finest and log2_entries >= 1, got {self}"
            )

    @property
    def width(self) -> int:
        """Features of a point: those of all levels, coarsest first."""
        return FEATURES * self.levels

    @property
    def growth(self) -> float:
        """Ratio of one level's resolution to that of the level before."""
        return (self.finest / self.base) ** (1 / max(1, self.levels - 1))

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Cells along the unit cube, per level."""
        return tuple(self.base * self.growth**level - 1 for level in range(self.levels))

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Vertices along a side that points in the closed cube can touch, per level."""
        # rounded first: the last scale is a whole number up to rounding
        return tuple(math.ceil(round(scale, 6)) + 2 for scale in self.scales)

    @cached_property
    def dense(self) -> tuple[bool, ...]:
        """Whether every vertex of a level has an entry of its own."""
        return tuple(side**3 <= 2**self.log2_entries for side in self.resolutions)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries per level."""
        return tuple(
            side**3 if dense else 2**self.log2_entries
            for side, dense in zip(self.resolutions, self.dense, strict=True)
        )

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First row of each level in the table."""
        return tuple(sum(self.sizes[:level]) for level in range(self.levels))

    @property
    def entries(self) -> int:
        """Rows of the table."""
        return sum(self.sizes)


class Encoded(NamedTuple):
    """Features of points and the way back from their gradient to that of the points.

    Attributes:
        features: Of all levels, coarsest first; differentiable in the table. [N, width]
        pull_back: From d loss / d features [N, width] to d loss / d points [N, 3], per unit of the
            cube, at fixed table; differentiable in its argument and in the table. A clamped
            coordinate has no gradient. Call it once: more calls are right, but encode again.
    """

    features: Tensor
    pull_back: Callable[[Tensor], Tensor]


# (points [N, 3], table [entries, 2], grid, whether pull_back will be called)
Encoder = Callable[[Tensor, Tensor, HashGrid, bool], Encoded]


def no_pull_back(gradient: Tensor) -> Tensor:
    """The `pull_back` of points encoded without."""
    raise RuntimeError("these points were encoded with jacobian=False; pull_back needs True")
