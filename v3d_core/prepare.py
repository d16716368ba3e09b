"""One picture made ready for an orbit model: cut out, centred, square, on white.

What V3D does before sampling (scripts/pub/V3D_512.py), without its flaws: there, haze shrinks the
object, colours are multiplied by coverage twice (a dark rim, which the model then paints around
the whole orbit), the last row and column are lost, and every step cuts to 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .cutout import cut_out, straight_colours
from .images import composite, keys_kernel, premultiply, unpremultiply
from .keying import key_uniform_background

SIZE_STEP = 64  # px: 8 per pixel of the latent, which the network halves three times
LARGEST_SIZE = 1024  # px; the model was trained at 512
LARGEST_BORDER = 0.9  # below this share something of the object is left to see
BLURRY_SCALE = 2.0  # enlarged more than this, the picture visibly lacks detail


@dataclass(frozen=True)
class PrepareConfig:
    """How the object is found and placed."""

    border_ratio: float = 0.3  # free share of the picture beside the object's longer side; V3D
    size: int = 512  # px, side of the prepared picture; V3D
    # Coverage above which a pixel is object when the box is taken. V3D has 0, so that haze shrinks
    # the object; 0.2 is above haze and faint shadows, and below thin and glassy parts.
    mask_threshold: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.border_ratio < LARGEST_BORDER:
            raise ValueError(
                f"border_ratio is {self.border_ratio}; it must be at least 0 and below "
                f"{LARGEST_BORDER}"
            )
        if self.size % SIZE_STEP or not SIZE_STEP <= self.size <= LARGEST_SIZE:
            raise ValueError(
                f"size is {self.size}; it must be a multiple of {SIZE_STEP} from {SIZE_STEP} to "
                f"{LARGEST_SIZE}, because the network halves a latent of size / 8 three times"
            )
        if not 0 <= self.mask_threshold < 1:
            raise ValueError(
                f"mask_threshold is {self.mask_threshold}; it must be at least 0 and below 1"
            )


@dataclass(frozen=True)
class PreparedPicture:
    """A square picture of one object in its middle.

    Attributes:
        image: sRGB in [0, 1], composited on white. [S, S, 3]
        mask: Coverage in [0, 1], 1 = object. [S, S]
        box: Where the object was: x0, y0, x1, y1 in pixels of the given picture, ends excluded.
        scale: Prepared pixels per given pixel.
        notes: Sentences for people: what told object from background, and what was mended.
    """

    image: Tensor
    mask: Tensor
    box: tuple[int, int, int, int]
    scale: float
    notes: tuple[str, ...]


def prepare_picture(
    image: Tensor,  # [H, W, 3] or [H, W, 4]
    mask: Tensor | None = None,  # [H, W]
    config: PrepareConfig = PrepareConfig(),
) -> PreparedPicture:
    """One object, cut out and placed in the middle of a white square.

    What tells object from background: the alpha channel if it is not opaque everywhere, else
    `mask`, else the flat background is keyed (see `keying`). The longer side of the object's box
    becomes `size * (1 - border_ratio)` pixels. Values are not rounded to 8 bits: V3D truncates
    twice on the way, which darkens by a level and shows as bands in dark gradients.

    Args:
        image: sRGB in [0, 1], of any size. Colours under soft edges may be straight, multiplied
            by alpha, or still mixed with a background: which of them is found out. [H, W, 3 or 4]
        mask: 1 = object, or None. [H, W]
        config: Border, size and threshold.

    Raises:
        ValueError: Nothing tells object from background, or the mask is empty, full or of another
            size, or values are not finite; the text has the numbers and the remedy.
    """
    _check_picture(image)
    notes: list[str] = []
    picture = image.detach().to("cpu", torch.float32).clamp(0, 1)
    colours, coverage, keyed = _object_and_background(picture, mask, notes)
    cutout = cut_out(coverage.numpy(), config.mask_threshold)
    notes += cutout.notes
    straight = colours[cutout.rows, cutout.columns].numpy()
    if not keyed:  # keying un-mixes the edge itself
        window = coverage[cutout.rows, cutout.columns].numpy()
        straight, note = straight_colours(straight, window, cutout)
        notes += [note] if note else []
    x0, y0, x1, y1 = cutout.box
    scale = round(config.size * (1 - config.border_ratio)) / max(x1 - x0, y1 - y0)
    if scale > BLURRY_SCALE:
        notes.append(
            f"The object is only {x1 - x0}x{y1 - y0} pixels and was enlarged {scale:.1f} times: a "
            "larger picture gives more detail."
        )
    middle = ((y0 + y1) / 2 - cutout.rows.start, (x0 + x1) / 2 - cutout.columns.start)
    placed, alpha = _place(straight, cutout.matte, middle, scale, config.size)
    return PreparedPicture(
        image=composite(placed, alpha).to(image.device),
        mask=alpha.to(image.device),
        box=cutout.box,
        scale=scale,
        notes=tuple(notes),
    )


def _check_picture(image: Tensor) -> None:
    if image.ndim != 3 or image.shape[-1] not in (3, 4) or not image.numel():
        raise ValueError(f"image: expected [H, W, 3 or 4], got {list(image.shape)}")
    if not image.is_floating_point():
        raise ValueError(f"image: expected floats in [0, 1], got {image.dtype}; divide by 255")
    bad = int((~torch.isfinite(image)).sum())
    if bad:
        raise ValueError(f"the picture has {bad} NaN or infinite values; make it again")


def _object_and_background(
    picture: Tensor, mask: Tensor | None, notes: list[str]
) -> tuple[Tensor, Tensor, bool]:
    """Colours [H, W, 3], coverage [H, W], and whether the background was keyed."""
    colours = picture[..., :3]
    if picture.shape[-1] == 4 and bool((picture[..., 3] < 1).any()):
        if mask is not None:
            notes.append("The picture has an alpha channel, so the given mask is not used.")
        else:
            notes.append("Cut out by the alpha channel.")
        return colours, picture[..., 3], False
    if mask is not None:
        if mask.shape != picture.shape[:2]:
            raise ValueError(
                f"the picture is {picture.shape[1]}x{picture.shape[0]} but the mask is "
                f"{'x'.join(str(side) for side in reversed(mask.shape))}; make them one size"
            )
        if not bool(torch.isfinite(mask).all()):
            raise ValueError("the mask contains NaN or infinite values")
        notes.append("Cut out by the given mask.")
        return colours, mask.detach().to(picture).clamp(0, 1), False
    try:
        straight, masks, text = key_uniform_background(colours[None])
    except ValueError as error:
        reason = str(error).partition(". ")[0]
        raise ValueError(
            "nothing tells object from background: the picture has no alpha channel, no mask was "
            f"given, and its background cannot be keyed ({reason}). Connect the mask of a Remove "
            "Background node, give --masks, or install rembg (pip install rembg onnxruntime)"
        ) from error
    notes.append(text)
    return straight[0], masks[0], True


def _place(
    colours: np.ndarray, matte: np.ndarray, centre: tuple[float, float], scale: float, size: int
) -> tuple[Tensor, Tensor]:
    """Straight colours [S, S, 3] and coverage [S, S] with `centre` (y, x) in the middle."""
    alpha = torch.from_numpy(matte.astype(np.float32))
    planes = premultiply(torch.from_numpy(colours.astype(np.float32)), alpha)
    planes = torch.cat([planes, alpha[..., None]], dim=-1).permute(2, 0, 1)
    rows = _placement_weights(matte.shape[0], size, centre[0], scale)
    columns = _placement_weights(matte.shape[1], size, centre[1], scale)
    placed = (rows @ planes @ columns.T).permute(1, 2, 0)
    coverage = placed[..., 3].clamp_min(0)
    return unpremultiply(placed[..., :3], coverage), coverage.clamp_max(1)


def _placement_weights(source: int, size: int, centre: float, scale: float) -> Tensor:
    """Weights [size, source] per axis: area averages when shrinking, else bicubic (Keys 1981).

    Like `images.resize_views`, but at any scale and offset, so that the object is centred and
    keeps its shape exactly; outside of the picture there is nothing.
    """
    low = centre + (torch.arange(size, dtype=torch.float64)[:, None] - size / 2) / scale
    left = torch.arange(source, dtype=torch.float64)[None]
    if scale <= 1:  # share of each source pixel that the target pixel covers
        overlap = torch.minimum(low + 1 / scale, left + 1) - torch.maximum(low, left)
        weights = overlap.clamp_min(0) * scale
    else:
        weights = keys_kernel((low + 0.5 / scale - left - 0.5).abs())
    return weights.float()
