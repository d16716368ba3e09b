"""From any mesh and posed views to a finished asset: clean, light, unwrapped, textured."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..progress import Preview, Progress, silent
from ..structures import Mesh, Views
from .align_views import AlignedViews, AlignViewsConfig, align_views
from .clean import Cleaned, clean
from .clean_config import CleanConfig
from .refine import chosen_views, refine_texture
from .refine_geometry import refine_geometry
from .shape import Distance
from .texture_checks import require_memory
from .texture_config import RefineConfig

ALIGN_CHOICES = ("auto", "on", "off")
CLEANING = 0.2  # share of the work that cleaning is, on the progress bar
ALIGNING = 0.1  # share of a refined shape's work that asking whether the views agree is
SHAPING = 0.4  # share of the rest that the shape is, where it is refined
STEPS = 1000  # of that bar

# corrects whatever it finds
ALWAYS = AlignViewsConfig(agreeing_warp=0.0, agreeing_shade=0.0, least_explained=-math.inf)


@dataclass(frozen=True)
class AssetConfig:
    """What a finished asset is like; the stages' own settings say the rest."""

    faces: int = 20_000  # budget; 0 keeps all faces, and with them uvs that the mesh has
    texture_size: int = 1024  # texels along a side
    align: str = "auto"  # pictures are laid on the surface before they are mixed: auto, on, off
    unwrap: bool = False  # make a new atlas even where the mesh has one
    num_views: int | None = None  # views used, evenly spaced; None: all
    lpips_weight: float = 0.0  # as in RefineConfig
    iterations: int = 0
    refine_geometry: bool = True  # move vertices to where the views agree, if they do

    def __post_init__(self) -> None:
        if self.align not in ALIGN_CHOICES:
            raise ValueError(f"align must be one of {ALIGN_CHOICES}, got {self.align!r}")
        self.cleaning()
        self.refining()  # their own checks

    def cleaning(self) -> CleanConfig:
        """Settings of the cleaning."""
        return CleanConfig(target_faces=self.faces)

    def refining(self) -> RefineConfig:
        """Settings of the texture."""
        return RefineConfig(
            resolution=self.texture_size,
            unwrap=self.unwrap,
            num_views=self.num_views,
            lpips_weight=self.lpips_weight,
            iterations=self.iterations,
        )


@dataclass(frozen=True)
class Asset:
    """A finished mesh.

    Attributes:
        mesh: With normals, uvs and texture.
        unseen: Texels that no view saw and that were filled. [H, W] bool
        report: `clean` and `texture`, the reports of the stages, `views` "agree" or "disagree" with
            the surface or "taken as they are", `per_view` where they were moved, `seconds`, and
            `geometry` where the shape was to be refined.
    """

    mesh: Mesh
    unseen: Tensor
    report: dict[str, Any]


def make_asset(
    mesh: Mesh,
    views: Views,
    config: AssetConfig | None = None,
    *,
    distance: Distance | None = None,
    progress: Progress = silent,
) -> Asset:
    """Clean a mesh, make it light, and give it a texture from views.

    Args:
        mesh: Any mesh, in the frame of the views' cameras, on the views' device.
        views: Pictures with masks and cameras.
        config: What the asset shall be like; None is the default.
        distance: Signed distance of the surface that the mesh approximates, see `mesh.clean.clean`.
        progress: Told several times a second; raising in it cancels.

    Raises:
        ValueError: See `mesh.clean.clean` and `mesh.refine.refine_texture`.
    """
    config = config or AssetConfig()
    started = time.perf_counter()
    cleaned = make_light(mesh, config, distance=distance, progress=part_of(progress, 0.0, CLEANING))
    textured = put_texture(
        cleaned.mesh.to(mesh.device), views, config, progress=part_of(progress, CLEANING, 1.0)
    )
    seconds = round(time.perf_counter() - started, 3)
    report = {"clean": cleaned.report, **textured.report, "seconds": seconds}
    return Asset(textured.mesh, textured.unseen, report)


def make_light(
    mesh: Mesh,
    config: AssetConfig | None = None,
    *,
    distance: Distance | None = None,
    progress: Progress = silent,
) -> Cleaned:
    """The mesh repaired and within the budget of faces."""
    return clean(mesh, (config or AssetConfig()).cleaning(), distance=distance, progress=progress)


def put_texture(
    mesh: Mesh, views: Views, config: AssetConfig | None = None, *, progress: Progress = silent
) -> Asset:
    """A texture for the mesh as it is, from views that are laid on it where they disagree."""
    config = config or AssetConfig()
    started = time.perf_counter()
    shaped: dict[str, Any] = {}
    found: list[AlignedViews] = []
    if config.refine_geometry:
        refining = config.refining()  # a refusal shall not wait for the shape
        require_memory(refining.resolution, chosen_views(views, refining), mesh.device)
        mesh, shaped, aligned = _shape_from_views(
            mesh, views, config, progress=part_of(progress, 0.0, SHAPING)
        )
        progress = part_of(progress, SHAPING, 1.0)
        # views that agree with the surface as it came agree with what they made of it
        if aligned is not None and not aligned.shaded:
            found.append(aligned)

    def align(surface: Mesh, pictures: Views, progress: Progress) -> Views:
        if not found:
            settings = ALWAYS if config.align == "on" else None
            found.append(align_views(surface, pictures, settings, progress=progress))
        return found[0].views

    result = refine_texture(
        mesh,
        views,
        config.refining(),
        align=None if config.align == "off" else align,
        progress=progress,
    )
    report: dict[str, Any] = {**shaped, "texture": result.report, "views": "taken as they are"}
    if found:
        aligned = found[0].moved or found[0].shaded
        report["views"] = "disagree" if aligned else "agree"
        if aligned:
            report["per_view"] = found[0].per_view
    report["seconds"] = round(time.perf_counter() - started, 3)
    return Asset(result.mesh, result.unseen, report)


def shape_from_views(
    mesh: Mesh, views: Views, config: AssetConfig | None = None, *, progress: Progress = silent
) -> tuple[Mesh, dict[str, Any]]:
    """The mesh with vertices moved to where the views agree, and `geometry` of the report.

    Where views have to be laid on the surface first, they say nothing about it, and it stays.
    """
    return _shape_from_views(mesh, views, config or AssetConfig(), progress=progress)[:2]


def _shape_from_views(
    mesh: Mesh, views: Views, config: AssetConfig, *, progress: Progress
) -> tuple[Mesh, dict[str, Any], AlignedViews | None]:
    # and how the views lie on the mesh as it came, where that was looked at
    views = chosen_views(views, config.refining())
    aligned = None
    if config.align == "auto":
        aligned = align_views(mesh, views, progress=part_of(progress, 0.0, ALIGNING))
    if config.align == "on" or (aligned is not None and aligned.moved):
        return mesh, {"geometry": {"kept": False, "views": "disagree"}}, aligned
    refined, report = refine_geometry(mesh, views, progress=part_of(progress, ALIGNING, 1.0))
    return refined, {"geometry": report}, aligned


def part_of(progress: Progress, start: float, end: float) -> Progress:
    """The progress of a part of the work, as that of the whole from `start` to `end`, shares."""

    def told(step: int, total: int, preview: Preview | None = None, text: str = "") -> None:
        share = start + (end - start) * min(1.0, step / max(1, total))
        progress(round(STEPS * share), STEPS, preview, text)

    return told
