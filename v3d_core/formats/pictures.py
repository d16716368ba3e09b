"""Picture files and folders of them: listing in natural order, safe decoding, RGBA bytes."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP")
# Limits against decompression bombs, checked before decoding. 8192^2: the largest picture of
# today's cameras and models; 2^28: 1024 frames of 512^2, 4 GiB as float RGBA.
MAX_PICTURE_PIXELS = 8192 * 8192
MAX_TOTAL_PIXELS = 2**28


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorting key that puts `r_2` before `r_10`."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def list_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Picture files of a folder in natural order; hidden files and sub-folders are left out.

    Raises:
        ValueError: There are none; the text says what is there.
    """
    folder = Path(folder)
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    pictures = [e for e in entries if e.suffix.lower() in PICTURE_SUFFIXES and e.is_file()]
    if not pictures:
        suffixes = ", ".join(PICTURE_SUFFIXES)
        raise ValueError(
            f"{folder}: no pictures ({suffixes}) in this folder, which has {len(entries)} entries"
        )
    return sorted(pictures, key=lambda picture: natural_key(picture.name))


def read_pictures(paths: Sequence[Path]) -> Tensor:  # [V, H, W, 4] uint8
    """Pictures of one size as straight RGBA bytes; alpha is 255 where a file has none.

    EXIF orientation is applied, 16-bit greys are rounded to 8 bits, other colour modes converted.

    Raises:
        ValueError: A file is damaged, too large, or differs in size (both files are named).
    """
    first = None
    decoded: list[np.ndarray] = []
    for path in paths:
        picture = _read_rgba(path)
        if first is None:
            first = picture.shape
            _check_total(paths, picture.shape)
        elif picture.shape != first:
            raise ValueError(
                f"pictures of different sizes: {paths[0]} is {first[1]}x{first[0]}, "
                f"{path} is {picture.shape[1]}x{picture.shape[0]}; make them one size"
            )
        decoded.append(picture)
    return torch.from_numpy(np.stack(decoded))


def read_masks(paths: Sequence[Path]) -> Tensor:  # [V, H, W]
    """Masks in [0, 1], white = object: the alpha channel if it says anything, else the grey value."""
    rgba = read_pictures(paths)
    alpha = rgba[..., 3]
    luma = rgba[..., :3].float() @ torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
    use_alpha = (alpha < 255).flatten(1).any(1)
    return torch.where(use_alpha[:, None, None], alpha.float(), luma).div(255).clamp(0, 1)


def _read_rgba(path: Path) -> np.ndarray:  # [H, W, 4] uint8
    if not path.is_file():
        raise ValueError(f"{path}: no such picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            picture = Image.open(path, formats=_PILLOW_FORMATS)
        with picture:
            if picture.width * picture.height > MAX_PICTURE_PIXELS:
                raise ValueError(_too_large(path, f"{picture.width}x{picture.height}"))
            picture.load()
            return _to_rgba(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(path, "far too large")) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not a PNG, JPEG or WebP picture") from error
    except (OSError, SyntaxError, EOFError) as error:  # Pillow's ways to say damaged
        raise ValueError(f"{path}: the picture is damaged or cut off ({error})") from error


def _to_rgba(picture: Image.Image) -> np.ndarray:
    if picture.mode in ("I;16", "I;16B", "I;16L", "I"):  # Pillow would clip these, not scale them
        grey = np.clip(np.asarray(picture).astype(np.float64) / 257, 0, 255)
        picture = Image.fromarray(np.round(grey).astype(np.uint8))
    return np.array(picture.convert("RGBA"))


def _too_large(path: Path, size: str) -> str:
    return f"{path}: the picture is {size}; at most {MAX_PICTURE_PIXELS} pixels are read"


def _check_total(paths: Sequence[Path], shape: tuple[int, ...]) -> None:
    total = len(paths) * shape[0] * shape[1]
    if total > MAX_TOTAL_PIXELS:
        raise ValueError(
            f"{paths[0].parent}: {len(paths)} pictures of {shape[1]}x{shape[0]} are {total} "
            f"pixels, at most {MAX_TOTAL_PIXELS} are read; take fewer (frames=N) or smaller ones"
        )
