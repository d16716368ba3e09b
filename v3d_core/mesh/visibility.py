"""What each view sees of a mesh, how far it can be trusted, and a textured mesh seen by cameras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..mesh_queries import Hits, MeshQueries, cast_pixels
from ..progress import Progress, silent
from ..structures import Cameras, Mesh
from .texels import bilinear_taps, require_atlas
from .texture_config import RefineConfig

DEPTH_JUMP = 8.0  # between neighbouring pixels, in pixel sizes at that depth; steeper is an edge
LEAST_COSINE = 0.1  # of a surface that a view can say something about (84 degrees)


@dataclass(frozen=True)
class ViewMaps:
    """What one view sees.

    Attributes:
        face: Through the pixels' centres, -1 where nothing is. [H, W] int64
        depth: Along the optical axis, infinite where nothing is, world units. [H, W]
        cosine: Of the angle between the view and the face; negative from behind. [H, W]
        weight: How far the pixel can be trusted, 0 to 1. [H, W]
    """

    face: Tensor
    depth: Tensor
    cosine: Tensor
    weight: Tensor


def pixel_shifts(samples: int) -> list[tuple[float, float]]:
    """Centres of `samples` x `samples` equal parts of a pixel, from its own centre, pixels."""
    places = [(k + 0.5) / samples - 0.5 for k in range(samples)]
    return [(x, y) for y in places for x in places]


def face_normals(queries: MeshQueries) -> Tensor:  # [M, 3]
    """Unit normals, zero for faces without area."""
    a, b, c = queries.vertices[queries.faces].unbind(1)
    return F.normalize(torch.linalg.cross(b - a, c - a), dim=-1, eps=1e-30)


def look(
    queries: MeshQueries,
    normals: Tensor,  # [M, 3]
    camera: Cameras,
    mask: Tensor,  # [H, W]
    config: RefineConfig,
) -> ViewMaps:
    """What one camera sees, and the confidence of its pixels.

    A pixel counts by the cosine of its viewing angle, by its distance from the outline of the mesh
    or of the mask and from jumps of depth, and by its coverage.

    Args:
        queries: The mesh.
        normals: Unit normals of its faces. [M, 3]
        camera: One view.
        mask: Coverage of the object in the picture. [H, W]
        config: See `RefineConfig`.
    """
    hits = cast_pixels(queries, camera)
    face, depth = hits.face[0], hits.distance[0]
    points = queries.points(face, hits.barycentric[0])
    towards = F.normalize(camera.centres.to(points) - points, dim=-1)
    hit = face >= 0
    cosine = torch.where(hit, (towards * normals[face.clamp_min(0)]).sum(-1), 0.0)
    good = hit & (cosine > LEAST_COSINE) & (mask >= config.min_mask)
    edge = _depth_jumps(depth, float(camera.K[0, 0, 0])) | ~hit | (mask < config.min_mask)
    inset = _distance_from(edge, config.edge_px) / config.edge_px
    weight = cosine.clamp_min(0) ** config.angle_power * inset.square() * mask
    return ViewMaps(face, depth, cosine, torch.where(good, weight, 0.0))


def _depth_jumps(depth: Tensor, focal: float) -> Tensor:  # [H, W] -> [H, W] bool
    """Pixels on either side of a jump."""
    jumps = torch.zeros_like(depth, dtype=torch.bool)
    known = depth.nan_to_num(posinf=0.0)
    limit = DEPTH_JUMP / focal * known
    across = (known[:, 1:] - known[:, :-1]).abs() > torch.minimum(limit[:, 1:], limit[:, :-1])
    down = (known[1:] - known[:-1]).abs() > torch.minimum(limit[1:], limit[:-1])
    jumps[:, 1:] |= across
    jumps[:, :-1] |= across
    jumps[1:] |= down
    jumps[:-1] |= down
    return jumps


def _distance_from(edge: Tensor, farthest: int) -> Tensor:  # [H, W] bool -> [H, W]
    """Pixels to the next marked one along rows, columns or diagonals, at most `farthest`."""
    grown = edge.float()[None, None]
    distance = torch.zeros_like(grown)
    for _ in range(farthest):
        distance += 1 - grown
        grown = F.max_pool2d(grown, 3, stride=1, padding=1)
    return distance[0, 0]


def uvs_of_hits(mesh: Mesh, face: Tensor, barycentric: Tensor) -> Tensor:  # [R], [R, 3] -> [R, 2]
    """Texture coordinates of places on the surface."""
    assert mesh.uvs is not None
    return (barycentric[..., None] * mesh.uvs[mesh.faces[face]]).sum(dim=-2)


def sample_texture(texture: Tensor, uvs: Tensor) -> Tensor:  # [H, W, C], [P, 2] -> [P, C]
    """Bilinear; beyond the border the border's texels."""
    height, width, channels = texture.shape
    index, weight = bilinear_taps(uvs, height, width)
    return (weight[..., None] * texture.reshape(-1, channels)[index]).sum(dim=1)


