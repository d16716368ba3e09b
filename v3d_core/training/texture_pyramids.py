"""Textures for ray casting: linear light, each at several sizes, so that far texels are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..images import srgb_to_linear

LARGEST_SIDE = 4096  # texels; larger pictures are averaged when read
MOST_TEXELS = 2**26  # of all textures of an object at full size; 0.7 GiB with the smaller sizes


class TexturePyramids:
    """Pictures as premultiplied linear RGBA, each with averages of 2 x 2 texels until one is left.

    Args:
        pictures: Of each its Pillow picture, sRGB; whether its alpha channel means something; and
            whether it is repeated beyond its border, or its border continued.
        device: Where to look them up.
    """

    def __init__(
        self,
        pictures: Sequence[tuple[Image.Image, bool, bool]],
        device: torch.device,
    ) -> None:
        limit = LARGEST_SIDE
        while sum(_texels(picture, limit) for picture, _, _ in pictures) > MOST_TEXELS:
            limit //= 2
        levels: list[Tensor] = []
        table: list[list[tuple[int, int, int]]] = []  # per picture and level: start, height, width
        start = 0
        for picture, alpha, _ in pictures:
            rows = []
            for level in _levels(picture, alpha, limit):
                height, width, _ = level.shape
                rows.append((start, height, width))
                levels.append(level.reshape(-1, 4).half())
                start += height * width
            table.append(rows)
        deepest = max((len(rows) for rows in table), default=1)
        padded = [rows + rows[-1:] * (deepest - len(rows)) for rows in table]
        self._texels = torch.cat(levels).to(device) if levels else torch.empty(0, 4, device=device)
        self._table = torch.tensor(padded, device=device).reshape(-1, deepest, 3)  # [P, L, 3]
        self._repeat = torch.tensor([r for _, _, r in pictures], dtype=torch.bool, device=device)

    def sizes(self, picture: Tensor) -> Tensor:  # [R] -> [R, 2]
        """Width and height of pictures at full size, as they are kept."""
        return self._table[picture, 0][:, [2, 1]]

    def sample(
        self,
        picture: Tensor,  # [R]
        uvs: Tensor,  # [R, 2]
        spacing: Tensor,  # [R]
    ) -> Tensor:  # [R, 4]
        """Premultiplied linear RGBA, bilinear between texel centres of the nearest size.

        Args:
            picture: Number of the picture. int64
            uvs: (0, 0) is the upper left corner of the first texel.
            spacing: Of neighbouring samples, in texels at full size.
        """
        deepest = self._table.shape[1] - 1
        level = spacing.clamp_min(1).log2().round().long().clamp(max=deepest)
        start, height, width = self._table[picture, level].unbind(-1)
        place = uvs * torch.stack([width, height], dim=-1) - 0.5
        low = place.floor()
        share = place - low
        repeat = self._repeat[picture]

        def texels(right: int, down: int) -> Tensor:
            column = _inside(low[:, 0].long() + right, width, repeat)
            row = _inside(low[:, 1].long() + down, height, repeat)
            return self._texels[start + row * width + column].float()

        above = torch.lerp(texels(0, 0), texels(1, 0), share[:, :1])
        below = torch.lerp(texels(0, 1), texels(1, 1), share[:, :1])
        return torch.lerp(above, below, share[:, 1:])


def _inside(index: Tensor, count: Tensor, repeat: Tensor) -> Tensor:
    return torch.where(repeat, index % count, torch.minimum(index.clamp_min(0), count - 1))


def _texels(picture: Image.Image, limit: int) -> int:
    halvings = _halvings(picture, limit)
    return (picture.width >> halvings) * (picture.height >> halvings)


def _halvings(picture: Image.Image, limit: int) -> int:
    halvings = 0
    while max(picture.width, picture.height) >> halvings > limit:
        halvings += 1
    return halvings


def _levels(picture: Image.Image, keep_alpha: bool, limit: int) -> list[Tensor]:  # [H, W, 4] each
    values = torch.from_numpy(np.array(picture.convert("RGBA" if keep_alpha else "RGB")))
    linear = srgb_to_linear(torch.arange(256) / 255)[values[..., :3].long()]
    alpha = values[..., 3:].float() / 255 if keep_alpha else torch.ones_like(linear[..., :1])
    level = torch.cat([linear * alpha, alpha], dim=-1)
    for _ in range(_halvings(picture, limit)):
        level = _halved(level)
    levels = [level]
    while max(level.shape[:2]) > 1:
        level = _halved(level)
        levels.append(level)
    return levels


def _halved(level: Tensor) -> Tensor:
    size = (max(1, level.shape[0] // 2), max(1, level.shape[1] // 2))
    return F.adaptive_avg_pool2d(level.permute(2, 0, 1), size).permute(1, 2, 0)
