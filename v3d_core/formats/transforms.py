"""transforms.json as of the nerf-synthetic and instant-ngp data sets: cameras and file names.

Poses are camera-to-world with OpenGL axes; ours are OpenCV (`docs/conventions.md`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cameras import flip_camera_yz
from ..structures import Cameras
from .pictures import PICTURE_SUFFIXES

MAX_JSON_BYTES = 2**26  # 64 MiB; a frame takes about 600 bytes
MAX_FRAMES = 100_000
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
SMALLEST_DISTORTION = 1e-6  # below it no pixel of an 8192 px picture moves by a hundredth


@dataclass(frozen=True)
class TransformsFile:
    """What one transforms.json says, before any picture is opened.

    Attributes:
        path: The file itself.
        pictures: Picture file of every frame, inside the data set's folder.
        masks: Mask file of every frame, or empty.
        names: Unique stem of every frame.
        camera_to_world: OpenCV poses. [V, 4, 4]
        frames: Intrinsics of every frame as read: keys of the frame over those of the file.
        warnings: What had to be ignored.
    """

    path: Path
    pictures: tuple[Path, ...]
    masks: tuple[Path, ...]
    names: tuple[str, ...]
    camera_to_world: Tensor
    frames: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...] = ()


def find_transforms(source: Path, split: str) -> Path | None:
    """The transforms file of a split, or None.

    For a folder: `transforms_<split>.json`; for "train" also `transforms.json`;
    `orbit_<split>/transforms.json`; and beside a folder with "train" in its name, the same name
    with the split in its place. For a json file: the file itself is "train", and other splits
    are looked for beside it.
    """
    folder = source if source.is_dir() else source.parent
    if source.is_file():
        if split == "train":
            return source
        candidates = [source.with_name(source.name.replace("train", split))]
        candidates = [] if candidates[0] == source else candidates
    else:
        candidates = [folder / f"transforms_{split}.json"]
        if split == "train":
            candidates.append(folder / "transforms.json")
    candidates.append(folder / f"orbit_{split}" / "transforms.json")
    name = folder.resolve().name
    if split != "train" and "train" in name:
        candidates.append(
            folder.resolve().parent / name.replace("train", split) / "transforms.json"
        )
    return next((path for path in candidates if path.is_file()), None)


def read_transforms(path: Path) -> TransformsFile:
    """Read and check a transforms.json; its pictures must lie in its own folder or below.

    Raises:
        ValueError: The file is no such json, or a picture is missing or lies outside.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, at most {MAX_JSON_BYTES} are read")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a json file: {error}") from error
    frames = data.get("frames") if isinstance(data, dict) else None
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"{path}: no list 'frames' in it, so it is not a transforms.json")
    if len(frames) > MAX_FRAMES:
        raise ValueError(f"{path}: {len(frames)} frames, at most {MAX_FRAMES} are read")
    shared = {key: value for key, value in data.items() if key != "frames"}
    poses, pictures, masks = [], [], []
    for index, frame in enumerate(frames):
        where = f"{path}: frame {index}"
        if not isinstance(frame, dict):
            raise ValueError(f"{where} is not an object")
        poses.append(_pose(where, frame.get("transform_matrix")))
        pictures.append(_inside(path, where, frame.get("file_path")))
        if "mask_path" in frame:
            masks.append(_inside(path, where, frame["mask_path"]))
    if masks and len(masks) != len(frames):
        raise ValueError(f"{path}: {len(frames)} frames but {len(masks)} have a mask_path")
    warnings = []
    distorted = {
        key: value
        for key in _DISTORTION
        if isinstance(value := shared.get(key, 0), (int, float))
        and abs(value) > SMALLEST_DISTORTION
    }
    if distorted:
        text = ", ".join(f"{key} = {value:g}" for key, value in distorted.items())
        warnings.append(f"{path}: the lens distortion ({text}) is ignored; undistort the pictures.")
    return TransformsFile(
        path,
        tuple(pictures),
        tuple(masks),
        _unique_names(path, pictures),
        flip_camera_yz(torch.tensor(poses, dtype=torch.float64)).float(),
        tuple({**shared, **frame} for frame in frames),
        tuple(warnings),
    )


def cameras_for(transforms: TransformsFile, width: int, height: int) -> Cameras:
    """Cameras of all frames for pictures of a size; intrinsics for another size are scaled.

    Raises:
        ValueError: No field of view, or the file's w and h have another shape than the pictures.
    """
    rows = []
    for index, frame in enumerate(transforms.frames):
        where = f"{transforms.path}: frame {index}"
        stated = (_number(where, frame, "w", width), _number(where, frame, "h", height))
        if abs(stated[0] * height - stated[1] * width) > max(stated):
            raise ValueError(
                f"{where}: cameras for {stated[0]:g}x{stated[1]:g} but the picture is "
                f"{width}x{height}; crop or resize the pictures as the cameras say"
            )
        rows.append(_intrinsics(where, frame, *stated, width, height))
    K = torch.tensor(rows, dtype=torch.float64).float()
    return Cameras(transforms.camera_to_world, K, width, height)


