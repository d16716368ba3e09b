"""Orbits of meshes, for training: ray cast with several rays per pixel, averaged in linear light."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import V3D_ORBIT, Orbit, orbit_cameras
from ..formats.mesh_materials import Material, MaterialPart
from ..formats.mesh_texture import leaves_the_texture
from ..images import linear_to_srgb, srgb_to_linear, to_uint8
from ..mesh_queries import MeshQueries
from ..procedural import shade
from ..progress import Progress, silent
from ..structures import Cameras
from .framing import box_centre, scale_to_fill, silhouette_boxes, turned
from .texture_pyramids import TexturePyramids

SHADINGS = ("flat", "lit")
MOST_LAYERS = 16  # of transparent surfaces that one ray goes through
OPAQUE = 0.998  # coverage at which a ray ends: half a step of 8 bits is left
STEP = 1e-4  # of the distance to the camera: where a ray goes on behind a transparent surface
RAYS_AT_ONCE = 2**16  # on a CPU; 0.06 s of one core, and more at once is no faster
RAYS_AT_ONCE_CUDA = 2**23
MOST_FACES = 20_000_000  # of an object: one file shall not take all memory from a long run


@dataclass(frozen=True)
class MeshOrbitConfig:
    """How a mesh is placed, lit and pictured."""

    size: int = 512  # px, both ways; V3D
    orbit: Orbit = field(default=V3D_ORBIT)
    supersample: int = 3  # rays per pixel side
    shading: str = "flat"  # flat: colours as they are; lit: under procedural's lights
    fill: float = 0.7  # of the frame: longest side of the longest silhouette; V3D border ratio 0.3

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ValueError(f"orbits have at least 8 x 8 px, got {self.size}")
        if self.supersample < 1:
            raise ValueError(f"supersample must be at least 1, got {self.supersample}")
        if self.shading not in SHADINGS:
            raise ValueError(f"shading {self.shading!r} is not known; use {', '.join(SHADINGS)}")
        if not 0 < self.fill < 1:
            raise ValueError(f"fill must lie between 0 and 1, got {self.fill}")


def random_azimuth(name: str, seed: int) -> float:
    """Degrees in [0, 360) that belong to a name and a seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") * 360 / 2**32


