"""A closed, coloured triangle mesh from Gaussian splats, by fusion of rendered depth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..cameras import intrinsics_from_fov, look_at
from ..mesh_manifold import split_shared_edges
from ..mesh_repair import (
    drop_inverted_components,
    fill_holes,
    largest_components,
    orient_outward,
    taubin_smooth,
    with_normals,
)
from ..progress import Progress, silent
from ..rendering import RenderFn
from ..structures import Cameras, GaussianSplats, Mesh, Views
from .calibrate import surface_offset
from .colours import colour_vertices
from .config import SplatMeshConfig
from .fusion import DistanceVolume, fuse, prepare_evidence

# Rings of cameras about a splat of unknown origin: elevation in degrees and number of views.
SPHERE_RINGS: tuple[tuple[float, int], ...] = (
    (-40.0, 8),
    (0.0, 12),
    (40.0, 8),
    (80.0, 3),
    (-80.0, 3),
)
SPHERE_FOV_DEG = 40.0
SPHERE_MARGIN = 1.1  # free room around the object in those pictures


def mesh_from_splats(
    splats: GaussianSplats,
    cameras: Cameras | None,
    config: SplatMeshConfig | None = None,
    *,
    render: RenderFn,
    views: Views | None = None,
    progress: Progress = silent,
) -> Mesh:
    """Render depth, fuse it into signed distances, extract, clean and colour the surface.

    Args:
        splats: The object, world frame.
        cameras: Where the splats are known to look right, normally the cameras they were fitted
            from; None uses a sphere of cameras around them.
        config: Settings; None is the default ones.
        render: Splat renderer, for example `splats.raster.render_splats`.
        views: Pictures taken by `cameras`, of any size; their colours are sharper than those of
            rendered splats. None colours from the renders.
        progress: Told after every rendered view and every later step.

    Returns:
        A closed mesh with outward faces, vertex normals and sRGB vertex colours.
    """
    config = SplatMeshConfig() if config is None else config
    if not len(splats):
        raise ValueError("mesh_from_splats: there are 0 splats; fit or load some first")
    if views is not None:
        _require_same_poses(cameras, views)
    given = None if cameras is None else len(cameras)
    cameras = _all_cameras(splats, cameras, config).to(splats.device, splats.means.dtype)
    total = len(cameras) + 3
    maps = []
    for v in range(len(cameras)):  # one by one, so that progress is told and cancel is quick
        maps.append(render(splats, cameras[v], (0.0, 0.0, 0.0)))
        progress(v + 1, total, None, f"Rendered depth of view {v + 1} of {len(cameras)}")
    alphas = torch.cat([m.alphas for m in maps])
    depths = torch.cat([m.depths for m in maps])
    volume = fuse_maps(
        cameras,
        alphas,
        depths,
        config,
        trusted=given,
        tick=lambda: progress(total - 3, total, None, "Fusing the depth maps"),
    )
    progress(total - 2, total, None, "Fused the depth maps")
    mesh = clean_mesh(
        extract_surface(volume),
        config,
        tick=lambda: progress(total - 2, total, None, "Cleaning the surface"),
    )
    progress(total - 1, total, None, "Cleaned the surface")
    if config.vertex_colours:
        tolerance = config.truncation_voxels * volume.voxel
        if views is None:
            colours = torch.cat([m.colours for m in maps])
            colours = (colours / alphas.clamp_min(1e-3)[..., None]).clamp(0, 1)
        else:
            colours, alphas = views.images.to(depths), views.masks.to(depths)
        mesh = colour_vertices(mesh, cameras[: len(colours)], colours, alphas, depths, tolerance)
    progress(total, total, None, f"Mesh of {len(mesh.faces)} faces")
    return mesh


def fuse_maps(
    cameras: Cameras,
    alphas: Tensor,  # [V, H, W]
    depths: Tensor,  # [V, H, W]
    config: SplatMeshConfig,
    trusted: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> DistanceVolume:
    """Fuse maps once, or twice when the first, coarser surface tells how far depth is off.

    Args:
        cameras: Where the maps were seen from.
        alphas: Coverage. [V, H, W]
        depths: Depth along the optical axis, 0 where there is none, world units. [V, H, W]
        config: Settings.
        trusted: Only the outlines of the first so many views are held to; None: of all.
        tick: Called several times a second; raising in it cancels.
    """
    offset = 0.0
    if config.match_outlines:
        near = slice(0, trusted)
        evidence = prepare_evidence(cameras[near], alphas[near], depths[near], config.min_cosine)
        coarse = dataclasses.replace(config, resolution=max(16, config.resolution * 2 // 3))
        first = fuse(evidence, coarse, tick=tick)
        offset = surface_offset(extract_surface(first).vertices, evidence)
        limit = config.truncation_voxels * first.voxel / 2  # beyond this it is no offset of depth
        # splats sit inside, never outside; small negative values are noise on the outline
        offset = min(max(offset, 0.0), limit)
    return fuse(prepare_evidence(cameras, alphas, depths, config.min_cosine), config, offset, tick)


def extract_surface(volume: DistanceVolume) -> Mesh:
    """Marching cubes (Lewiner et al. 2003) at distance zero, faces outward."""
    from skimage.measure import marching_cubes

    values = volume.values
    if not bool((values < 0).any()):
        raise ValueError(
            "mesh_from_splats: the fused volume is empty; the views disagree about where the "
            "surface is, or the splats are too transparent"
        )
    # a sample at exactly zero would give triangles without area
    values = torch.where(values.abs() < 1e-4, torch.full_like(values, 1e-4), values)
    vertices, faces, _, _ = marching_cubes(values.cpu().numpy(), 0.0)
    positions = torch.from_numpy(vertices.astype(np.float32)).to(values.device)
    return Mesh(
        vertices=volume.origin + positions * volume.voxel,
        faces=torch.from_numpy(faces.astype(np.int64)).to(values.device),
    )


def clean_mesh(
    mesh: Mesh, config: SplatMeshConfig, tick: Callable[[], None] = lambda: None
) -> Mesh:
    """Drop bubbles and crumbs, close holes, smooth, and make normals; `tick` between the steps."""
    steps: tuple[Callable[[Mesh], Mesh], ...] = (
        drop_inverted_components,
        lambda m: largest_components(m, config.min_component_share, config.max_components),
        # before holes are looked for: an edge of four faces looks like a hole to a walk along edges
        split_shared_edges,
        lambda m: fill_holes(m, config.max_hole_edges),
        orient_outward,
        lambda m: taubin_smooth(m, config.smooth_iterations),
        with_normals,
    )
    for step in steps:
        mesh = step(mesh)
        tick()
    return mesh


def sphere_cameras(splats: GaussianSplats, size: int) -> Cameras:
    """Cameras all around the bulk of the splats, framing them with a little room."""
    weight = splats.opacities * splats.scales.sort(dim=-1).values[:, 1:].prod(dim=-1)
    centre = _weighted_median(splats.means, weight)
    distances = (splats.means - centre).norm(dim=-1)
    order = distances.argsort()
    passed = weight[order].cumsum(0)
    # far strays of little weight do not count
    radius = float(distances[order][passed >= 0.99 * passed[-1]][0]) * SPHERE_MARGIN
    distance = max(radius, 1e-6) / math.sin(math.radians(SPHERE_FOV_DEG / 2))
    rings = [_ring(count, elevation) for elevation, count in SPHERE_RINGS]
    directions = torch.cat(rings).to(splats.means)
    return _looking_at(centre, distance * directions, SPHERE_FOV_DEG, size)


def _require_same_poses(cameras: Cameras | None, views: Views) -> None:
    if cameras is None:
        raise ValueError("mesh_from_splats: views need their cameras; pass views.cameras too")
    if len(cameras) != len(views):
        raise ValueError(
            f"mesh_from_splats: {len(cameras)} cameras but {len(views)} views; "
            "pass the cameras of the views"
        )
    poses = views.cameras.camera_to_world.to(cameras.camera_to_world)
    if not torch.allclose(poses, cameras.camera_to_world, atol=1e-4):
        raise ValueError(
            "mesh_from_splats: the views were taken from other poses than `cameras`; "
            "pass the cameras of the views"
        )


def _all_cameras(
    splats: GaussianSplats, cameras: Cameras | None, config: SplatMeshConfig
) -> Cameras:
    if cameras is None:
        return sphere_cameras(splats, config.picture_size)
    if not config.extra_elevations_deg:
        return cameras
    centre = _weighted_median(splats.means, splats.opacities)
    distance = (cameras.centres.to(centre) - centre).norm(dim=-1).median()
    rings = [_ring(config.extra_views, elevation) for elevation in config.extra_elevations_deg]
    poses = look_at(centre + distance * torch.cat(rings).to(centre), centre)
    K = cameras.K[:1].expand(len(poses), 3, 3)
    return dataclasses.replace(
        cameras,
        camera_to_world=torch.cat([cameras.camera_to_world, poses.to(cameras.camera_to_world)]),
        K=torch.cat([cameras.K, K]),
    )


def _ring(count: int, elevation_deg: float) -> Tensor:  # [count, 3] unit directions
    azimuth = 2 * math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    elevation = torch.tensor(elevation_deg, dtype=torch.float64).deg2rad()
    flat = elevation.cos()
    height = elevation.sin().expand(count)
    return torch.stack([flat * azimuth.sin(), height, flat * azimuth.cos()], dim=-1)


def _looking_at(centre: Tensor, offsets: Tensor, fov_deg: float, size: int) -> Cameras:
    poses = look_at(centre + offsets, centre)
    K = intrinsics_from_fov(math.radians(fov_deg), size, size).to(centre)
    return Cameras(poses, K.expand(len(poses), 3, 3).contiguous(), size, size)


def _weighted_median(points: Tensor, weights: Tensor) -> Tensor:  # [N, 3], [N] -> [3]
    ordered, order = points.sort(dim=0)
    passed = weights[order].cumsum(dim=0)
    middle = (passed >= 0.5 * passed[-1:]).to(torch.uint8).argmax(dim=0)
    return ordered.gather(0, middle[None])[0]
