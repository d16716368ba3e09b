"""COLMAP text models (colmap.github.io/format.html), which most splat trainers read.

Poses are world-to-camera with OpenCV axes and pixel centres at +0.5, both as ours; only the
quaternion (wxyz) and the translation have to be taken out.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..cameras import project_points
from ..images import composite, to_uint8
from ..structures import Cameras, Views
from .atomic import atomic_folder

START_POINTS = 5000  # points made when none are given; trainers refuse an empty cloud
START_CANDIDATES = 200_000  # drawn for that in the ball that all cameras see
START_SEED = 0


def write_colmap_text(
    folder: str | os.PathLike[str],
    views: Views,
    points: Tensor | None = None,  # [N, 3]
    colours: Tensor | None = None,  # [N, 3]
    rgba: bool = False,
) -> None:
    """Write `images/`, `masks/` and `sparse/0/{cameras,images,points3D}.txt`.

    The world frame stays ours (+Y up). Masks are named as COLMAP looks for them: `a.png.png`
    belongs to `a.png`, white = object.

    Args:
        folder: Where to write; made when missing, other files in it stay.
        views: The views; cameras that share their intrinsics become one COLMAP camera.
        points: Start cloud, world units; None makes one inside all masks. [N, 3]
        colours: sRGB of the points in [0, 1]; None takes them from the views. [N, 3]
        rgba: Write pictures with alpha instead of over white.
    """
    if points is not None and points.shape[0] == 0:
        raise ValueError("write_colmap_text: 0 points given, at least 1 is needed; or give None")
    views = views.to("cpu", torch.float32)
    cloud = _points_inside(views) if points is None else points.detach().cpu().float()
    shades = _colours_of(cloud, views) if colours is None else colours.detach().cpu().float()
    if len(cloud) != len(shades):
        raise ValueError(f"write_colmap_text: {len(cloud)} points but {len(shades)} colours")
    names = [f"{name}.png" for name in views.names or [f"view_{i:03d}" for i in range(len(views))]]
    for name in names:
        if Path(name).name != name or any(c.isspace() for c in name):
            raise ValueError(f"write_colmap_text: {name[:80]!r} cannot be a picture name in COLMAP")
    if rgba:
        pictures = to_uint8(torch.cat([views.images, views.masks[..., None]], dim=-1)).numpy()
    else:
        pictures = to_uint8(composite(views.images, views.masks)).numpy()
    masks = to_uint8(views.masks).numpy()
    with atomic_folder(folder) as staging:
        sparse = staging / "sparse" / "0"
        for part in (sparse, staging / "images", staging / "masks"):
            part.mkdir(parents=True)
        for name, picture, mask in zip(names, pictures, masks):
            Image.fromarray(picture).save(staging / "images" / name)
            Image.fromarray(mask).save(staging / "masks" / f"{name}.png")
        cameras_text, camera_ids = _cameras_text(views.cameras)
        (sparse / "cameras.txt").write_text(cameras_text, encoding="utf-8")
        images_text = _images_text(views.cameras, camera_ids, names)
        (sparse / "images.txt").write_text(images_text, encoding="utf-8")
        (sparse / "points3D.txt").write_text(_points_text(cloud, shades), encoding="utf-8")


def rotation_to_quat(rotation: Tensor) -> Tensor:  # [V, 3, 3] -> [V, 4]
    """Unit quaternions wxyz with w >= 0, from the largest of the four forms (Shepperd 1978)."""
    r = rotation.double()
    trace = r[:, 0, 0] + r[:, 1, 1] + r[:, 2, 2]
    diagonal = torch.stack([trace, r[:, 0, 0], r[:, 1, 1], r[:, 2, 2]], dim=-1)
    # row k holds 4 q_k (w, x, y, z): the outer product of the quaternion with itself, times 4
    w = [1 + trace, r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]]
    x = [w[1], 1 + 2 * r[:, 0, 0] - trace, r[:, 0, 1] + r[:, 1, 0], r[:, 0, 2] + r[:, 2, 0]]
    y = [w[2], x[2], 1 + 2 * r[:, 1, 1] - trace, r[:, 1, 2] + r[:, 2, 1]]
    z = [w[3], x[3], y[3], 1 + 2 * r[:, 2, 2] - trace]
    outer = torch.stack([torch.stack(row, dim=-1) for row in (w, x, y, z)], dim=1)
    best = outer[torch.arange(len(r)), diagonal.argmax(dim=-1)]
    quat = torch.nn.functional.normalize(best, dim=-1)
    return torch.where(quat[:, :1] < 0, -quat, quat)


def _cameras_text(cameras: Cameras) -> tuple[str, list[int]]:
    """The text, and the 1-based camera number of every view."""
    unique, index = torch.unique(cameras.K.double(), dim=0, return_inverse=True)
    lines = ["# CAMERA_ID MODEL WIDTH HEIGHT fx fy cx cy"]
    for number, K in enumerate(unique, start=1):
        values = (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
        parameters = " ".join(f"{float(v):.17g}" for v in values)
        lines.append(f"{number} PINHOLE {cameras.width} {cameras.height} {parameters}")
    return "\n".join([*lines, ""]), (index + 1).tolist()


def _images_text(cameras: Cameras, camera_ids: list[int], names: list[str]) -> str:
    world_to_camera = cameras.to(torch.float64).world_to_camera
    rows = torch.cat([rotation_to_quat(world_to_camera[:, :3, :3]), world_to_camera[:, :3, 3]], 1)
    lines = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of 2D points (none)"]
    for number, (row, camera, name) in enumerate(zip(rows.tolist(), camera_ids, names), start=1):
        pose = " ".join(f"{x + 0.0:.17g}" for x in row)
        lines += [f"{number} {pose} {camera} {name}", ""]
    return "\n".join([*lines, ""])


def _points_text(points: Tensor, colours: Tensor) -> str:
    lines = ["# POINT3D_ID X Y Z R G B ERROR TRACK[]"]
    rows = zip(points.tolist(), to_uint8(colours).tolist())
    for number, ((x, y, z), (r, g, b)) in enumerate(rows, start=1):
        lines.append(f"{number} {x:.9g} {y:.9g} {z:.9g} {r} {g} {b} 0")
    return "\n".join([*lines, ""])


def _points_inside(views: Views) -> Tensor:  # [N, 3]
    """Random points that every view sees inside its mask, or in the ball if there are none."""
    centre, radius = _seen_ball(views.cameras)
    generator = torch.Generator().manual_seed(START_SEED)
    points = torch.rand(START_CANDIDATES, 3, generator=generator) * 2 - 1
    points = centre + radius * points[points.norm(dim=-1) <= 1]
    kept = points
    for view in range(len(views)):
        pixels, depth = project_points(kept, views.cameras[view])
        kept = kept[(depth[0] > 0) & (_lookup(views.masks[view], pixels[0]) > 0.5)]
    return (kept if len(kept) else points)[:START_POINTS]


def _seen_ball(cameras: Cameras) -> tuple[Tensor, float]:
    """Centre nearest to all optical axes, and the largest radius that every picture contains."""
    axes = cameras.camera_to_world[:, :3, 2].double()
    centres = cameras.centres.double()
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    # parallel axes leave their common direction open: the pseudo-inverse takes the nearest point
    system = torch.linalg.pinv(across.sum(0), rtol=1e-6)
    centre = system @ (across @ centres[:, :, None]).sum(0)[:, 0]
    distance = (centres - centre).norm(dim=-1)
    tangent = 0.5 * min(cameras.width, cameras.height) / cameras.K[:, 0, 0].double()
    radius = float((distance * torch.sin(torch.atan(tangent))).min())
    return centre.float(), max(radius, 1e-3)


def _colours_of(points: Tensor, views: Views) -> Tensor:  # [N, 3]
    """Colour of every point in the picture of the camera nearest to it, white outside."""
    nearest = torch.cdist(points, views.cameras.centres).argmin(dim=1)
    pictures = composite(views.images, views.masks)
    colours = torch.ones(len(points), 3)
    for view in nearest.unique().tolist():
        mine = nearest == view
        pixels, _ = project_points(points[mine], views.cameras[view])
        colours[mine] = _lookup(pictures[view], pixels[0], outside=1.0)
    return colours


def _lookup(picture: Tensor, pixels: Tensor, outside: float = 0.0) -> Tensor:
    """Values of the pixels [H, W, ...] that points [N, 2] fall into."""
    height, width = picture.shape[:2]
    finite = pixels.nan_to_num(-1, -1, -1)
    column, row = finite[:, 0].floor().long(), finite[:, 1].floor().long()
    valid = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    values = picture[row.clamp(0, height - 1), column.clamp(0, width - 1)]
    valid = valid.reshape(-1, *[1] * (values.ndim - 1))
    return torch.where(valid, values, torch.full_like(values, outside))
