"""Pictures of a fitted field."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import camera_rays
from ..structures import Cameras
from .field import SDFField
from .sampling import Samples, place_samples
from .volume import composite

RAYS_AT_ONCE = 1 << 11  # as long as a step of a fit; Cancel is looked at between them
SAMPLES = 24  # along a ray; the surface is known by now
SURFACE_SHARE = 0.75  # of them; as in the fit


class FieldPicture(NamedTuple):
    """What one camera sees of a field.

    Attributes:
        colours: sRGB over white, in [0, 1]. [H, W, 3]
        normals: Unit, world frame, zero where there is nothing. [H, W, 3]
        opacities: In [0, 1]. [H, W]
    """

    colours: Tensor
    normals: Tensor
    opacities: Tensor


@torch.no_grad()
def render_field(
    field: SDFField,
    known: Tensor,  # [2, G, G, G]
    band: float,
    camera: Cameras,
    tick: Callable[[], None] = lambda: None,
) -> FieldPicture:
    """The field from the first of `camera`.

    Args:
        field: What is seen.
        known: As in `place_samples`: distance found last and that of the start shape.
        band: As in `place_samples`, world units.
        camera: Made for the picture's size.
        tick: Called several times a second on a CPU; raising in it cancels.
    """
    rays = camera_rays(camera[0])
    origins, directions = rays[0].reshape(-1, 3), F.normalize(rays[1].reshape(-1, 3), dim=-1)
    pictures, opacities = [], []
    for some, along in zip(
        origins.split(RAYS_AT_ONCE), directions.split(RAYS_AT_ONCE), strict=True
    ):
        tick()
        middle = torch.full_like(some[:, 0], 0.5)
        samples = place_samples(
            some, along, middle, known, field.centre, field.half_size, band, SAMPLES, SURFACE_SHARE
        )
        hits = samples.inside.any(-1)  # the other rays show nothing
        hits[0] |= ~hits.any()  # engines want a ray
        some, along = some[hits], along[hits]
        samples = Samples(*(part[hits] for part in samples))
        points = some[:, None] + along[:, None] * samples.distances[..., None]
        towards = along[:, None].expand_as(points).reshape(-1, 3)
        sampled = field.evaluate(points.reshape(-1, 3))
        normals = F.normalize(sampled.gradients, dim=-1)
        values = torch.cat([field.shade(sampled.codes, normals, towards), normals], dim=-1)
        shape = samples.deltas.shape
        seen = composite(
            sampled.sdf.view(shape),
            (towards * sampled.gradients).sum(-1).view(shape),
            samples.deltas,
            samples.inside,
            values.view(*shape, -1),
            field.inv_s,
            torch.ones((), device=some.device),
        )
        for parts, found in ((pictures, seen.values), (opacities, seen.opacities)):
            part = found.new_zeros(len(hits), *found.shape[1:])
            part[hits] = found
            parts.append(part)
    size = (camera.height, camera.width)
    values, opacity = torch.cat(pictures), torch.cat(opacities)
    colours = (values[:, :3] + 1 - opacity[:, None]).clamp(0, 1)
    normals = F.normalize(values[:, 3:], dim=-1) * (opacity[:, None] > 0.5)
    return FieldPicture(colours.view(*size, 3), normals.view(*size, 3), opacity.view(size))


def normal_picture(
    picture: FieldPicture,
    camera: Cameras,
) -> Tensor:  # [H, W, 3]
    """Normals as people know them: OpenGL camera axes, (n + 1) / 2, white where nothing is."""
    in_camera = picture.normals @ camera.camera_to_world[0, :3, :3]
    shown = (in_camera * in_camera.new_tensor([1.0, -1.0, -1.0]) + 1) / 2
    return torch.lerp(torch.ones_like(shown), shown, picture.opacities[..., None])
