"""What a fitted splat can tell a NeuS fit: pictures from between the views, and normals.

Pictures rendered between the training views as additional supervision are the densification of
GaussianObject and others; normals of the splat's depth stand in for an estimator's.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import camera_rays
from ..images import unpremultiply
from ..rendering import RenderedMaps, RenderFn
from ..structures import Cameras, GaussianSplats, Views
from ..visual_hull import seen_volume

STEEPEST = (
    0.17  # cosine to the ray below which a normal of the depth map is not trusted: 80 degrees
)
SOLID = 0.9  # coverage of a pixel and its neighbours from which their depths make a normal


SPLAT_NORMALS_UNTIL = 1.0  # fraction of the run over which a splat's normals lose their weight
BLACK = (0.0, 0.0, 0.0)


@torch.no_grad()
def views_of_splats(splats: GaussianSplats, cameras: Cameras, render: RenderFn) -> Views:
    """Pictures, coverage and normals of a splat, as if they had been taken."""
    return _as_views(render(splats, cameras, BLACK), cameras)


def _as_views(seen: RenderedMaps, cameras: Cameras) -> Views:
    normals = normals_from_depth(seen.depths, seen.alphas, cameras)
    return Views(unpremultiply(seen.colours, seen.alphas), seen.alphas, cameras, normals=normals)


def guided(
    views: Views,
    splats: GaussianSplats,
    render: RenderFn,
    *,
    normals: bool = False,
    between: bool = False,
) -> tuple[Views, Tensor]:
    """What `fit_neus` takes where a splat of the views is known.

    Args:
        views: Posed pictures.
        splats: Fitted to them.
        render: Renders splats.
        normals: Follow the normals of the splat's depth, where the views have none of their own.
        between: Fit the splat's pictures from half-way between the views as well.

    Returns:
        The views to fit, and the splat's depth in each of them [V, H, W].
    """
    seen = render(splats, views.cameras, BLACK)  # once: on a CPU it takes seconds
    depths = seen.depths
    if normals:
        views = _with_normals(views, seen)
    if between:
        cameras = cameras_between(views.cameras)
        seen = render(splats, cameras, BLACK)
        views = _joined(views, _as_views(seen, cameras))
        depths = torch.cat([depths, seen.depths])
    return views, depths


def with_views_between(views: Views, splats: GaussianSplats, render: RenderFn) -> Views:
    """The views, and after them the splat's pictures from half-way between each and the next.

    Normals are kept where the views have some; the others then get those of the splat's depth.
    """
    return _joined(views, views_of_splats(splats, cameras_between(views.cameras), render))


def _joined(views: Views, between: Views) -> Views:
    joined = {
        "images": torch.cat([views.images, between.images]),
        "masks": torch.cat([views.masks, between.masks]),
        "names": (),
        "cameras": dataclasses.replace(
            views.cameras,
            camera_to_world=torch.cat(
                [views.cameras.camera_to_world, between.cameras.camera_to_world]
            ),
            K=torch.cat([views.cameras.K, between.cameras.K]),
        ),
        "normals": None,
    }
    if views.normals is not None and between.normals is not None:
        joined["normals"] = torch.cat([views.normals, between.normals])
    return dataclasses.replace(views, **joined)


def with_normals_of_splats(views: Views, splats: GaussianSplats, render: RenderFn) -> Views:
    """The views with the normals of the splat's depth, where they have none of their own."""
    if views.normals is not None:
        return views
    return _with_normals(views, render(splats, views.cameras, BLACK))


@torch.no_grad()
def _with_normals(views: Views, seen: RenderedMaps) -> Views:
    if views.normals is not None:
        return views
    normals = normals_from_depth(seen.depths, seen.alphas, views.cameras)
    return dataclasses.replace(views, normals=normals * (views.masks > SOLID)[..., None])


def cameras_between(cameras: Cameras) -> Cameras:
    """Cameras half-way between each and the next of an orbit, looking at the same point.

    The last one's next is the first. Distance and focal length are the means of the neighbours'.
    """
    centre, _ = seen_volume(cameras)
    poses, following = (
        cameras.camera_to_world,
        cameras.camera_to_world.roll(-1, 0),
    )
    offset, next_offset = poses[:, :3, 3] - centre, following[:, :3, 3] - centre
    distance = (offset.norm(dim=-1) + next_offset.norm(dim=-1)) / 2
    direction = F.normalize(F.normalize(offset, dim=-1) + F.normalize(next_offset, dim=-1), dim=-1)
    # mean of two rotations: the orthonormal matrix nearest to their sum (Moakher 2002)
    u, _, vt = torch.linalg.svd(poses[:, :3, :3] + following[:, :3, :3])
    middle = poses.clone()
    middle[:, :3, :3] = u @ vt
    middle[:, :3, 3] = centre + direction * distance[:, None]
    return dataclasses.replace(
        cameras, camera_to_world=middle, K=(cameras.K + cameras.K.roll(-1, 0)) / 2
    )


def normals_from_depth(
    depths: Tensor,  # [V, H, W]
    alphas: Tensor,  # [V, H, W]
    cameras: Cameras,
) -> Tensor:  # [V, H, W, 3]
    """Unit normals in OpenCV camera axes of depth maps; zero at rims and where nothing is.

    Args:
        depths: Along the optical axis, world units. [V, H, W]
        alphas: Coverage in [0, 1]. [V, H, W]
        cameras: Those that saw the depths.
    """
    _, directions = camera_rays(cameras)
    rotation = cameras.camera_to_world[:, None, None, :3, :3]
    in_camera = (rotation * directions[..., :, None]).sum(-2)  # world to camera: R^T d
    points = in_camera * depths[..., None]
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    normals = F.normalize(torch.linalg.cross(down, across), dim=-1)
    ray = F.normalize(in_camera[:, 1:-1, 1:-1], dim=-1)
    solid = -F.max_pool2d(-alphas[:, None], 3, stride=1)[:, 0] > SOLID
    trusted = solid & ((normals * ray).sum(-1) < -STEEPEST)
    return F.pad(normals * trusted[..., None], (0, 0, 1, 1, 1, 1))
