"""Fusion of depth and coverage maps into a signed distance volume that always closes.

After Curless and Levoy, "A volumetric method for building complex models from range images"
(SIGGRAPH 1996), with a weighted median over the views in place of the mean, coverage as evidence
of empty space, and everything that no view sees taken as solid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import grid_sample, pad, unfold

from ..cameras import camera_rays, project_points
from ..structures import Cameras
from .config import SplatMeshConfig

BLOCK = 8  # voxels along the side of the blocks that are fused or skipped as a whole
MAX_GROWTH_ROUNDS = 64  # each round adds the blocks that the surface leaves into
STRAY_PX = 2.0  # a surface point may lie so far outside an outline, as rendered edges are soft
STRAY_SHARE = 0.2  # a point outside the outline in more than this share of the views is no surface
CHUNK_VALUES = 1_500_000  # points times views worked on at once: about 150 MB of float32


@dataclass(frozen=True)
class Evidence:
    """Depth and coverage maps prepared for fusion.

    Attributes:
        cameras: Where the maps were seen from.
        inverse_depths: 1 / depth along the optical axis, 0 where the depth is not trusted.
            [V, H, W]
        weights: Trust in the depth, cosine to the ray times coverage, 0 to 1. [V, H, W]
        slants: Distance to the surface plane per unit of depth difference. [V, H, W]
        outline_px: Signed distance to the outline of the object, positive outside, pixels.
            [V, H, W]
    """

    cameras: Cameras
    inverse_depths: Tensor  # [V, H, W]
    weights: Tensor  # [V, H, W]
    slants: Tensor  # [V, H, W]
    outline_px: Tensor  # [V, H, W]


@dataclass(frozen=True)
class DistanceVolume:
    """Truncated signed distances on a regular grid, negative inside, positive on the border.

    Attributes:
        values: Distances in units of the truncation, -1 to 1, index order x, y, z. [X, Y, Z]
        origin: World position of sample (0, 0, 0). [3]
        voxel: Distance between samples, world units.
    """

    values: Tensor  # [X, Y, Z]
    origin: Tensor  # [3]
    voxel: float


def prepare_evidence(
    cameras: Cameras,
    alphas: Tensor,  # [V, H, W]
    depths: Tensor,  # [V, H, W]
    min_cosine: float,
) -> Evidence:
    """Judge every pixel: its trust, its slant, its distance to the outline.

    A pixel with no neighbour at nearly its own depth (rendered depth flies between surfaces at
    outlines) or seen at a grazing angle is no evidence of a surface.
    """
    valid = (depths > 0) & (alphas >= 0.5)
    footprint = depths / _focal(cameras)[:, None, None]  # world units per pixel at that depth
    jump = footprint * (1 - min_cosine**2) ** 0.5 / max(min_cosine, 1e-3)
    valid = valid & ((depths - _valid_median(depths, valid)).abs() <= jump)
    slope_x, found_x = _slope(depths, valid, jump, dim=2)
    slope_y, found_y = _slope(depths, valid, jump, dim=1)
    # n is parallel to (fx dz/dx, fy dz/dy, ...) for the plane z(x, y): with unit z rays r,
    # normal . r = 1 / |gradient of (z(r) - z)| and the plane is at (D - z) * that much
    _, directions = camera_rays(cameras)
    rotation = cameras.camera_to_world[:, :3, :3]
    rays = torch.einsum("vij,vhwi->vhwj", rotation, directions)  # camera axes, z = 1
    gradient_x = slope_x * cameras.K[:, 0, 0, None, None] / depths.clamp_min(1e-9)
    gradient_y = slope_y * cameras.K[:, 1, 1, None, None] / depths.clamp_min(1e-9)
    along = 1 + gradient_x * rays[..., 0] + gradient_y * rays[..., 1]
    slants = 1 / torch.sqrt(gradient_x**2 + gradient_y**2 + along**2)
    cosines = slants / rays.norm(dim=-1)
    valid = valid & found_x & found_y & (cosines >= min_cosine)
    return Evidence(
        cameras=cameras,
        inverse_depths=torch.where(valid, 1 / depths.clamp_min(1e-9), 0.0),
        weights=torch.where(valid, cosines * alphas, 0.0),
        slants=slants,
        outline_px=_outline_distance(alphas),
    )


def fuse(
    evidence: Evidence,
    config: SplatMeshConfig,
    offset: float = 0.0,
    tick: Callable[[], None] = lambda: None,
) -> DistanceVolume:
    """Signed distances of the solid the maps agree on; only blocks near its surface are worked.

    Args:
        evidence: The maps.
        config: Settings.
        offset: How far the depths lie behind the surface, along its normal, world units.
        tick: Called several times a second; raising in it cancels.

    Raises:
        ValueError: When no pixel of any view shows a surface.
    """
    points = _surface_points(evidence)
    low, high = points.amin(dim=0), points.amax(dim=0)
    voxel = float((high - low).max()) / config.resolution
    margin = (config.truncation_voxels + BLOCK) * voxel
    origin = low - margin
    blocks = torch.ceil((high - low + 2 * margin) / (BLOCK * voxel)).long()  # [3]
    shape = (blocks * BLOCK).tolist()
    volume = points.new_ones(shape)

    # one sample per block says where the rest is solid; the surface lies between and at depths
    middles = _grid(blocks.tolist(), points.device)
    coarse = _fuse_points(
        origin + (middles + 0.5) * BLOCK * voxel, evidence, voxel, config, offset, tick
    )
    coarse = coarse.sign().reshape(blocks.tolist())
    volume = _upsample(coarse)
    near = torch.zeros_like(coarse, dtype=torch.bool)
    near[((points - origin) / (BLOCK * voxel)).long().clamp_min(0).unbind(-1)] = True
    wanted = _dilate(near | _sign_changes(coarse))
    done = torch.zeros_like(wanted)
    inside_block = _grid([BLOCK] * 3, points.device)
    for _ in range(MAX_GROWTH_ROUNDS):
        todo = (wanted & ~done).nonzero()
        if not len(todo):
            break
        index = (todo[:, None] * BLOCK + inside_block).reshape(-1, 3)
        values = _fuse_points(origin + index * voxel, evidence, voxel, config, offset, tick)
        volume[index.unbind(-1)] = values
        done |= wanted
        wanted = done | _blocks_at_sign_changes(volume)
    for axis in range(3):  # the border is outside, so that the surface closes
        volume.select(axis, 0).fill_(1.0)
        volume.select(axis, -1).fill_(1.0)
    return DistanceVolume(volume, origin, voxel)


def _fuse_points(
    points: Tensor,  # [N, 3]
    evidence: Evidence,
    voxel: float,
    config: SplatMeshConfig,
    offset: float,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:  # [N]
    fused = []
    for part in points.split(max(1, CHUNK_VALUES // len(evidence.cameras))):
        fused.append(_fuse_chunk(part, evidence, voxel, config, offset))
        tick()
    return torch.cat(fused)


def _fuse_chunk(
    points: Tensor,  # [N, 3]
    evidence: Evidence,
    voxel: float,
    config: SplatMeshConfig,
    offset: float,
) -> Tensor:  # [N]
    # signed distance in units of the truncation, from what every view says about every point
    truncation = config.truncation_voxels * voxel
    cameras = evidence.cameras
    pixels, depth = project_points(points, cameras)  # [V, N, 2], [V, N]
    size = pixels.new_tensor([cameras.width, cameras.height])
    place = (2 * pixels / size - 1)[:, None]  # [V, 1, N, 2]
    inside_frame = (depth > 0) & ((pixels > 0) & (pixels < size)).all(dim=-1)
    nearest = _sample(
        [evidence.inverse_depths, evidence.weights, evidence.slants], place, "nearest"
    )
    inverse, weight, slant = nearest.unbind(1)
    smooth = _sample([evidence.inverse_depths, evidence.outline_px], place, "bilinear")
    smooth_inverse, outline = smooth.unbind(1)
    # interpolate depth only within one surface: 1/z is linear across a plane
    same = (smooth_inverse - inverse).abs() < 0.5 * truncation * inverse * inverse
    surface = 1 / torch.where(same, smooth_inverse, inverse).clamp_min(1e-9)
    plane = (surface - depth) * slant - offset  # positive in front of the surface

    behind = config.behind_voxels * voxel
    background = inside_frame & (outline > 0)
    outline_distance = outline * depth / _focal(cameras)[:, None]
    observed = inside_frame & ~background & (weight > 0)
    # trust fades behind the surface: there may be empty space again
    fade = (1 + plane / behind).clamp(0, 1)
    trust = torch.where(observed, weight * fade, torch.zeros_like(weight))
    trust = torch.where(background, torch.ones_like(trust), trust)
    says = torch.where(background, outline_distance, plane)
    unseen = inside_frame & ~background & (trust <= 0)
    says = torch.where(unseen, torch.full_like(says, -truncation), says)
    trust = torch.where(unseen, torch.full_like(trust, config.behind_vote), trust)
    fused = _robust_mean((says / truncation).clamp(-1, 1), trust, 1.5 / config.truncation_voxels)
    # outside every frame there is nothing
    return torch.where(inside_frame.any(dim=0), fused, torch.ones_like(fused))


def _robust_mean(values: Tensor, weights: Tensor, reach: float) -> Tensor:  # [V, N] twice -> [N]
    # mean of the values within `reach` of the weighted median
    ordered, order = values.sort(dim=0)
    passed = weights.gather(0, order).cumsum(dim=0)
    middle = (passed >= 0.5 * passed[-1:]).to(torch.uint8).argmax(dim=0)
    median = ordered.gather(0, middle[None])
    weights = weights * ((values - median).abs() <= reach)
    return (weights * values).sum(dim=0) / weights.sum(dim=0).clamp_min(1e-12)


def _sample(maps: list[Tensor], place: Tensor, mode: str) -> Tensor:  # [V, C, N]
    stacked = torch.stack(maps, dim=1)
    return grid_sample(stacked, place, mode=mode, padding_mode="border", align_corners=False)[
        :, :, 0
    ]


def _focal(cameras: Cameras) -> Tensor:  # [V]
    return (cameras.K[:, 0, 0] * cameras.K[:, 1, 1]).sqrt()


def _valid_median(depths: Tensor, valid: Tensor) -> Tensor:  # [V, H, W]
    # median of the valid depths in 3x3 pixels, the lower of two middle ones
    marked = torch.where(valid, depths, torch.full_like(depths, torch.inf))[:, None]
    around = unfold(pad(marked, (1, 1, 1, 1), value=torch.inf), 3)  # [V, 9, H * W]
    count = torch.isfinite(around).sum(dim=1, keepdim=True)
    middle = ((count - 1) // 2).clamp_min(0)
    return around.sort(dim=1).values.gather(1, middle).reshape(depths.shape)


def _slope(depths: Tensor, valid: Tensor, jump: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    # depth change per pixel along a dimension from the neighbours on the same surface
    total, count = torch.zeros_like(depths), torch.zeros_like(depths)
    for shift in (1, -1):
        neighbour, there = depths.roll(shift, dim), valid.roll(shift, dim).clone()
        there.select(dim, 0 if shift == 1 else -1).fill_(False)
        change = (depths - neighbour) * shift
        there &= valid & (change.abs() <= jump)
        total += torch.where(there, change, 0.0)
        count += there
    return total / count.clamp_min(1), count > 0


def _outline_distance(alphas: Tensor) -> Tensor:  # [V, H, W]
    # signed pixels to where coverage passes one half, finer than a pixel: the outermost pixels
    # inside know from the coverage of both sides how far it is from their centre
    distances = []
    for alpha in alphas.cpu().numpy():
        inside = alpha >= 0.5
        edge, beyond = edge_pixels(alpha, inside)
        if not edge.any():
            value = -max(alpha.shape) if inside.all() else max(alpha.shape)
            distances.append(np.full_like(alpha, value))
            continue
        to_outline = 0.5 - alpha - beyond
        distance, index = distance_transform_edt(~edge, return_indices=True)  # type: ignore[misc]
        signed = np.where(inside, -distance, distance) + to_outline[tuple(index)]
        distances.append(signed.astype(np.float32))
    return torch.from_numpy(np.stack(distances)).to(alphas)


def edge_pixels(alpha: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels inside with a neighbour outside [H, W], and the most coverage out there [H, W].

    The frame is not an outline: the object goes on beyond it.
    """
    padded = np.pad(np.where(inside, -1.0, alpha), 1, constant_values=-1.0)
    sides = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    beyond = np.maximum.reduce(sides)  # -1 where all four are inside
    return inside & (beyond >= 0), np.maximum(beyond, 0.0)


