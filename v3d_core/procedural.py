"""Exact pictures of analytic objects, and the demo orbit the project ships.

`python -m v3d_core.procedural OUT` writes the pictures and cameras of `v3d_core/data/demo_orbit`.
Rays are sphere traced (Hart 1996); blocks of pixels share their first steps as cones, so that
most rays start close to the surface.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .cameras import Orbit, flip_camera_yz, intrinsics_from_fov, look_at, orbit_cameras
from .demo_object import AnalyticObject, demo_robot
from .images import linear_to_srgb, srgb_to_linear
from .structures import Cameras, Mesh, Views

CONE_BLOCKS_PX = (16, 4, 1)  # sizes of pixel blocks that are traced as one cone, coarse to fine
RAYS_AT_ONCE = 2**18  # of several views, those that miss included; larger views go one by one
MAX_STEPS = 192  # sphere tracing; only rays that graze a surface need more than about 30
HIT_DISTANCE = 1e-6  # world units; a ray this close has hit
NORMAL_STEP = 1e-4  # world units, of the finite differences

# Lights fixed to the world, linear light: a sky brighter than the ground and three lamps.
AMBIENT, SKY = 0.34, 0.12
LIGHTS: tuple[tuple[float, tuple[float, float, float]], ...] = (
    (0.52, (0.5, 0.7, 0.9)),
    (0.28, (-0.9, 0.3, 0.2)),
    (0.26, (0.2, 0.4, -1.0)),
)

DEMO_SIZE = 256
DEMO_VIEWS = 18
DEMO_TEST_ORBIT: tuple[tuple[float, float], ...] = (  # azimuth half way between views, elevation
    (10.0, -15.0),
    (70.0, 0.0),
    (130.0, 15.0),
    (190.0, 30.0),
    (250.0, -15.0),
    (310.0, 15.0),
)


@dataclass(frozen=True)
class ObjectMaps:
    """What cameras see of an analytic object.

    Attributes:
        colours: Straight sRGB colours, zero where nothing was hit. [V, H, W, 3]
        alphas: Share of each pixel that the object covers. [V, H, W]
        depths: Depth along the optical axis through the pixel centre, 0 where it hits nothing.
            World units. [V, H, W]
        normals: Outward unit normals in world axes at the pixel centre, else zero. [V, H, W, 3]
    """

    colours: Tensor  # [V, H, W, 3]
    alphas: Tensor  # [V, H, W]
    depths: Tensor  # [V, H, W]
    normals: Tensor  # [V, H, W, 3]


def render_object(
    cameras: Cameras,
    shape: AnalyticObject | None = None,
    *,
    supersample: int = 3,
    names: Sequence[str] = (),
) -> Views:
    """Pictures and masks of an analytic object (the demo robot by default); see `render_maps`.

    Here `supersample` may be even: pictures need no ray through the pixel centre.
    """
    if supersample < 1:
        raise ValueError(f"render_object: supersample must be positive, got {supersample}")
    maps = _render_views(cameras, shape, supersample)
    return Views(maps.colours, maps.alphas, cameras, tuple(names))


def render_maps(
    cameras: Cameras, shape: AnalyticObject | None = None, *, supersample: int = 3
) -> ObjectMaps:
    """Trace an analytic object with `supersample`^2 rays per pixel, in float64.

    Colours are averaged in linear light over the rays that hit and then sRGB encoded. Double
    precision keeps the rays at outlines on the same side everywhere, so pictures repeat between
    machines to the last bit or nearly so.

    Args:
        cameras: Where to look from.
        shape: What to look at; None is the demo robot.
        supersample: Rays per pixel side; odd, so that one of them goes through the pixel centre.
    """
    if supersample < 1 or supersample % 2 == 0:
        raise ValueError(f"render_maps: supersample must be odd and positive, got {supersample}")
    return _render_views(cameras, shape, supersample)


def _render_views(cameras: Cameras, shape: AnalyticObject | None, supersample: int) -> ObjectMaps:
    shape = demo_robot() if shape is None else shape
    # views are traced together: of a small picture alone, most time would go into starting steps
    together = max(1, RAYS_AT_ONCE // (cameras.width * cameras.height * supersample**2))
    groups = [
        _render_group(cameras[slice(i, i + together)], shape, supersample)
        for i in range(0, len(cameras), together)
    ]
    return ObjectMaps(*(torch.cat(maps) for maps in zip(*groups, strict=True)))


def object_mesh(shape: AnalyticObject | None = None, resolution: int = 192) -> Mesh:
    """Marching cubes of the exact distances: ground truth for every mesh stage.

    Args:
        shape: The object; None is the demo robot.
        resolution: Samples along each side of the object's bounding cube.
    """
    from skimage.measure import marching_cubes

    shape = demo_robot() if shape is None else shape
    axis = torch.linspace(-1.02, 1.02, resolution, dtype=torch.float64) * shape.bound
    y, z = torch.meshgrid(axis, axis, indexing="ij")
    volume = np.empty((resolution,) * 3)
    for i, x in enumerate(axis):
        points = torch.stack([x.expand_as(y), y, z], dim=-1).reshape(-1, 3)
        volume[i] = shape.sdf(points).reshape(resolution, resolution).numpy()
    step = float(axis[1] - axis[0])
    vertices, faces, _, _ = marching_cubes(volume, 0.0, spacing=(step,) * 3)
    positions = torch.from_numpy(vertices.astype(np.float64)) + float(axis[0])
    return Mesh(
        vertices=positions.float(),
        faces=torch.from_numpy(faces.astype(np.int64)),
        normals=_normals(shape, positions).float(),
        vertex_colours=shape.albedo(positions).float(),
    )


def demo_cameras(size: int = DEMO_SIZE) -> tuple[Cameras, Cameras]:
    """Training orbit (V3D's) and held-out cameras of the demo, for `size` x `size` pictures."""
    orbit = Orbit(num_views=DEMO_VIEWS)
    azimuth, elevation = torch.tensor(DEMO_TEST_ORBIT, dtype=torch.float64).deg2rad().unbind(-1)
    direction = [azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()]
    position = orbit.radius * torch.stack(direction, dim=-1)
    poses = look_at(position, torch.zeros(3, dtype=torch.float64)).float()
    K = intrinsics_from_fov(math.radians(orbit.fov_y_deg), size, size)
    test = Cameras(poses, K.expand(len(poses), 3, 3).contiguous(), size, size)
    return orbit_cameras(orbit, size, size), test


def write_demo_orbit(folder: Path, size: int = DEMO_SIZE) -> None:
    """Write the demo's RGBA pictures and `transforms_{train,test}.json` (nerf-synthetic form)."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = demo_cameras(size)
    for split, cameras, prefix in (("train", train, "r"), ("test", test, "t")):
        views = render_object(cameras)
        frames = []
        for i in range(len(views)):
            name = f"{prefix}_{i:03d}"
            Image.fromarray(rgba8(views, i)).save(folder / f"{name}.png", optimize=True)
            pose = flip_camera_yz(cameras.camera_to_world[i].double())
            rows = [[round(value, 8) + 0.0 for value in row] for row in pose.tolist()]
            frames.append({"file_path": f"./{name}", "transform_matrix": rows})
        angle = 2 * math.atan(0.5 * cameras.width / float(cameras.K[0, 0, 0]))
        transforms = {"camera_angle_x": round(angle, 8), "frames": frames}
        path = folder / f"transforms_{split}.json"
        path.write_text(json.dumps(transforms, indent=1) + "\n", encoding="utf-8")


def rgba8(views: Views, index: int) -> np.ndarray:  # [H, W, 4] uint8
    """One view as straight RGBA bytes."""
    rgba = torch.cat([views.images[index], views.masks[index][..., None]], dim=-1)
    return (rgba.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _render_group(
    cameras: Cameras, shape: AnalyticObject, supersample: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # colours [V, H, W, 3], alphas [V, H, W], depths [V, H, W], normals [V, H, W, 3]
    poses, K = cameras.camera_to_world.double(), cameras.K.double()
    centres = poses[:, :3, 3]
    pixel_to_world = torch.stack(
        [pose[:3, :3] @ torch.linalg.inv(k) for pose, k in zip(poses, K, strict=True)]
    )
    start = _trace_cones(centres, pixel_to_world, K, cameras.width, cameras.height, shape)
    which = torch.isfinite(start).nonzero(as_tuple=True)  # view, row, column [P]
    step = (torch.arange(supersample, dtype=K.dtype, device=K.device) + 0.5) / supersample
    sub_y, sub_x = (s.reshape(-1) for s in torch.meshgrid(step, step, indexing="ij"))
    view, row, column = which
    pixels = torch.stack([column[:, None] + sub_x, row[:, None] + sub_y], dim=-1)  # [P, S, 2]
    per_view = pixels.split(view.bincount(minlength=len(K)).tolist())
    directions = torch.cat(
        [_directions(m, p.reshape(-1, 2)) for m, p in zip(pixel_to_world, per_view, strict=True)]
    )
    origins = centres[view].repeat_interleave(supersample**2, 0)
    depth = start[which].repeat_interleave(supersample**2)
    depth = _trace(origins, directions, depth, shape)
    hit = torch.isfinite(depth)
    points = origins[hit] + depth[hit, None] * directions[hit]
    normals = points.new_zeros(len(depth), 3)
    normals[hit] = _normals(shape, points)
    light = points.new_zeros(len(depth), 3)
    light[hit] = shade(shape.albedo(points), normals[hit])

    per_pixel = (len(pixels), supersample**2)
    hits = hit.reshape(per_pixel).sum(dim=1)
    mean = light.reshape(*per_pixel, 3).sum(dim=1) / hits.clamp_min(1)[:, None]
    middle = supersample**2 // 2
    maps = [pixels.new_zeros(*start.shape, channels) for channels in (3, 1, 1, 3)]
    values = (
        linear_to_srgb(mean),
        hits[:, None] / supersample**2,
        torch.where(hit, depth, 0.0).reshape(per_pixel)[:, middle, None],
        normals.reshape(*per_pixel, 3)[:, middle],
    )
    for image, value in zip(maps, values, strict=True):
        image[which] = value.to(image)
    colours, alphas, depths, normal_map = (image.float() for image in maps)
    return colours, alphas[..., 0], depths[..., 0], normal_map


def _directions(pixel_to_world: Tensor, pixels: Tensor) -> Tensor:  # [R, 3], unit camera z
    return torch.nn.functional.pad(pixels, (0, 1), value=1.0) @ pixel_to_world.T


def _trace_cones(
    centres: Tensor,  # [V, 3]
    pixel_to_world: Tensor,  # [V, 3, 3]
    K: Tensor,  # [V, 3, 3]
    width: int,
    height: int,
    shape: AnalyticObject,
) -> Tensor:  # [V, H, W]
    # depth up to which every ray of a pixel is free; infinite where the whole pixel misses
    nearest = (centres.norm(dim=-1) - shape.bound).clamp_min(1e-3) / 2  # never behind the ball
    start = nearest[:, None, None]
    for block in CONE_BLOCKS_PX:
        blocks_y, blocks_x = math.ceil(height / block), math.ceil(width / block)
        y = (torch.arange(blocks_y, device=K.device, dtype=K.dtype) + 0.5) * block
        x = (torch.arange(blocks_x, device=K.device, dtype=K.dtype) + 0.5) * block
        middles = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
        repeat_y = math.ceil(blocks_y / start.shape[1])
        repeat_x = math.ceil(blocks_x / start.shape[2])
        start = start.repeat_interleave(repeat_y, 1).repeat_interleave(repeat_x, 2)
        start = start[:, :blocks_y, :blocks_x].reshape(-1)
        # half diagonal of the block at depth 1
        spread = 0.5 * block * torch.hypot(1 / K[:, 0, 0], 1 / K[:, 1, 1])
        start = _trace(
            centres.repeat_interleave(len(middles), 0),
            torch.cat([_directions(matrix, middles) for matrix in pixel_to_world]),
            start,
            shape,
            spread.repeat_interleave(len(middles)),
        )
        start = start.reshape(-1, blocks_y, blocks_x)
    return start


def _trace(
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    depth: Tensor,  # [R]
    shape: AnalyticObject,
    spread: Tensor | None = None,  # [R]
) -> Tensor:  # [R]
    # depths where rays come within HIT_DISTANCE, or where cones of radius depth * spread first
    # may touch; infinite for a miss
    result = torch.full_like(depth, math.inf)
    spread = torch.zeros_like(depth) if spread is None else spread
    active = torch.isfinite(depth).nonzero()[:, 0]
    z, origin, direction, spread = (x[active] for x in (depth, origins, directions, spread))
    speed = direction.norm(dim=-1) + spread
    far = origin.norm(dim=-1) + shape.bound
    near_enough = (0.25 * spread).clamp_min(HIT_DISTANCE)
    for _ in range(MAX_STEPS):
        if not len(active):
            break
        free = shape.sdf(origin + z[:, None] * direction) - z * spread
        # a cone may stop a little early: its rays go on by themselves
        hit = free < near_enough
        result[active[hit]] = z[hit]
        z = z + free / speed
        left = (~hit & (z < far)).nonzero()[:, 0]
        if len(left) < len(active):
            active, z, origin, direction = active[left], z[left], origin[left], direction[left]
            spread, speed, far, near_enough = (x[left] for x in (spread, speed, far, near_enough))
    return result


def _normals(shape: AnalyticObject, points: Tensor) -> Tensor:  # [N, 3]
    # differences over the corners of a tetrahedron: four distances instead of six
    corners = points.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    gradient = sum(shape.sdf(points + NORMAL_STEP * corner)[:, None] * corner for corner in corners)
    return torch.nn.functional.normalize(torch.as_tensor(gradient), dim=-1)


def shade(
    albedo: Tensor,  # [N, 3]
    normals: Tensor,  # [N, 3]
) -> Tensor:  # [N, 3]
    """Light that a matt surface sends to every camera: sRGB base colours to linear light in [0, 1]."""
    light = AMBIENT + SKY * normals[:, 1]
    for strength, towards in LIGHTS:
        direction = torch.nn.functional.normalize(normals.new_tensor(towards), dim=0)
        light = light + strength * (normals @ direction).clamp_min(0)
    return (srgb_to_linear(albedo) * light[:, None]).clamp(0, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the demo orbit: pictures and cameras.")
    parser.add_argument("out", type=Path, help="folder to write to")
    write_demo_orbit(parser.parse_args().out)
