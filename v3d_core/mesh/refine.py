"""A texture for a mesh from posed views, fitted so that the textured mesh looks like the views."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..fit_threads import cores_for_warp
from ..mesh_queries import MeshQueries
from ..progress import Preview, Progress, silent
from ..structures import Mesh, Views
from .atlas_links import AtlasLinks, link_texels
from .bake import LEAST_WEIGHT, SurfacePoints, blend_views
from .fill import fill_unseen
from .fill_kriging import kriged_colours
from .harmonise import view_gains
from .solver import conjugate_gradients
from .taps import ViewPixels, taps_of_view
from .texels import Texels, fill_gutter, find_texels
from .texture_checks import require_memory, require_seen, usable_mesh
from .texture_config import RefineConfig
from .texture_polish import polish
from .texture_preview import TexturePreview
from .visibility import ViewMaps, face_normals, look

logger = logging.getLogger(__name__)

NOTED_OVERLAP = 0.01  # share of texels with several faces; worth a line in the log
RIDGE = 1e-4  # pull of every texel to the start value, in units of a pixel's pull

_PARTS = {"unwrap": 20, "look": 10, "blend": 15, "align": 0, "rays": 20, "solve": 25, "polish": 10}
_TEXTS = {
    "unwrap": "Unwrapping", "look": "Looking from the views", "blend": "Blending the views",
    "align": "Aligning the views", "rays": "Reading the pixels", "solve": "Solving for texels",
    "polish": "Polishing the texture", "finish": "Textured",
}  # fmt: skip

Align = Callable[[Mesh, Views, Progress], Views]


@dataclass(frozen=True)
class RefinedTexture:
    """A textured mesh and how it came about.

    Attributes:
        mesh: With uvs and texture.
        unseen: Texels of the surface that no view saw and that were filled. [H, W] bool
        report: `resolution`, `seconds` in all and `stage_seconds`, `views` used, `seen_share` of the
            surface's texels, `overlap_share` of texels with several faces, `gains` per view and
            channel, `db_blend` and `db` (PSNR of the used pixels by their weights, before and after
            the solver).
    """

    mesh: Mesh
    unseen: Tensor
    report: dict[str, Any]


def refine_texture(
    mesh: Mesh,
    views: Views,
    config: RefineConfig | None = None,
    *,
    align: Align | None = None,
    progress: Progress = silent,
) -> RefinedTexture:
    """The texture with which the mesh looks most like the views.

    Every pixel that sees the surface well is the mean of the texels under it, which makes a sparse
    linear least-squares problem in the texels; a weighted blend of the views is its start, weak
    links between neighbouring texels, also across seams, settle what the views leave open. Texels
    that no view sees are filled from the surface around them first.

    Args:
        mesh: Faces outward. One without uvs is unwrapped; uvs must lie in 0 to 1.
        views: Pictures with masks and cameras in the mesh's frame; on the mesh's device.
        config: See `RefineConfig`; None takes the defaults.
        align: Moves the pictures onto the surface before they are mixed, with progress.
        progress: Told several times a second, from the blend on with a picture from the first view.

    Raises:
        ValueError: The mesh has no faces, its uvs leave 0..1, it is inside out, views see nothing of
            it (they are named), or the texture does not fit into memory.
        MissingPackageError: LPIPS is asked for and its network is not there.
    """
    config = config or RefineConfig()
    job = _Job(progress)
    with cores_for_warp(mesh.device):
        mesh, views = (
            usable_mesh(mesh, views, config, job.stage("unwrap")),
            chosen_views(views, config),
        )
        require_memory(config.resolution, views, mesh.device)
        if align is not None:
            views = align(mesh, views, job.inner("align"))
        queries = MeshQueries(mesh.vertices, mesh.faces)
        normals = face_normals(queries)
        maps = look_from_all(queries, normals, views, config, job.stage("look"))
        require_seen(maps, views, config)
        tick = job.stage("blend")
        texels = find_texels(mesh, config.resolution, config.resolution, lambda: tick(0.1))
        tick(0.2)
        points = SurfacePoints.of(mesh, texels, normals)
        links = link_texels(mesh, texels, config.smoothness, config.seam_weight)
        corners = queries.vertices[mesh.faces]
        start, seen, gains, views = _start(
            mesh, points, corners, views, maps, texels, links, config, tick
        )
        atlas = _dense(start, texels)
        shown = TexturePreview(mesh, queries, views.cameras[0], atlas)
        job.preview = shown.picture
        pixels = read_pixels(queries, mesh, views, maps, config, job.stage("rays"))
        before = weighted_db(atlas, pixels)
        atlas = solve(atlas, pixels, links, config, job.stage("solve"))
        shown.show(atlas)
        after = weighted_db(atlas, pixels)
        atlas = polish(atlas, pixels, views, config, job.stage("polish"), shown.show)
        tick = job.stage("finish")
        result = _textured(mesh, atlas[texels.index], texels)
    unseen = torch.zeros(config.resolution**2, dtype=torch.bool, device=mesh.device)
    unseen[texels.index] = ~seen
    report = {
        "resolution": config.resolution,
        "views": len(views),
        "seen_share": float(seen[texels.inside].float().mean()),
        "overlap_share": texels.overlap,
        "gains": [[round(g, 4) for g in row] for row in gains.tolist()],
        "db_blend": before,
        "db": after,
        **job.seconds(),
    }
    if texels.overlap > NOTED_OVERLAP:
        logger.warning(
            "texture: %.1f %% of the texels lie in several faces, which share their colours; "
            "unwrap the mesh again to give each its own",
            100 * texels.overlap,
        )
    tick(1.0)
    return RefinedTexture(result, unseen.view(config.resolution, -1), report)


def blend_texture(
    mesh: Mesh, views: Views, config: RefineConfig | None = None, *, progress: Progress = silent
) -> RefinedTexture:
    """The plain weighted blend of the views: `refine_texture` without harmonising and solving."""
    plain = dataclasses.replace(
        config or RefineConfig(), harmonise=False, solver_steps=0, lpips_weight=0.0, iterations=0
    )
    return refine_texture(mesh, views, plain, progress=progress)


def look_from_all(
    queries: MeshQueries,
    normals: Tensor,  # [M, 3]
    views: Views,
    config: RefineConfig,
    tick: Callable[[float], None],
) -> list[ViewMaps]:
    """`look` for every view."""
    maps = []
    for v in range(len(views)):
        maps.append(look(queries, normals, views.cameras[v], views.masks[v], config))
        tick((v + 1) / len(views))
    return maps


def read_pixels(
    queries: MeshQueries,
    mesh: Mesh,
    views: Views,
    maps: list[ViewMaps],
    config: RefineConfig,
    tick: Callable[[float], None],
) -> list[ViewPixels]:
    """Colours, weights and texels of all pixels that count."""
    found = []
    for v, seen in enumerate(maps):
        index = (seen.weight.flatten() > 0).nonzero()[:, 0]
        taps = taps_of_view(
            queries, mesh, views.cameras[v], index, config.resolution, config.samples
        )
        colours = views.images[v].reshape(-1, 3)[index].float()
        found.append(ViewPixels(index, colours, seen.weight.flatten()[index], taps))
        tick((v + 1) / len(maps))
    return found


def solve(
    start: Tensor,  # [H * W, 3]
    pixels: list[ViewPixels],
    links: AtlasLinks,
    config: RefineConfig,
    tick: Callable[[float], None],
) -> Tensor:  # [H * W, 3]
    """Weighted least squares by conjugate gradients, repeated with outliers taken back."""
    atlas = start
    rounds = 1 + config.robust_rounds
    total = rounds * max(1, config.solver_steps)
    done = 0
    weights = [p.weights for p in pixels]
    for number in range(rounds if config.solver_steps else 0):
        if number:
            weights = [_taken_back(atlas, p, config.robust_error) for p in pixels]
        diagonal = links.diagonal() + RIDGE
        right = RIDGE * start
        room = torch.empty_like(start)
        for p, w in zip(pixels, weights, strict=True):
            p.taps.adjoint(w[:, None] * p.colours, right)
            p.taps.squares(w, diagonal)

        def product(values: Tensor, weights: list[Tensor] = weights, room: Tensor = room) -> Tensor:
            nonlocal done
            torch.mul(values, RIDGE, out=room)
            links.add(values, room)
            for p, w in zip(pixels, weights, strict=True):
                p.taps.adjoint(w[:, None] * p.taps.apply(values), room)
            done += 1
            tick(min(1.0, done / total))
            return room

        inverse = 1 / diagonal[:, None]
        atlas = conjugate_gradients(product, right, inverse, atlas, config.solver_steps)
    return atlas.clamp(0, 1)


def _taken_back(atlas: Tensor, pixels: ViewPixels, limit: float) -> Tensor:  # [R]
    """Cauchy's weights: pixels that are off by far more than the limit hardly count."""
    error = (pixels.taps.apply(atlas) - pixels.colours).square().amax(dim=-1)
    return pixels.weights / (1 + error / limit**2)


