"""Orbits whose frames disagree, made from an orbit that agrees: what goes wrong stays known.

    python benchmarks/disagree.py OBJECT OUT --kind video --strength 1 --seed 0

OBJECT is a folder with orbit_train/transforms.json (nerf-synthetic form) and RGBA frames. OUT gets
the same layout with spoiled training frames and untouched test views, and disagreement.json with
what was done to every frame. At strength 1 the kinds are as strong as in frames of video models.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

Array = np.ndarray
Random = np.random.Generator

WARP_PX = 3.0  # rms of each component, at 512 px
SHIFT_PX = 3.0
ZOOM = 0.015
ROLL_DEG = 1.0
EXPOSURE, WHITE_BALANCE = 0.05, 0.025
BLUR_PX = 1.0
BLOCK_NOISE = 0.015
POSE_DEG = 1.0  # camera turned about the object's centre
MASK_BLUR_PX = 2.0
BAD_FRAME_PX = 12.0  # shift of the one frame of kind "one"


@dataclass
class Spoiling:
    """What one frame suffers; at rest it is the identity.

    `flow` (x, y), `shift`, `zoom` and `roll` say where the frame is read, px of the frame.
    """

    flow: Array | None = None  # [2, H, W]
    shift: Array = field(default_factory=lambda: np.zeros(2))
    zoom: float = 1.0
    roll_deg: float = 0.0
    gains: Array = field(default_factory=lambda: np.ones(3))
    blur_px: float = 0.0
    noise: Array | None = None  # [H, W, 3]
    mask_blur_px: float = 0.0
    turn_deg: Array = field(default_factory=lambda: np.zeros(3))


def drifting(random: Random, count: int, *shape: int, frames: float = 1.2) -> Array:
    """Noise of variance 1 that changes smoothly around the orbit. [count, *shape]"""
    values = ndimage.gaussian_filter1d(
        random.standard_normal((count, *shape)), frames, axis=0, mode="wrap"
    )
    return values / values.std()


def smooth_flow(random: Random, count: int, height: int, width: int) -> Array:
    """Flows with features of a sixth of the frame that drift along the orbit. [count, 2, H, W]"""
    coarse = drifting(random, count, 2, 24, 24)
    coarse = ndimage.gaussian_filter(coarse, (0, 0, 3, 3), mode="reflect")
    coarse /= coarse.std()
    zoom = (1, 1, height / 24, width / 24)
    return ndimage.zoom(coarse, zoom, order=3, mode="nearest", grid_mode=True)


def warp(random: Random, frames: list[Spoiling], size: tuple[int, int], k: float) -> None:
    flows = smooth_flow(random, len(frames), *size) * WARP_PX * k * max(size) / 512
    for frame, flow in zip(frames, flows, strict=True):
        frame.flow = flow


def shift(random: Random, frames: list[Spoiling], size: tuple[int, int], k: float) -> None:
    for frame, value in zip(frames, drifting(random, len(frames), 2), strict=True):
        frame.shift = value * SHIFT_PX * k * max(size) / 512


def zoom(random: Random, frames: list[Spoiling], size: tuple[int, int], k: float) -> None:
    for frame, value in zip(frames, drifting(random, len(frames)), strict=True):
        frame.zoom = math.exp(value * ZOOM * k)


def roll(random: Random, frames: list[Spoiling], size: tuple[int, int], k: float) -> None:
    for frame, value in zip(frames, drifting(random, len(frames)), strict=True):
        frame.roll_deg = value * ROLL_DEG * k


def colour(random: Random, frames: list[Spoiling], size: tuple[int, int], k: float) -> None:
    exposure = drifting(random, len(frames), 1) * EXPOSURE * k
    balance = drifting(random, len(frames), 3) * WHITE_BALANCE * k
    for frame, gains in zip(frames, np.exp(exposure + balance), strict=True):
        frame.gains = gains


def detail(random: Random, frames: list[Spoiling], size: tuple[int, int], k: float) -> None:
    height, width = size
    for frame in frames:
        frame.blur_px = BLUR_PX * k * random.uniform(0.3, 1.7)  # some frames stay sharp
        noise = random.standard_normal((math.ceil(height / 8), math.ceil(width / 8), 3))
        frame.noise = noise.repeat(8, 0).repeat(8, 1)[:height, :width] * BLOCK_NOISE * k


def masks(random: Random, frames: list[Spoiling], size: tuple[int, int], k: float) -> None:
    for frame in frames:
        frame.mask_blur_px = MASK_BLUR_PX * k * random.uniform(0.3, 1.7)


def pose(random: Random, frames: list[Spoiling], size: tuple[int, int], k: float) -> None:
    for frame, value in zip(frames, drifting(random, len(frames), 3), strict=True):
        frame.turn_deg = value * POSE_DEG * k


def one(random: Random, frames: list[Spoiling], size: tuple[int, int], k: float) -> None:
    frame = frames[int(random.integers(len(frames)))]
    direction = random.uniform(0, 2 * math.pi)
    length = BAD_FRAME_PX * k * max(size) / 512
    frame.shift = length * np.array([math.cos(direction), math.sin(direction)])
    frame.gains = np.exp(random.standard_normal(3) * 2 * EXPOSURE * k)


def video(random: Random, frames: list[Spoiling], size: tuple[int, int], k: float) -> None:
    for spoil in (warp, shift, zoom, colour, detail, masks):
        spoil(random, frames, size, 0.7 * k)


KINDS: dict[str, Callable[[Random, list[Spoiling], tuple[int, int], float], None]] = {
    spoil.__name__: spoil
    for spoil in (video, warp, shift, zoom, roll, colour, detail, masks, pose, one)
}


def reading_positions(spoiling: Spoiling, height: int, width: int) -> Array:  # [2, H, W] (y, x)
    """Where a spoiled frame reads the true one, px."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x, y = x + 0.5 - width / 2, y + 0.5 - height / 2
    angle = math.radians(spoiling.roll_deg)
    turned_x = spoiling.zoom * (math.cos(angle) * x - math.sin(angle) * y)
    turned_y = spoiling.zoom * (math.sin(angle) * x + math.cos(angle) * y)
    flow = np.zeros((2, height, width)) if spoiling.flow is None else spoiling.flow
    turned_x = turned_x + flow[0] + spoiling.shift[0]
    turned_y = turned_y + flow[1] + spoiling.shift[1]
    return np.stack([turned_y - 0.5 + height / 2, turned_x - 0.5 + width / 2])


