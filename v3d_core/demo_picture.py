"""The picture that `v3d demo` starts from: how it was made, and what its orbit should have shown.

`python -m v3d_core.demo_picture OUT` renders `v3d_core/data/demo_picture`: the object of a seed
that no training saw, from all cameras of V3D's orbit. The first view is the demo's picture; the
others are the truth that a sampled orbit is compared with.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from .cameras import V3D_ORBIT, orbit_cameras
from .formats.views import load_views, save_views
from .images import composite, from_uint8, resize_views
from .metrics import psnr
from .prepare import PrepareConfig
from .structures import Cameras, Views
from .training.objects import random_objects
from .training.objects_table import ObjectTable
from .training.tracing import render_orbits

FOLDER = Path(__file__).parent / "data" / "demo_picture"
PICTURE = FOLDER / "r_000.png"
SEED = 6  # of `random_objects`; V3D-nano was trained on 1,000,000 and above
SIZE = 256  # px
SUPERSAMPLE = 4  # rays along each side of a pixel
FRAMINGS = 5  # times the object is moved into the middle; the last ones change nothing


def true_orbit(size: int) -> Views:
    """The demo's object from V3D's cameras, as shipped, in frames of a size."""
    return resize_views(load_views(FOLDER).views, size, size)


def orbit_scores(frames: Views, truth: Views) -> dict[str, object]:
    """How near sampled frames are to the true ones, both on white; dB."""
    made, true = (composite(views.images, views.masks).cpu() for views in (frames, truth))
    each = [round(psnr(a, b), 2) for a, b in zip(made, true, strict=True)]
    return {"psnr": round(sum(each) / len(each), 2), "psnr_first": each[0], "per_view": each}


def draw(folder: Path, seed: int = SEED, size: int = SIZE) -> None:
    """Write the orbit of an object: pictures with alpha, and V3D's cameras."""
    table = random_objects([seed])
    rgba = from_uint8(render_orbits(table, framing_cameras(table, size), size, SUPERSAMPLE)[0])
    names = tuple(f"r_{index:03d}" for index in range(len(rgba)))
    cameras = orbit_cameras(V3D_ORBIT, size, size)
    save_views(folder, Views(rgba[..., :3], rgba[..., 3], cameras, names))


def framing_cameras(table: ObjectTable, size: int) -> Cameras:
    """V3D's cameras, moved until the object stands in view 0 as a prepared picture has it.

    That is as if the object were moved and scaled, so that preparing the picture changes nothing
    and the other views are the truth for it.
    """
    wanted = 2 * round(size / 2 * (1 - PrepareConfig().border_ratio))  # px; halved, whole again
    radius, centre = V3D_ORBIT.radius, torch.zeros(3)
    cameras = _moved(radius, centre, size)
    for _ in range(FRAMINGS):
        alpha = render_orbits(table, cameras[:1], size, SUPERSAMPLE)[0, 0, ..., 3].float() / 255
        x0, y0, x1, y1 = _box(alpha)
        radius *= max(x1 - x0, y1 - y0) / wanted
        pixel = radius / float(cameras.K[0, 0, 0])  # world units that a pixel in the middle shows
        centre[0] += pixel * ((x0 + x1) / 2 - size / 2)
        centre[1] -= pixel * ((y0 + y1) / 2 - size / 2)
        cameras = _moved(radius, centre, size)
    return cameras


def _moved(radius: float, centre: Tensor, size: int) -> Cameras:
    cameras = orbit_cameras(dataclasses.replace(V3D_ORBIT, radius=radius), size, size)
    poses = cameras.camera_to_world.clone()
    poses[:, :3, 3] += centre
    return dataclasses.replace(cameras, camera_to_world=poses)


def _box(alpha: Tensor) -> tuple[int, int, int, int]:  # [S, S]
    """Left, top, right and bottom of the object, ends excluded, as `prepare` takes them."""
    covered = alpha > PrepareConfig().mask_threshold
    rows, columns = covered.any(1).nonzero(), covered.any(0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render the picture of `v3d demo` and its orbit.")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, default=SEED, help="of the object; %(default)s")
    chosen = parser.parse_args()
    draw(chosen.out, chosen.seed)
