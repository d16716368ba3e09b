"""Posed views to and from files: folders of pictures, videos, transforms.json data sets."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..cameras import ORBIT_PRESETS, V3D_ORBIT, Orbit, orbit_cameras
from ..images import from_uint8, to_uint8
from ..pose_views import MIN_VIEWS, LoadedViews, pose_views
from ..structures import Cameras, Views
from .atomic import atomic_folder
from .pictures import list_pictures, read_masks, read_pictures
from .transforms import cameras_for, find_transforms, read_transforms, transforms_document
from .video import VIDEO_SUFFIXES, decode_video

__all__ = ["LoadedViews", "has_split", "load_views", "save_views"]

MaskSource = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Tensor


def load_views(
    source: str | os.PathLike[str],
    *,
    orbit: Orbit | None = None,
    cameras: Cameras | None = None,
    masks: MaskSource | None = None,
    split: str = "train",
    frames: int | Sequence[int] | None = None,
) -> LoadedViews:
    """Views from a transforms.json data set, a folder of pictures, or a video.

    A folder counts as a data set when `find_transforms` finds a file for the split in it; the
    cameras then come from that file. Object and background are told apart as in `pose_views`.

    Args:
        source: A folder, a transforms .json, or a video file.
        orbit: For pictures without cameras: where the cameras stood; None is the V3D orbit.
            A preset wants square pictures; any other orbit takes its vertical field of view.
        cameras: Instead of an orbit: one camera per picture, made for the pictures' size.
        masks: White = object: a folder, a list of files, or a tensor [V, H, W], in the order of
            the pictures. Used where the pictures have no alpha.
        split: "train", "test" or "val" of a data set.
        frames: Take only some: a number spreads them evenly over the turn, the first included; a
            list names them, from 0. None takes all, and their number must match the cameras.

    Returns:
        Views on the CPU in float32 and sentences for the user.

    Raises:
        FileNotFoundError: There is nothing at `source`.
        ValueError: Anything wrong with the files; the text has the numbers and the remedy.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    minimum = MIN_VIEWS if split == "train" else 1
    if source.is_dir() or source.suffix.lower() == ".json":
        transforms_path = find_transforms(source, split)
        if transforms_path is not None:
            return _load_data_set(transforms_path, masks, frames, minimum)
    if split != "train":
        raise ValueError(f"{source}: no transforms_{split}.json and no orbit_{split} folder here")
    if source.is_dir():
        paths = list_pictures(source)
        paths = [paths[i] for i in _chosen(len(paths), frames, str(source))]
        images, names = read_pictures(paths), _stems(paths)
    elif source.suffix.lower() in VIDEO_SUFFIXES:
        images = decode_video(source)
        chosen = _chosen(len(images), frames, str(source))
        images, names = images[chosen], tuple(f"frame_{i:04d}" for i in chosen)
    else:
        known = ", ".join(VIDEO_SUFFIXES)
        raise ValueError(f"{source}: not a folder, a transforms .json or a video ({known})")
    if cameras is None:
        cameras = _cameras_of_orbit(orbit or V3D_ORBIT, images)
    # the mask tensor or folder has either one mask per file or one per chosen picture
    given = None if masks is None else _load_masks(masks, frames, len(images))
    return pose_views(from_uint8(images), cameras, given, names, minimum)


def has_split(source: str | os.PathLike[str], split: str = "test") -> bool:
    """Whether `load_views(source, split=split)` would find a transforms file."""
    source = Path(source)
    if not (source.is_dir() or source.suffix.lower() == ".json"):
        return False
    return find_transforms(source, split) is not None


def save_views(folder: str | os.PathLike[str], views: Views) -> None:
    """Write straight RGBA .png files and a transforms.json, which `load_views` reads back.

    All or nothing: an early end leaves the folder as it was. Other files in it stay.

    Args:
        folder: Where to write; made when missing.
        views: Views with names (kept as file names) or without (view_000, ...).
    """
    names = views.names or tuple(f"view_{i:03d}" for i in range(len(views)))
    _check_file_names(names)
    pixels = to_uint8(torch.cat([views.images, views.masks[..., None]], dim=-1)).cpu().numpy()
    document = transforms_document(views.cameras, [f"./{name}.png" for name in names])
    with atomic_folder(folder) as staging:
        for name, picture in zip(names, pixels):
            Image.fromarray(picture).save(staging / f"{name}.png")
        text = json.dumps(document, indent=1, allow_nan=False)
        (staging / "transforms.json").write_text(text + "\n", encoding="utf-8")


