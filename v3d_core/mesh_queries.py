"""Where rays meet a mesh and which of its points is nearest: built once, asked many times.

Warp's tree of boxes answers on CPU (all cores) and CUDA. Without Warp plain torch tries every face
for every ray: the oracle of the tests, and slow, seconds for 10^8 pairs.
"""

from __future__ import annotations

import dataclasses
import logging
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from . import backends
from .cameras import camera_rays
from .structures import Cameras

if TYPE_CHECKING:
    from .kernels.warp_engine import WarpEngine

logger = logging.getLogger(__name__)

NOTHING = -1  # face of a ray that misses
ENGINES = ("auto", "warp", "torch")
LEAST_HEIGHT = 1e-7  # of a face, relative to its longest side; float32 knows no plane below
FAR = 1e18  # longest distance that is looked at; its square fits float32
PAIRS_PER_BATCH = 500_000  # rays times faces that the torch engine holds at once


class Hits(NamedTuple):
    """Where rays meet a mesh first, from either side."""

    face: Tensor  # [...] int64, `NOTHING` where a ray misses
    barycentric: Tensor  # [..., 3] weights of the face's corners; 0 where a ray misses
    distance: Tensor  # [...] in lengths of the ray's direction; infinite where a ray misses


class Closest(NamedTuple):
    """The points of a mesh that are nearest to given points."""

    face: Tensor  # [P] int64, `NOTHING` where the mesh has no faces
    barycentric: Tensor  # [P, 3] weights of the face's corners
    distance: Tensor  # [P] world units; infinite where the mesh has no faces