def weighted_db(atlas: Tensor, pixels: list[ViewPixels]) -> float:
    """PSNR of the pixels that count, by their weights, dB."""
    square, weight = 0.0, 0.0
    for p in pixels:
        error = (p.taps.apply(atlas) - p.colours).square().mean(dim=-1)
        square += float((p.weights * error).sum())
        weight += float(p.weights.sum())
    return -10 * math.log10(max(square / max(weight, 1e-12), 1e-10))


def _start(
    mesh: Mesh,
    points: SurfacePoints,
    corners: Tensor,  # [M, 3, 3]
    views: Views,
    maps: list[ViewMaps],
    texels: Texels,
    links: AtlasLinks,
    config: RefineConfig,
    tick: Callable[[float], None],
) -> tuple[Tensor, Tensor, Tensor, Views]:
    """The filled blend [T, 3], what was seen [T], the gains [V, 3] and the harmonised views."""
    gains = torch.ones(len(views), 3, device=views.device)
    if config.harmonise and len(views) > 1:
        gains = view_gains(points, views, maps, torch.Generator().manual_seed(0))
        views = dataclasses.replace(views, images=views.images * gains[:, None, None])
    tick(0.4)
    colours, weights = blend_views(
        points, texels.face, corners, views, maps, lambda share: tick(0.4 + 0.3 * share)
    )
    seen = weights > LEAST_WEIGHT
    tick(0.7)
    guessed = kriged_colours(colours, weights * seen, points, lambda: tick(0.75))
    filled = fill_unseen(colours, seen, guessed, texels, links, lambda: tick(0.8))
    return filled, seen, gains, views


