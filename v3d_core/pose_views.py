"""Pictures, cameras and whatever tells object from background, checked and made into Views."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .keying import key_uniform_background
from .structures import Cameras, Views

MIN_VIEWS = 2  # one picture fixes no depth


@dataclass(frozen=True)
class LoadedViews:
    """Views and what the user should know about how they came about.

    Attributes:
        views: The views.
        warnings: Sentences for people; empty when nothing had to be guessed.
    """

    views: Views
    warnings: tuple[str, ...] = ()


def pose_views(
    images: Tensor,  # [V, H, W, 3] or [V, H, W, 4]
    cameras: Cameras,
    masks: Tensor | None = None,  # [V, H, W]
    names: tuple[str, ...] = (),
    min_views: int = MIN_VIEWS,
) -> LoadedViews:
    """Views from pictures and their cameras.

    What tells object from background: the alpha channel if it is not opaque everywhere, else
    `masks`, else the flat background is keyed (see `keying`) and a warning says so.

    Args:
        images: sRGB in [0, 1], straight if there is alpha. [V, H, W, 3 or 4]
        cameras: One per picture, made for the pictures' size.
        masks: 1 = object, or None. [V, H, W]
        names: Names for savers and messages, one per picture, or none.
        min_views: Fewer views than this are refused; fitting needs at least 2.

    Raises:
        ValueError: Counts or sizes disagree, values are not finite, there is one view only, or a
            mask is empty or all masks are full; the text has the numbers and the remedy.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(f"images: expected [V, H, W, 3 or 4], got {list(images.shape)}")
    count, height, width, _ = images.shape
    _check_counts(count, (width, height), cameras, min_views)
    _check_values(images, names)
    warnings: list[str] = []
    alpha = images[..., 3].clamp(0, 1) if images.shape[-1] == 4 else None
    colours = images[..., :3].clamp(0, 1)
    if alpha is not None and bool((alpha < 1).any()):
        if masks is not None:
            warnings.append("The pictures have an alpha channel, so the given masks are not used.")
        masks = alpha
    elif masks is not None:
        _check_masks_fit(masks, count, (width, height))
        masks = masks.to(images).clamp(0, 1)
    else:
        colours, masks, text = key_uniform_background(colours)
        warnings.append(text)
    warnings += _check_coverage(masks, names)
    return LoadedViews(Views(colours, masks, cameras, names), tuple(warnings))


def _check_counts(count: int, size: tuple[int, int], cameras: Cameras, min_views: int) -> None:
    if count < min_views:
        raise ValueError(
            f"{count} view is not enough, at least {min_views} are needed: one picture fixes no "
            "depth. Make an orbit of it with a video model, or give more pictures"
        )
    if count != len(cameras):
        enough = f", or take {len(cameras)} of them, spread evenly (frames={len(cameras)})"
        raise ValueError(
            f"{count} pictures but {len(cameras)} cameras; choose the orbit that made them, or set "
            f"the orbit's number of views to {count}{enough if count > len(cameras) else ''}"
        )
    if size != (cameras.width, cameras.height):
        raise ValueError(
            f"the pictures are {size[0]}x{size[1]} but the cameras are made for "
            f"{cameras.width}x{cameras.height}; resize the pictures or make cameras of their size"
        )


def _check_values(images: Tensor, names: tuple[str, ...]) -> None:
    bad = (~torch.isfinite(images)).flatten(1).sum(1)
    if bool(bad.any()):
        view = int(bad.argmax())
        raise ValueError(
            f"view {_label(view, names)} has {int(bad[view])} NaN or infinite values; the model "
            "that made the pictures has failed, make them again"
        )


def _check_masks_fit(masks: Tensor, count: int, size: tuple[int, int]) -> None:
    if masks.ndim != 3:
        raise ValueError(f"masks: expected [V, H, W], got {list(masks.shape)}")
    if len(masks) != count:
        raise ValueError(f"{count} pictures but {len(masks)} masks; give one mask per picture")
    if (masks.shape[2], masks.shape[1]) != size:
        raise ValueError(
            f"the pictures are {size[0]}x{size[1]} but the masks are "
            f"{masks.shape[2]}x{masks.shape[1]}; make them one size"
        )
    if not bool(torch.isfinite(masks).all()):
        raise ValueError("the masks contain NaN or infinite values")


def _check_coverage(masks: Tensor, names: tuple[str, ...]) -> list[str]:
    """Refuse empty masks and masks that are all full; warn of some full ones."""
    inside = (masks > 0.5).flatten(1)
    empty = [_label(v, names) for v in torch.nonzero(~inside.any(1)).flatten().tolist()]
    if empty:
        raise ValueError(
            f"empty mask in view {', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}: no "
            "pixel is object there. If white means background in your masks, invert them; if the "
            "object left the picture, take that view out"
        )
    full = [_label(v, names) for v in torch.nonzero(inside.all(1)).flatten().tolist()]
    if len(full) == len(masks):
        raise ValueError(
            f"all {len(masks)} masks are full: every pixel counts as object, so nothing has been "
            "cut out. Remove the background first, or give masks with 1 on the object only"
        )
    if full:
        return [f"The mask of view {', '.join(full)} is full: every pixel counts as object."]
    return []


def _label(view: int, names: tuple[str, ...]) -> str:
    """Number of a view and the name of its file, if it has one."""
    return f"{view} ({Path(names[view]).name})" if names else str(view)