def _intrinsics(
    where: str, frame: dict[str, Any], stated_width: float, stated_height: float, *size: int
) -> list[list[float]]:
    width, height = size
    fx, fy = _focal(where, frame, "x", stated_width), _focal(where, frame, "y", stated_height)
    if fx is None and fy is None:
        raise ValueError(f"{where}: no field of view; 'camera_angle_x' or 'fl_x' is needed")
    fx, fy = (fx if fx is not None else fy), (fy if fy is not None else fx)
    assert fx is not None and fy is not None
    cx = _number(where, frame, "cx", stated_width / 2)
    cy = _number(where, frame, "cy", stated_height / 2)
    sx, sy = width / stated_width, height / stated_height
    return [[fx * sx, 0, cx * sx], [0, fy * sy, cy * sy], [0, 0, 1]]


def _focal(where: str, frame: dict[str, Any], axis: str, size: float) -> float | None:
    if f"fl_{axis}" in frame:
        focal = _number(where, frame, f"fl_{axis}", 0)
        if not focal > 0:
            raise ValueError(f"{where}: fl_{axis} must be positive, got {focal:g}")
        return focal
    if f"camera_angle_{axis}" in frame:
        angle = _number(where, frame, f"camera_angle_{axis}", 0)
        if not 0 < angle < math.pi:
            raise ValueError(
                f"{where}: camera_angle_{axis} is {angle:g}; it is in radians, between 0 and pi"
            )
        return 0.5 * size / math.tan(0.5 * angle)
    return None


def _number(where: str, frame: dict[str, Any], key: str, default: float) -> float:
    value = frame.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{where}: {key} is not a number: {str(value)[:40]!r}")
    if key in ("w", "h") and value < 1:
        raise ValueError(f"{where}: {key} must be at least 1, got {value:g}")
    return float(value)


def _pose(where: str, matrix: object) -> list[list[float]]:
    try:
        pose = torch.tensor(matrix, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: transform_matrix is missing or not 4x4 numbers") from error
    if pose.shape != (4, 4):
        raise ValueError(f"{where}: transform_matrix is {list(pose.shape)}, expected [4, 4]")
    return pose.tolist()


def _inside(json_path: Path, where: str, text: object) -> Path:
    """The file that a path in a json names, if it lies in the json's folder or below."""
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{where}: no file_path")
    root = json_path.parent.resolve()
    relative = text.replace("\\", "/")
    named = root / relative
    for candidate in (named, *(named.with_name(named.name + s) for s in PICTURE_SUFFIXES)):
        resolved = candidate.resolve()
        if relative.startswith("/") or not resolved.is_relative_to(root):
            raise ValueError(
                f"{where}: {text[:200]!r} lies outside the data set's folder {root}; that is not "
                "allowed, put the json beside its pictures"
            )
        if resolved.is_file():
            return candidate
    suffixes = ", ".join(PICTURE_SUFFIXES)
    raise ValueError(f"{where}: no file {text[:200]!r} in {root} (nor with {suffixes} added)")


def _unique_names(path: Path, pictures: list[Path]) -> tuple[str, ...]:
    names = tuple(picture.stem for picture in pictures)
    if len(set(names)) == len(names):
        return names
    root = path.parent.resolve()
    names = tuple(
        "_".join(picture.resolve().relative_to(root).with_suffix("").parts) for picture in pictures
    )
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: {len(names)} frames, but only {len(set(names))} pictures")
    return names


def transforms_document(cameras: Cameras, file_paths: list[str]) -> dict[str, Any]:
    """The content of a transforms.json for cameras: nerf-synthetic keys, and fl_x .. h beside them.

    Intrinsics stand at the top when all cameras share them, else in every frame.
    """
    poses = flip_camera_yz(cameras.camera_to_world.double().cpu())
    K = cameras.K.double().cpu()
    shared = bool((K == K[:1]).all())
    per_frame = [_intrinsics_document(k, cameras.width, cameras.height) for k in K]
    frames = []
    for index, file_path in enumerate(file_paths):
        frame: dict[str, Any] = {"file_path": file_path}
        frame |= {} if shared else per_frame[index]
        # adding 0 turns -0 into 0, which people find easier to read
        frame["transform_matrix"] = [[x + 0.0 for x in row] for row in poses[index].tolist()]
        frames.append(frame)
    return {**(per_frame[0] if shared else {}), "frames": frames}


def _intrinsics_document(K: Tensor, width: int, height: int) -> dict[str, float]:
    fx, fy, cx, cy = (float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return {
        "camera_angle_x": 2 * math.atan(0.5 * width / fx),
        "camera_angle_y": 2 * math.atan(0.5 * height / fy),
        **{"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": width, "h": height},
    }