def _load_data_set(
    path: Path, masks: MaskSource | None, frames: int | Sequence[int] | None, minimum: int
) -> LoadedViews:
    transforms = read_transforms(path)
    chosen = _chosen(len(transforms.pictures), frames, str(path))
    images = read_pictures([transforms.pictures[i] for i in chosen])
    cameras = cameras_for(transforms, images.shape[2], images.shape[1])[chosen]
    given = None
    if masks is not None:
        given = _load_masks(masks, frames, len(images))
    elif transforms.masks:
        given = read_masks([transforms.masks[i] for i in chosen])
    names = tuple(transforms.names[i] for i in chosen)
    loaded = pose_views(from_uint8(images), cameras, given, names, minimum)
    return LoadedViews(loaded.views, transforms.warnings + loaded.warnings)


def _cameras_of_orbit(orbit: Orbit, images: Tensor) -> Cameras:
    height, width = images.shape[1:3]
    preset = next((name for name, known in ORBIT_PRESETS.items() if known == orbit), None)
    if preset is not None and width != height:
        raise ValueError(
            f"the pictures are {width}x{height} but the orbit preset {preset!r} makes square ones; "
            "crop or pad them to a square, or give an orbit of your own, whose fov_y_deg is the "
            "vertical field of view"
        )
    return orbit_cameras(orbit, width, height)


def _chosen(count: int, frames: int | Sequence[int] | None, where: str) -> list[int]:
    """Indices of the frames to take out of `count`."""
    if frames is None:
        return list(range(count))
    if isinstance(frames, int):
        if not 1 <= frames <= count:
            raise ValueError(f"{where}: frames={frames} asked for, but there are {count}")
        return [k * count // frames for k in range(frames)]
    outside = [index for index in frames if not 0 <= index < count]
    if outside or not len(frames):
        raise ValueError(f"{where}: frame {outside[:1]} asked for, but there are {count} (from 0)")
    return list(frames)


def _load_masks(masks: MaskSource, frames: int | Sequence[int] | None, count: int) -> Tensor:
    """Masks [V, H, W]: one per picture, or one per file, of which those of `frames` are taken."""
    if isinstance(masks, (str, os.PathLike)):
        files = list_pictures(masks)
    elif not isinstance(masks, Tensor):
        files = [Path(mask) for mask in masks]
    else:
        return torch.stack([masks[i] for i in _chosen_masks(len(masks), frames, count)])
    return read_masks([files[i] for i in _chosen_masks(len(files), frames, count)])


def _chosen_masks(available: int, frames: int | Sequence[int] | None, count: int) -> list[int]:
    chosen = list(range(available))
    if available != count and frames is not None:
        chosen = _chosen(available, frames, "masks")
    if len(chosen) != count:
        raise ValueError(f"{count} pictures but {len(chosen)} masks; give one mask per picture")
    return chosen


def _stems(paths: Sequence[Path]) -> tuple[str, ...]:
    """Stems of files, or whole names where a.png and a.jpg would both be `a`."""
    stems = tuple(path.stem for path in paths)
    if len(set(stems)) == len(stems):
        return stems
    return tuple(path.name.replace(".", "_") for path in paths)


def _check_file_names(names: Sequence[str]) -> None:
    for name in names:
        if (
            not name
            or name.startswith(".")
            or Path(name).name != name
            or set(name) & set('\\:*?"<>|\0')
        ):
            raise ValueError(f"save_views: {name[:80]!r} cannot be a file name")
    if len({name.lower() for name in names}) < len(names):
        raise ValueError(f"save_views: {len(names)} views, but some names are the same")