def spoil_picture(picture: Array, spoiling: Spoiling) -> Array:  # [H, W, 4] straight
    """The picture as the spoiling leaves it, straight colours with alpha in [0, 1]."""
    alpha = picture[..., 3:]
    planes = np.concatenate([picture[..., :3] * alpha, alpha], axis=-1)
    positions = reading_positions(spoiling, *picture.shape[:2])
    planes = np.stack(
        [ndimage.map_coordinates(planes[..., c], positions, order=1) for c in range(4)], axis=-1
    )
    planes = ndimage.gaussian_filter(planes, (spoiling.blur_px, spoiling.blur_px, 0))
    alpha = planes[..., 3:]
    colours = np.where(alpha > 1e-3, planes[..., :3] / np.maximum(alpha, 1e-3), 0)
    colours = colours * spoiling.gains
    if spoiling.noise is not None:
        colours = colours + spoiling.noise
    if spoiling.mask_blur_px:
        soft = ndimage.gaussian_filter(alpha, (spoiling.mask_blur_px, spoiling.mask_blur_px, 0))
        # colours reach as far as the softened mask: the nearest pixel of the object
        nearest = ndimage.distance_transform_edt(
            alpha[..., 0] < 0.5, return_distances=False, return_indices=True
        )
        colours = np.where(alpha > 0.5, colours, colours[tuple(nearest)])
        alpha = soft
    return np.clip(np.concatenate([colours * (alpha > 1e-3), alpha], axis=-1), 0, 1)


def turned_camera(matrix: list[list[float]], turn_deg: Array) -> list[list[float]]:
    """A camera-to-world matrix turned about the world's origin by a rotation vector."""
    angle = math.radians(float(np.linalg.norm(turn_deg)))
    if angle == 0:
        return matrix
    x, y, z = np.asarray(turn_deg) / np.linalg.norm(turn_deg)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(4)
    rotation[:3, :3] += math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    return (rotation @ np.asarray(matrix)).tolist()


def spoil_orbit(source: Path, out: Path, kind: str, strength: float, seed: int) -> None:
    """Write the spoiled copy of an orbit."""
    random = np.random.default_rng(seed)
    shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("maps"))
    document = json.loads((source / "orbit_train" / "transforms.json").read_text())
    paths = [_picture_path(Path("orbit_train"), f["file_path"]) for f in document["frames"]]
    width, height = Image.open(source / paths[0]).size
    frames = [Spoiling() for _ in paths]
    KINDS[kind](random, frames, (height, width), strength)
    for path, spoiling in zip(paths, frames, strict=True):
        picture = np.asarray(Image.open(source / path).convert("RGBA")) / 255.0
        spoiled = spoil_picture(picture, spoiling)
        Image.fromarray((spoiled * 255 + 0.5).astype(np.uint8)).save(out / path)
    for name in ("orbit_train/transforms.json", "transforms_train.json"):
        if (source / name).exists():
            cameras = json.loads((source / name).read_text())
            for entry, spoiling in zip(cameras["frames"], frames, strict=True):
                turned = turned_camera(entry["transform_matrix"], spoiling.turn_deg)
                entry["transform_matrix"] = turned
            (out / name).write_text(json.dumps(cameras))
    record = [
        {
            "flow_rms_px": 0.0 if f.flow is None else float(np.sqrt((f.flow**2).sum(0).mean())),
            "shift_px": f.shift.tolist(),
            "zoom": f.zoom,
            "roll_deg": f.roll_deg,
            "gains": f.gains.tolist(),
            "blur_px": f.blur_px,
            "mask_blur_px": f.mask_blur_px,
            "turn_deg": f.turn_deg.tolist(),
        }
        for f in frames
    ]
    settings = {"kind": kind, "strength": strength, "seed": seed}
    text = json.dumps({**settings, "frames": record}, indent=1)
    (out / "disagreement.json").write_text(text)


def _picture_path(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.suffix else path.with_suffix(".png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("object", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="video")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    spoil_orbit(options.object, options.out, options.kind, options.strength, options.seed)


if __name__ == "__main__":
    main()
