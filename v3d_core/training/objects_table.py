"""Objects composed of primitives, as flat tables of numbers that kernels can read.

A part has a frame of its own: its axis is +Y, its front +Z. Parts are joined in their order: a
carving part takes away only from the parts before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

MAX_PARTS = 14
PROFILE_POINTS = 8  # control radii of a surface of revolution
LEAST_WIDTH = 1e-5  # world units; a smooth union of this width is a sharp one


class Kind(IntEnum):
    """Primitives and the meaning of their `sizes`, world units."""

    ELLIPSOID = 0  # semi-axes x, y, z
    BOX = 1  # half sides x, y, z without the rounding, and its radius
    CYLINDER = 2  # radius and half height without the rounding, and its radius
    CAPSULE = 3  # half length between the ends' centres, radius
    FRUSTUM = 4  # radius below, radius above, half height without the rounding, and its radius
    TORUS = 5  # radius of the ring, radius of the tube
    SUPERQUADRIC = 6  # semi-axes x, y, z, exponents across and along the axis (at least 1)
    REVOLUTION = 7  # half height; its radii are in `profiles`


class Join(IntEnum):
    """How a part meets those before it."""

    UNION = 0
    CARVE = 1


class Pattern(IntEnum):
    """Paints: where the second colour lies. Coordinates q are the part's, over `scale`."""

    SOLID = 0
    STRIPES = 1  # across `axis`
    CHECKS = 2
    DOTS = 3
    RINGS = 4  # about `axis`
    MARBLE = 5
    SPLIT = 6  # beyond `share` along `axis`
    GLYPH = 7  # strokes on the front; `phase` has a bit per stroke
    SECTORS = 8  # wedges about +Y
    ZIGZAG = 9
    GRADIENT = 10  # along `axis`
    PATCHES = 11


# Strokes of letters and digits, x right and y up in the part's frame: from x, y to x, y.
STROKES = (
    (-0.5, 1.0, 0.5, 1.0),
    (0.5, 1.0, 0.5, 0.0),
    (0.5, 0.0, 0.5, -1.0),
    (-0.5, -1.0, 0.5, -1.0),
    (-0.5, 0.0, -0.5, -1.0),
    (-0.5, 1.0, -0.5, 0.0),
    (-0.5, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.5, 0.0),
    (-0.5, 1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0, 0.0),
    (0.5, 1.0, 0.0, 0.0),
    (0.0, 0.0, 0.5, -1.0),
    (0.0, 0.0, 0.0, -1.0),
    (0.0, 0.0, -0.5, -1.0),
)


@dataclass(frozen=True)
class ObjectTable:
    """N objects of up to P parts each; what lies beyond `counts` is zero.

    Attributes:
        counts: Parts of each object. [N] int32
        bounds: Radius of a ball about the origin that holds the object, world units. [N]
        kinds: `Kind` of each part. [N, P] int32
        joins: `Join` of each part. [N, P] int32
        widths: How far the smoothing of a join reaches, world units; 0 is a sharp edge. [N, P]
        radii: Radius of a ball about the part's centre that holds it, world units. [N, P]
        rotations: World axes to the part's axes. [N, P, 3, 3]
        centres: World units. [N, P, 3]
        sizes: See `Kind`. [N, P, 5]
        profiles: Control radii from below to above of a quadratic B-spline. [N, P, 8]
        bumps: Amplitude (world units), angular frequency (1 / world units) and phase of the
            surface's displacement. [N, P, 3]
        patterns: `Pattern` of each part. [N, P] int32
        paints: Frequency, phase, share and scale (world units) of the pattern. [N, P, 4]
        axes: Unit direction of the pattern, the part's axes. [N, P, 3]
        colours: First and second colour, sRGB in [0, 1]. [N, P, 2, 3]
    """

    counts: Tensor  # [N] int32
    bounds: Tensor  # [N]
    kinds: Tensor  # [N, P] int32
    joins: Tensor  # [N, P] int32
    widths: Tensor  # [N, P]
    radii: Tensor  # [N, P]
    rotations: Tensor  # [N, P, 3, 3]
    centres: Tensor  # [N, P, 3]
    sizes: Tensor  # [N, P, 5]
    profiles: Tensor  # [N, P, 8]
    bumps: Tensor  # [N, P, 3]
    patterns: Tensor  # [N, P] int32
    paints: Tensor  # [N, P, 4]
    axes: Tensor  # [N, P, 3]
    colours: Tensor  # [N, P, 2, 3]

    def __post_init__(self) -> None:
        count, parts = self.kinds.shape
        for field in dataclasses.fields(self):
            shape = tuple(getattr(self, field.name).shape)
            if shape[:2] != (count, parts) and shape != (count,):
                raise ValueError(
                    f"ObjectTable: {field.name} has shape {list(shape)}, the table has {count} "
                    f"objects of {parts} parts"
                )

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int | slice | Tensor) -> ObjectTable:
        """Some of the objects; one by an integer is a table of one."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"ObjectTable: object {index} of {len(self)}")
            index %= len(self)
            index = slice(index, index + 1)
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> ObjectTable:
        """The same objects on another device."""
        return self._map(lambda tensor: tensor.to(device))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.counts.device

    def _map(self, change: Callable[[Tensor], Tensor]) -> ObjectTable:
        fields = dataclasses.fields(self)
        return ObjectTable(**{field.name: change(getattr(self, field.name)) for field in fields})


def joined(tables: Sequence[ObjectTable]) -> ObjectTable:
    """The objects of several tables in one, in their order."""
    names = [field.name for field in dataclasses.fields(ObjectTable)]
    return ObjectTable(**{n: torch.cat([getattr(table, n) for table in tables]) for n in names})


def step_scale(bumps: Tensor) -> Tensor:  # [..., 3] -> [...]
    """What makes a displaced distance a lower bound again: one over its steepest slope."""
    return 1 / (1 + bumps[..., 0] * bumps[..., 1])


def profile_slope_scale(profiles: Tensor, half: Tensor) -> Tensor:  # [..., 8], [...] -> [...]
    """Cosine of the steepest slope of a profile; a B-spline is nowhere steeper than its legs."""
    leg = 2 * half / (PROFILE_POINTS - 2)  # spans of a quadratic spline
    steepest = profiles.diff(dim=-1).abs().amax(dim=-1) / leg.clamp_min(LEAST_WIDTH)
    return 1 / (1 + steepest * steepest).sqrt()