def _surface_points(evidence: Evidence) -> Tensor:  # [N, 3]
    origins, directions = camera_rays(evidence.cameras)
    seen = evidence.weights > 0
    if not bool(seen.any()):
        raise ValueError(
            "mesh_from_splats: no view shows a surface (coverage stays below one half everywhere); "
            "check that the cameras look at the splats and that the splats are opaque"
        )
    points = origins[seen] + directions[seen] / evidence.inverse_depths[seen][:, None]
    chunk = max(1, CHUNK_VALUES // len(evidence.cameras))
    outside = torch.cat([_share_outside(part, evidence) for part in points.split(chunk)])
    # stray depths leave the outline of the object in other views; keep everything if all do
    good = outside <= STRAY_SHARE
    return points[good] if bool(good.any()) else points


def _share_outside(points: Tensor, evidence: Evidence) -> Tensor:  # [N, 3] -> [N]
    # share of the views in whose picture a point lies clearly outside the outline
    size = points.new_tensor([evidence.cameras.width, evidence.cameras.height])
    pixels, depth = project_points(points, evidence.cameras)
    place = (2 * pixels / size - 1)[:, None]
    outline = _sample([evidence.outline_px], place, "nearest")[:, 0]
    in_frame = (depth > 0) & ((pixels > 0) & (pixels < size)).all(dim=-1)
    return ((outline > STRAY_PX) & in_frame).sum(dim=0) / in_frame.sum(dim=0).clamp_min(1)


def _grid(shape: list[int], device: torch.device) -> Tensor:  # [N, 3] int64
    axes = [torch.arange(count, device=device) for count in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def _upsample(blocks: Tensor) -> Tensor:
    for axis in range(3):
        blocks = blocks.repeat_interleave(BLOCK, dim=axis)
    return blocks


def _dilate(mask: Tensor) -> Tensor:
    return torch.nn.functional.max_pool3d(mask[None, None].float(), 3, 1, 1)[0, 0] > 0


def _sign_changes(values: Tensor) -> Tensor:
    # samples with a neighbour of the other sign along an axis
    positive = values > 0
    changed = torch.zeros_like(positive)
    for axis in range(3):
        count = values.shape[axis]
        differs = positive.narrow(axis, 0, count - 1) != positive.narrow(axis, 1, count - 1)
        changed.narrow(axis, 0, count - 1).logical_or_(differs)
        changed.narrow(axis, 1, count - 1).logical_or_(differs)
    return changed


def _blocks_at_sign_changes(volume: Tensor) -> Tensor:
    return (
        torch.nn.functional.max_pool3d(_sign_changes(volume)[None, None].float(), BLOCK)[0, 0] > 0
    )