def chosen_views(views: Views, config: RefineConfig) -> Views:
    """V3D's choice: floor(linspace(0, V, n + 1)[:n])."""
    if config.num_views is None or config.num_views >= len(views):
        return views
    return views[[k * len(views) // config.num_views for k in range(config.num_views)]]


def _dense(values: Tensor, texels: Texels) -> Tensor:  # [T, C] -> [H * W, C]
    atlas = values.new_zeros(texels.height * texels.width, values.shape[1])
    atlas[texels.index] = values
    return atlas


def _textured(mesh: Mesh, values: Tensor, texels: Texels) -> Mesh:
    texture = _dense(values, texels).view(texels.height, texels.width, -1)
    return dataclasses.replace(mesh, texture=fill_gutter(texture.clamp(0, 1), texels))


class _Job:
    """Shares of the stages as one progress from 0 to 100, and their seconds."""

    def __init__(self, progress: Progress) -> None:
        self.preview: Preview | None = None
        self._progress = progress
        self._start = 0.0
        self._part = 0.0
        self._times: list[tuple[str, float]] = []

    def stage(self, name: str) -> Callable[[float], None]:
        self._times.append((name, time.monotonic()))
        start = self._start
        part = _PARTS.get(name, 0)
        self._start += part

        def tick(share: float) -> None:
            self._progress(round(start + part * share), 100, self.preview, _TEXTS[name])

        tick(0.0)
        return tick

    def inner(self, name: str) -> Progress:
        tick = self.stage(name)
        return lambda step, total, preview=None, text="": tick(step / max(1, total))

    def seconds(self) -> dict[str, Any]:
        now = time.monotonic()
        ends = [t for _, t in self._times[1:]] + [now]
        stages = {n: round(e - t, 2) for (n, t), e in zip(self._times, ends, strict=True)}
        return {"seconds": round(now - self._times[0][1], 2), "stage_seconds": stages}