def render_mesh_orbit(
    parts: Sequence[MaterialPart],
    config: MeshOrbitConfig,
    azimuth_deg: float = 0.0,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Tensor:  # [V, S, S, 4] uint8
    """Frames of an object that is centred on the origin and scaled to fill them.

    Both sides of every face are seen. Surfaces that are partly transparent let through what is
    behind them. Textures are averaged over the distance between neighbouring rays.

    Args:
        parts: The object, in a frame with +Y up and its front on +Z.
        config: See `MeshOrbitConfig`.
        azimuth_deg: Turn of the object about +Y before anything else, +Z towards +X.
        device: Where to cast rays.
        progress: Called after every view and within it; raising inside it cancels.

    Returns:
        Straight sRGB and coverage; black where nothing is. [V, S, S, 4] uint8

    Raises:
        ValueError: The object is a single point, no view sees any of it, or it has more than
            `MOST_FACES` faces.
    """
    scene = _Scene(parts, config, azimuth_deg, torch.device(device))
    frames = []
    for view in range(config.orbit.num_views):
        frames.append(scene.picture(view, progress))
        progress(view + 1, config.orbit.num_views)
    orbit = torch.stack(frames).cpu()
    if not bool(orbit[..., 3].any()):
        raise ValueError(
            "no view sees any of the object: its faces have no area or are transparent"
        )
    return orbit


class _Scene:
    """One object's faces and colours, placed before an orbit's cameras."""

    def __init__(
        self,
        parts: Sequence[MaterialPart],
        config: MeshOrbitConfig,
        azimuth_deg: float,
        device: torch.device,
    ) -> None:
        count = sum(len(part.surface.faces) for part in parts)
        if not 0 < count <= MOST_FACES:
            raise ValueError(f"the object has {count:,} faces, 1 to {MOST_FACES:,} are rendered")
        self._config, self._device = config, device
        vertices = torch.cat([part.surface.vertices for part in parts])
        starts = torch.tensor([0] + [len(part.surface.vertices) for part in parts]).cumsum(0)
        faces = torch.cat([p.surface.faces + s for p, s in zip(parts, starts)])
        used = vertices[faces.unique()].double()
        centre = box_centre(used)
        used = turned(used - centre, azimuth_deg)
        scale = scale_to_fill(used, config.orbit, config.fill)
        placed = (turned(vertices.double() - centre, azimuth_deg) * scale).float().to(device)
        self._queries = MeshQueries(placed, faces.to(device))
        self._cameras = orbit_cameras(config.orbit, config.size, config.size).to(device)
        self._boxes = silhouette_boxes(
            used * scale,
            orbit_cameras(config.orbit, config.size, config.size).to(torch.float64),
        )
        normals = [p.surface.normals for p in parts if p.surface.normals is not None]
        self._normals = turned(torch.cat(normals), azimuth_deg).to(device)
        self._colours = torch.cat([_linear_colours(part) for part in parts]).to(device)
        self._of_part = _Materials(parts, device)
        self._part = torch.repeat_interleave(
            torch.arange(len(parts)), torch.tensor([len(p.surface.faces) for p in parts])
        ).to(device)
        self._uvs = torch.cat([_uvs(part) for part in parts]).to(device)
        self._texels_per_unit = self._texel_density()

    def picture(self, view: int, progress: Progress) -> Tensor:  # [S, S, 4] uint8
        """One frame, on the scene's device."""
        size, samples = self._config.size, self._config.supersample
        frame = torch.zeros(size, size, 4, dtype=torch.uint8, device=self._device)
        left, top, right, bottom = self._boxes[view].tolist()
        left, top = max(0, int(left) - 1), max(0, int(top) - 1)  # a pixel more for rounding
        right, bottom = min(size, int(right) + 2), min(size, int(bottom) + 2)
        rows = self._rows_at_once((right - left) * samples**2)
        for first in range(top, bottom, rows):
            last = min(first + rows, bottom)
            light, cover = self._trace(self._cameras[view], left, right, first, last)
            shape = (last - first, samples, right - left, samples)
            light = light.view(*shape, 3).sum(dim=(1, 3))
            cover = cover.view(shape).sum(dim=(1, 3))
            colour = linear_to_srgb(light / cover.clamp_min(1e-6)[..., None])
            alpha = to_uint8(cover / samples**2)[..., None]
            rgba = torch.cat([to_uint8(colour), alpha], dim=-1)
            frame[first:last, left:right] = torch.where(alpha > 0, rgba, 0)
            progress(view, self._config.orbit.num_views)
        return frame

    def _rows_at_once(self, rays_of_row: int) -> int:
        most = RAYS_AT_ONCE_CUDA if self._device.type == "cuda" else RAYS_AT_ONCE
        return max(1, most // max(1, rays_of_row))

    def _trace(
        self, camera: Cameras, left: int, right: int, top: int, bottom: int
    ) -> tuple[Tensor, Tensor]:
        """Linear light times coverage [R, 3], and coverage [R], of a box of pixels' samples."""
        samples, K, pose = self._config.supersample, camera.K[0], camera.camera_to_world[0]

        def places(low: int, high: int) -> Tensor:
            index = torch.arange(low * samples, high * samples, device=self._device)
            return (index + 0.5) / samples

        y, x = torch.meshgrid(places(top, bottom), places(left, right), indexing="ij")
        pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)
        directions = pixels @ torch.linalg.inv(K).T @ pose[:3, :3].T  # unit depth
        light, cover = torch.zeros_like(directions), torch.zeros_like(directions[:, 0])
        rays = torch.arange(len(directions), device=self._device)
        start = torch.zeros_like(cover)  # depth
        for _ in range(MOST_LAYERS):
            origins = pose[:3, 3] + start[:, None] * directions[rays]
            face, weights, distance = self._queries.cast(origins, directions[rays])
            hit = (face >= 0).nonzero()[:, 0]
            rays, face, weights = rays[hit], face[hit], weights[hit]
            depth = start[hit] + distance[hit]
            spacing = depth / (K[0, 0] * samples)
            colour, opacity = self._surface(face, weights, directions[rays], spacing)
            share = (1 - cover[rays]) * opacity
            light[rays] += share[:, None] * colour
            cover[rays] += share
            on = (cover[rays] < OPAQUE).nonzero()[:, 0]
            if not len(on):
                break
            rays, start = rays[on], depth[on] * (1 + STEP)
        return light, cover

    def _surface(
        self,
        face: Tensor,  # [R]
        weights: Tensor,  # [R, 3]
        directions: Tensor,  # [R, 3]
        spacing: Tensor,  # [R], world units
    ) -> tuple[Tensor, Tensor]:  # [R, 3], [R]
        """Linear light that hits send to the camera, and how much they hide."""
        corners, part = self._queries.faces[face], self._part[face]
        colour = (weights[..., None] * self._colours[corners]).sum(dim=1)
        uvs = (weights[..., None] * self._uvs[corners]).sum(dim=1)
        base, opacity = self._of_part.base(part, uvs, spacing * self._texels_per_unit[face])
        colour = colour * base
        if self._config.shading == "lit":
            normals = F.normalize((weights[..., None] * self._normals[corners]).sum(dim=1), dim=-1)
            a, b, c = self._queries.vertices[corners].unbind(1)
            outward = torch.linalg.cross(b - a, c - a)
            facing = -outward * _sign((outward * directions).sum(-1))
            normals = normals * _sign((normals * facing).sum(-1))
            colour = shade(linear_to_srgb(colour), normals)
        return colour, opacity

    def _texel_density(self) -> Tensor:  # [M]
        """Texels at full size along a world unit of each face; 0 where it has no texture."""
        faces = self._queries.faces
        a, b, c = self._queries.vertices[faces].unbind(1)
        area = torch.linalg.cross(b - a, c - a).norm(dim=-1)
        side, other = (self._uvs[faces[:, k]] - self._uvs[faces[:, 0]] for k in (1, 2))
        texels = (side[:, 0] * other[:, 1] - side[:, 1] * other[:, 0]).abs()
        texels = texels * self._of_part.texels[self._part]
        return (texels / area.clamp_min(1e-20)).sqrt()


class _Materials:
    """What multiplies the vertex colours of each part."""

    def __init__(self, parts: Sequence[MaterialPart], device: torch.device) -> None:
        pictures = []  # (picture, keeps its alpha, is repeated), each once
        keys: dict[tuple[int, bool, bool], int] = {}
        numbers = []
        for part in parts:
            picture = part.material.picture
            if picture is None:
                numbers.append(-1)
                continue
            entry = (picture, _see_through(part.material), leaves_the_texture(part.surface))
            key = (id(picture), *entry[1:])
            if key not in keys:
                keys[key] = len(pictures)
                pictures.append(entry)
            numbers.append(keys[key])
        self._pyramids = TexturePyramids(pictures, device)
        materials = [part.material for part in parts]
        self._picture = torch.tensor(numbers, device=device)
        self._colour = torch.tensor([m.colour for m in materials], device=device)
        self._opacity = torch.tensor(
            [m.opacity if _see_through(m) else 1.0 for m in materials], device=device
        )
        self._mask = torch.tensor([m.alpha == "mask" for m in materials], device=device)
        self._cutoff = torch.tensor([m.cutoff for m in materials], device=device)
        self._clear = bool(any(_see_through(m) for m in materials))
        self.texels = torch.zeros(len(parts), device=device)  # of each part's texture
        textured = self._picture >= 0
        if pictures:
            sizes = self._pyramids.sizes(self._picture[textured]).float()
            self.texels[textured] = sizes.prod(dim=-1)

    def base(
        self, part: Tensor, uvs: Tensor, spacing: Tensor
    ) -> tuple[Tensor, Tensor]:  # [R], [R, 2], [R] in texels -> [R, 3], [R]
        """Linear colour and opacity."""
        colour, opacity = self._colour[part], self._opacity[part]
        rows = (self._picture[part] >= 0).nonzero()[:, 0]
        if len(rows):
            of_rows = self._picture[part[rows]]
            texel = self._pyramids.sample(of_rows, uvs[rows], spacing[rows])
            alpha = texel[:, 3]
            colour[rows] = colour[rows] * texel[:, :3] / alpha.clamp_min(1e-4)[:, None]
            opacity[rows] = opacity[rows] * alpha
        if self._clear:
            there = (opacity >= self._cutoff[part]).to(opacity)
            opacity = torch.where(self._mask[part], there, opacity)
        return colour, opacity


def _see_through(material: Material) -> bool:
    return material.alpha in ("mask", "blend")


def _linear_colours(part: MaterialPart) -> Tensor:  # [N, 3]
    colours = part.surface.vertex_colours
    return torch.ones_like(part.surface.vertices) if colours is None else srgb_to_linear(colours)


def _uvs(part: MaterialPart) -> Tensor:  # [N, 2]
    uvs = part.surface.uvs
    return part.surface.vertices.new_zeros(len(part.surface.vertices), 2) if uvs is None else uvs


def _sign(values: Tensor) -> Tensor:  # [R] -> [R, 1], never 0
    return torch.where(values < 0, -1.0, 1.0)[:, None]