class _Engine(Protocol):
    def cast(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def closest(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


class MeshQueries:
    """Ray casts and nearest points on one mesh.

    Faces without area (repeated or collinear corners) are never hit and never nearest.

    Args:
        vertices: Positions, world units. [N, 3]
        faces: Vertex indices; there may be none. [M, 3] int64
        engine: `warp`, `torch`, or `auto`: Warp where it runs, else torch with a log line.

    Raises:
        ValueError: A shape is another, a vertex is not finite, an index has no vertex, or the
            engine is not known.
        MissingPackageError: Warp was asked for by name and is not there.
    """

    def __init__(self, vertices: Tensor, faces: Tensor, engine: str = "auto") -> None:
        _check(vertices, faces)
        self.engine = _engine_name(engine, vertices.device)
        self.vertices = vertices.detach().float()
        self.faces = faces
        self._kept = _solid_faces(self.vertices, faces)  # numbers of the faces that have area
        made = _WarpTree if self.engine == "warp" else _TorchFaces
        self._engine: _Engine | None = (
            made(self.vertices, faces[self._kept]) if len(self._kept) else None
        )

    def cast(
        self,
        origins: Tensor,  # [R, 3]
        directions: Tensor,  # [R, 3]
    ) -> Hits:
        """First hits of rays, in front of their origins.

        Args:
            origins: World units. [R, 3]
            directions: Of any length but 0. [R, 3]
        """
        _require_rows("origins", origins, len(origins))
        _require_rows("directions", directions, len(origins))
        if self._engine is None or not len(origins):
            return Hits(*_nothing(len(origins), self.vertices.device))
        rays = (origins.to(self.vertices), directions.to(self.vertices))
        return Hits(*self._numbered(*self._engine.cast(*rays)))

    def closest(
        self,
        points: Tensor,  # [P, 3]
    ) -> Closest:
        """Nearest points of the mesh to points anywhere, world units. [P, 3]"""
        _require_rows("points", points, len(points))
        if self._engine is None or not len(points):
            return Closest(*_nothing(len(points), self.vertices.device))
        return Closest(*self._numbered(*self._engine.closest(points.to(self.vertices))))

    def _numbered(self, face: Tensor, weights: Tensor, distance: Tensor):
        face = torch.where(face >= 0, self._kept[face.clamp_min(0)], NOTHING)
        # on edges rounding leaves a weight a little outside
        weights = weights.clamp(0, 1)
        return face, weights / weights.sum(-1, keepdim=True).clamp_min(0.5), distance

    def points(self, face: Tensor, barycentric: Tensor) -> Tensor:  # [...], [..., 3] -> [..., 3]
        """World points of hits; of rays that miss, the origin."""
        corners = self.faces[face.clamp_min(0)]
        # corner by corner: a sum over three is slow in torch on a CPU
        parts = (barycentric[..., k, None] * self.vertices[corners[..., k]] for k in range(3))
        first, second, third = parts
        return first + second + third


def cast_pixels(
    queries: MeshQueries, cameras: Cameras, shift: tuple[float, float] = (0.0, 0.0)
) -> Hits:
    """One ray per pixel of cameras, through its centre or a place beside it.

    Args:
        queries: The mesh.
        cameras: Of V views of H x W pixels.
        shift: Added to the pixels' centres, right and down, pixels.

    Returns:
        Hits with `distance` as depth along the optical axis, world units. [V, H, W] each,
        `barycentric` [V, H, W, 3]
    """
    K = cameras.K.clone()
    K[:, 0, 2] -= shift[0]
    K[:, 1, 2] -= shift[1]
    cameras = dataclasses.replace(cameras, K=K).to(queries.vertices.device)
    views = []
    for v in range(len(cameras)):
        origins, directions = camera_rays(cameras[v])
        views.append(queries.cast(origins.reshape(-1, 3), directions.reshape(-1, 3)))
    size = (len(cameras), cameras.height, cameras.width)
    face, barycentric, distance = (torch.cat(parts) for parts in zip(*views, strict=True))
    return Hits(face.view(size), barycentric.view(*size, 3), distance.view(size))


class _WarpTree:
    """Warp's mesh; its kernels read the tensors that are kept here."""

    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        self._warp = _warp_engine(vertices.device)
        self._vertices = vertices.contiguous()
        self._indices = faces.to(torch.int32).contiguous().view(-1)
        warp = self._warp.warp
        points = warp.from_torch(self._vertices, dtype=warp.vec3)
        indices = warp.from_torch(self._indices, dtype=warp.int32)
        if vertices.is_cuda:  # built on torch's stream: what made the tensors comes first
            stream = warp.stream_from_torch(torch.cuda.current_stream(vertices.device))
            with warp.ScopedStream(stream):
                self._mesh = warp.Mesh(points, indices)
        else:
            self._mesh = warp.Mesh(points, indices)

    def cast(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from .kernels import mesh_rays

        face, weights, distance = _outputs(len(origins), origins.device)
        inputs = [self._mesh.id, FAR, origins.contiguous(), directions.contiguous()]
        inputs += [face, weights, distance]
        self._warp.share(mesh_rays.cast_rays, inputs, len(origins))
        return face.long(), weights, distance

    def closest(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from .kernels import mesh_rays

        face, weights, distance = _outputs(len(points), points.device)
        inputs = [self._mesh.id, FAR, points.contiguous(), face, weights, distance]
        self._warp.share(mesh_rays.nearest_points, inputs, len(points))
        return face.long(), weights, distance


class _TorchFaces:
    """Every face tried, in float64."""

    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        self._corners = vertices[faces].double()  # [M, 3, 3]

    def cast(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = max(1, PAIRS_PER_BATCH // len(self._corners))
        pairs = zip(origins.double().split(batch), directions.double().split(batch), strict=True)
        found = [self._cast(*some) for some in pairs]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]

    def _cast(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, ...]:
        # In a frame of the ray, the edge functions of two faces at one edge are exact opposites,
        # so that no ray slips through between them (the idea of Woop et al. 2013).
        length = directions.norm(dim=-1, keepdim=True)
        forward = directions / length
        least = torch.nn.functional.one_hot(forward.abs().argmin(-1), 3).to(forward)
        right = torch.nn.functional.normalize(torch.linalg.cross(forward, least), dim=-1)
        frame = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-1)
        local = (self._corners - origins[:, None, None]) @ frame[:, None]  # [R, M, 3, 3]
        a, b, c = local[..., :2].unbind(2)
        areas = torch.stack([_cross2(b, c), _cross2(c, a), _cross2(a, b)], dim=-1)
        total = areas.sum(dim=-1)
        inside = ((areas >= 0).all(-1) | (areas <= 0).all(-1)) & (total != 0)
        weights = areas / torch.where(total == 0, 1.0, total)[..., None]
        depth = (weights * local[..., 2]).sum(-1) / length
        depth = depth.where(inside & (depth >= 0) & (depth < FAR), torch.inf)
        distance, face = depth.min(dim=1)
        hit = torch.isfinite(distance)
        weights = weights[torch.arange(len(face)), face]
        weights = torch.where(hit[:, None], weights, 0.0)
        return torch.where(hit, face, NOTHING), weights.float(), distance.float()

    def closest(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = max(1, PAIRS_PER_BATCH // len(self._corners))
        found = [self._closest(some) for some in points.double().split(batch)]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]

    def _closest(self, points: Tensor) -> tuple[Tensor, ...]:
        # the nearest point is the foot on the plane if that is inside, else on one of the sides
        corners = self._corners
        a, b, c = corners.unbind(1)
        normal = torch.linalg.cross(b - a, c - a)
        offset = points[:, None] - a  # [P, M, 3]
        square = normal.square().sum(-1)
        beta = (torch.linalg.cross(offset, (c - a).expand_as(offset)) * normal).sum(-1) / square
        gamma = (torch.linalg.cross((b - a).expand_as(offset), offset) * normal).sum(-1) / square
        foot = torch.stack([1 - beta - gamma, beta, gamma], dim=-1)
        outside = foot.amin(dim=-1) < 0
        candidates = [foot]
        for i, j in ((0, 1), (1, 2), (2, 0)):
            side = corners[:, j] - corners[:, i]
            along = ((points[:, None] - corners[:, i]) * side).sum(-1) / side.square().sum(-1)
            weights = torch.zeros_like(foot)
            weights[..., j] = along.clamp(0, 1)
            weights[..., i] = 1 - weights[..., j]
            candidates.append(weights)
        weights = torch.stack(candidates, dim=2)  # [P, M, 4, 3]
        away = torch.einsum("pmkc,mcx->pmkx", weights, corners) - points[:, None, None]
        distances = away.norm(dim=-1)
        distances[..., 0] = distances[..., 0].where(~outside, torch.inf)
        distance, index = distances.flatten(1).min(dim=1)
        weights = weights.flatten(1, 2)[torch.arange(len(points)), index]
        return index // 4, weights.float(), distance.float()


def _cross2(a: Tensor, b: Tensor) -> Tensor:  # [..., 2], [..., 2] -> [...]
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


@cache
def _warp_engine(device: torch.device) -> WarpEngine:
    from .kernels import mesh_rays
    from .kernels.warp_engine import WarpEngine

    return WarpEngine(device, (mesh_rays,))


def _engine_name(engine: str, device: torch.device) -> str:
    if engine not in ENGINES:
        raise ValueError(f"MeshQueries: engine {engine!r} is not known; use {', '.join(ENGINES)}")
    if engine == "warp":
        backends.load("warp")
    if engine != "auto":
        return engine
    name, reason = choose_engine(device)
    if reason:
        logger.warning(
            "mesh queries: torch tries every face for every ray, which is slow; %s", reason
        )
    return name


def choose_engine(device: torch.device) -> tuple[str, str]:
    """The engine of `auto` on a device, and why it is not Warp."""
    if device.type not in ("cpu", "cuda"):
        return "torch", f"warp does not run on {device.type}"
    if not backends.is_installed("warp"):
        return "torch", "warp is not installed; pip install warp-lang"
    reason = _warp_problem(device)
    return ("torch", reason) if reason else ("warp", "")


@cache
def _warp_problem(device: torch.device) -> str:
    try:
        _warp_engine(device)
    except torch.OutOfMemoryError:  # says nothing about the engine
        raise
    except Exception as error:  # a broken native package raises anything; torch still works
        return f"warp does not run: {error}"
    return ""


def _check(vertices: Tensor, faces: Tensor) -> None:
    for name, tensor in (("vertices", vertices), ("faces", faces)):
        _require_rows(name, tensor, len(tensor))
    if not bool(torch.isfinite(vertices).all()):
        bad = int((~torch.isfinite(vertices).all(dim=-1)).sum())
        raise ValueError(
            f"MeshQueries: {bad} of {len(vertices)} vertices are NaN or infinite; repair the mesh"
        )
    if len(faces) and (int(faces.min()) < 0 or int(faces.max()) >= len(vertices)):
        raise ValueError(
            f"MeshQueries: faces index vertices {int(faces.min())} to {int(faces.max())}, but "
            f"there are {len(vertices)} vertices"
        )


def _require_rows(name: str, tensor: Tensor, rows: int) -> None:
    if tensor.ndim != 2 or tuple(tensor.shape) != (rows, 3):
        raise ValueError(f"MeshQueries: {name} must be [{rows}, 3], got {list(tensor.shape)}")


def _solid_faces(vertices: Tensor, faces: Tensor) -> Tensor:  # -> [M'] int64
    a, b, c = vertices[faces].double().unbind(1)
    double_area = torch.linalg.cross(b - a, c - a).norm(dim=-1)
    sides = torch.stack([b - a, c - b, a - c]).square().sum(-1).amax(0)
    return (double_area > LEAST_HEIGHT * sides).nonzero()[:, 0]


def _outputs(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.full((count,), NOTHING, dtype=torch.int32, device=device),
        torch.zeros(count, 3, device=device),
        torch.full((count,), torch.inf, device=device),
    )


def _nothing(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    face, weights, distance = _outputs(count, device)
    return face.long(), weights, distance