def render_texture(
    mesh: Mesh,
    cameras: Cameras,
    *,
    samples: int = 1,
    queries: MeshQueries | None = None,
    progress: Progress = silent,
) -> tuple[Tensor, Tensor]:
    """A textured mesh, unlit, from cameras: ray casts and bilinear sampling.

    Args:
        mesh: With uvs and a texture of any number of channels.
        cameras: V views of H x W pixels.
        samples: Rays along each side of a pixel.
        queries: Of this mesh, if they exist already.
        progress: Told once per view.

    Returns:
        Straight colours, 0 where nothing is seen [V, H, W, C], and coverage [V, H, W].

    Raises:
        ValueError: The mesh has no texture, or its uvs leave 0..1.
    """
    if mesh.texture is None:
        raise ValueError("the mesh has no texture to render")
    require_atlas(mesh)
    texture = mesh.texture

    def look_up(face: Tensor, barycentric: Tensor) -> Tensor:
        return sample_texture(texture, uvs_of_hits(mesh, face, barycentric))

    queries = MeshQueries(mesh.vertices, mesh.faces) if queries is None else queries
    return _mean_of_rays(queries, cameras, samples, look_up, progress, "Rendering the texture")


def render_vertex_colours(
    mesh: Mesh, cameras: Cameras, *, samples: int = 1, progress: Progress = silent
) -> tuple[Tensor, Tensor]:
    """A mesh with vertex colours, unlit, from cameras: ray casts and linear interpolation.

    Args:
        mesh: With vertex colours.
        cameras: V views of H x W pixels.
        samples: Rays along each side of a pixel.
        progress: Told once per view.

    Returns:
        Straight colours, 0 where nothing is seen [V, H, W, 3], and coverage [V, H, W].

    Raises:
        ValueError: The mesh has no vertex colours.
    """
    if mesh.vertex_colours is None:
        raise ValueError("the mesh has no vertex colours to render")
    colours = mesh.vertex_colours

    def look_up(face: Tensor, barycentric: Tensor) -> Tensor:
        return (barycentric[..., None] * colours[mesh.faces[face]]).sum(dim=-2)

    queries = MeshQueries(mesh.vertices, mesh.faces)
    return _mean_of_rays(queries, cameras, samples, look_up, progress, "Rendering the mesh")


def _mean_of_rays(
    queries: MeshQueries,
    cameras: Cameras,
    samples: int,
    look_up: Callable[[Tensor, Tensor], Tensor],  # [P], [P, 3] -> [P, C]
    progress: Progress,
    text: str,
) -> tuple[Tensor, Tensor]:  # [V, H, W, C], [V, H, W]
    shifts = pixel_shifts(samples)
    images, masks = [], []
    for v in range(len(cameras)):
        image, hits = None, None
        for shift in shifts:
            face, barycentric, _ = _flat(cast_pixels(queries, cameras[v], shift))
            seen = (face >= 0).nonzero()[:, 0]
            colours = look_up(face[seen], barycentric[seen])
            if image is None or hits is None:
                image, hits = (
                    colours.new_zeros(len(face), colours.shape[-1]),
                    colours.new_zeros(len(face)),
                )
            image[seen] += colours
            hits[seen] += 1
        assert image is not None and hits is not None
        images.append(image / hits.clamp_min(1)[:, None])
        masks.append(hits / len(shifts))
        progress(v + 1, len(cameras), None, text)
    shape = (len(cameras), cameras.height, cameras.width)
    return torch.stack(images).view(*shape, -1), torch.stack(masks).view(shape)


def _flat(hits: Hits) -> Hits:
    return Hits(hits.face.flatten(), hits.barycentric.reshape(-1, 3), hits.distance.flatten())
