"""Paints of composed objects: where on a part its second colour lies, in plain torch.

A paint is a function of space in the part's frame, so that all views see one pattern.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .objects_table import STROKES, ObjectTable, Pattern


def second_colour(
    table: ObjectTable,
    index: int,
    part: int,
    local: Tensor,  # [M, 3]
) -> Tensor:  # [M]
    """Share of the second colour in [0, 1].

    Args:
        table: The objects.
        index: Which of them.
        part: Which of its parts.
        local: Points in the part's frame, world units. [M, 3]
    """
    frequency, phase, share, scale = (float(value) for value in table.paints[index, part])
    q = local / scale
    axis = table.axes[index, part].to(q)
    pattern = Pattern(int(table.patterns[index, part]))
    return _PATTERNS[pattern](q, axis, frequency, phase, share).to(q)


def _solid(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    return torch.zeros_like(q[:, 0])


def _stripes(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    return _frac(f * (q @ axis) + phase) < share


def _checks(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    return _frac(0.5 * (f * q + phase).floor().sum(dim=-1)) > 0.25


def _dots(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    return (_frac(f * q + phase) - 0.5).square().sum(dim=-1) < share * share


def _rings(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    from_axis = q - (q @ axis)[:, None] * axis
    return _frac(f * from_axis.norm(dim=-1) + phase) < share


def _marble(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    x, y, z = q.unbind(-1)
    w = torch.sin(f * x + phase) + torch.sin(1.3 * f * y + 2 * phase)
    w = w + torch.sin(1.7 * f * z + 3 * phase)
    return (0.5 + 0.8 * torch.sin(f * (q @ axis) + 1.5 * w + phase)).clamp(0, 1)


def _split(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    return q @ axis > share


def _glyph(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    inside = torch.zeros_like(q[:, 0], dtype=torch.bool)
    at = f * q[:, :2]
    for bit, (ax, ay, bx, by) in enumerate(STROKES):
        if int(phase) >> bit & 1:
            start, stroke = at.new_tensor([ax, ay]), at.new_tensor([bx - ax, by - ay])
            along = ((at - start) @ stroke / (stroke @ stroke)).clamp(0, 1)
            inside |= (at - start - along[:, None] * stroke).square().sum(-1) < share * share
    return inside & (q[:, 2] > 0)


def _sectors(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    return _frac(f * torch.atan2(q[:, 0], q[:, 2]) / (2 * math.pi) + phase) < share


def _zigzag(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    side = (_frac(0.7 * f * (q[:, 0] + q[:, 2]) + phase) - 0.5).abs()
    return _frac(f * (q @ axis) + 1.2 * side + phase) < share


def _gradient(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    return (0.5 + 0.5 * f * (q @ axis)).clamp(0, 1)


def _patches(q: Tensor, axis: Tensor, f: float, phase: float, share: float) -> Tensor:
    x, y, z = q.unbind(-1)
    a = torch.sin(f * x + 1.3 * torch.sin(1.1 * f * y + phase) + phase)
    b = torch.sin(f * y + 1.3 * torch.sin(1.2 * f * z + 2 * phase))
    c = torch.sin(f * z + 1.3 * torch.sin(0.9 * f * x + 3 * phase) + 2 * phase)
    return a + b + c > share


def _frac(x: Tensor) -> Tensor:
    return x - x.floor()


_PATTERNS = {
    Pattern.SOLID: _solid,
    Pattern.STRIPES: _stripes,
    Pattern.CHECKS: _checks,
    Pattern.DOTS: _dots,
    Pattern.RINGS: _rings,
    Pattern.MARBLE: _marble,
    Pattern.SPLIT: _split,
    Pattern.GLYPH: _glyph,
    Pattern.SECTORS: _sectors,
    Pattern.ZIGZAG: _zigzag,
    Pattern.GRADIENT: _gradient,
    Pattern.PATCHES: _patches,
}
