"""The whole way: posed views to a splat, a mesh, a turntable, held-out scores and a report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .backends import load_lpips
from .cameras import Orbit, orbit_cameras, resize_cameras
from .formats.atomic import OutputError, atomic_folder, atomic_path
from .formats.mesh_files import write_mesh
from .formats.ply import write_splat_ply
from .formats.video import write_video
from .formats.views import save_views
from .images import composite, contact_sheet, from_uint8, resize_views, to_uint8, unpremultiply
from .mesh.asset import AssetConfig, make_asset
from .mesh.config import SplatMeshConfig
from .mesh.from_splats import mesh_from_splats
from .metrics import score_views
from .neus.config import NeusFitConfig, for_aligned_frames
from .neus.distance import field_distance
from .neus.extract import extract_mesh
from .neus.fit import fit_neus
from .neus.guides import SPLAT_NORMALS_UNTIL, guided
from .neus.store import save_field
from .progress import Progress, silent
from .report import Stopwatch, environment, memory
from .splats.config import SplatFitConfig
from .splats.fit import SplatFit, fit_splats
from .splats.raster import render_splats
from .structures import Cameras, GaussianSplats, Views
from .visual_hull import seen_volume

StageProgress = Callable[[str], AbstractContextManager[Progress]]  # opens a bar for a named stage
Write = Callable[[Callable[[], None]], None]  # takes a job that only writes what is on the CPU

MESH_NAMES = ("mesh.glb", "mesh.ply")
FIELD_NAME = "field.safetensors"  # with a NeuS mesh
ASSET_NAME = "textured.glb"  # the same surface, light and with a texture
OUTPUT_NAMES = (
    "splat.ply",
    "mesh.glb",
    "mesh.ply",
    ASSET_NAME,
    "turntable.mp4",
    "contact_sheet.png",
)


@dataclass(frozen=True)
class PictureConfig:
    """Sizes of the pictures that show a result; they do not change it."""

    turntable_frames: int = 36  # one turn; a multiple of V3D's 18 so that its views are among them
    turntable_fps: int = 12  # pictures per second: one turn in 3 s
    turntable_size: int = 384  # px, longer side at most
    sheet_columns: int = 6  # views on the contact sheet, spread evenly over the orbit
    sheet_size: int = 256  # px, longer side of each picture at most


@contextmanager
def no_bar(stage: str) -> Iterator[Progress]:
    """A `StageProgress` nobody watches."""
    del stage
    yield silent


def at_once(job: Callable[[], None]) -> None:
    """A `Write` that does not wait."""
    job()


def prepare_output(folder: Path) -> None:
    """Make the output folder and find out whether it can be written, before any long work.

    Raises:
        ValueError: It cannot; the message says why.
    """
    try:
        with atomic_folder(folder):
            pass
    except OutputError as error:
        raise ValueError(str(error)) from error


def reconstruct(
    views: Views,
    out: Path,
    fit_config: SplatFitConfig,
    mesh_config: SplatMeshConfig | None,
    *,
    neus_config: NeusFitConfig | None = None,
    asset_config: AssetConfig | None = None,
    test_views: Views | None = None,
    pictures: PictureConfig = PictureConfig(),
    warnings: tuple[str, ...] = (),
    stage_progress: StageProgress = no_bar,
    stopwatch: Stopwatch | None = None,
    write: Write = at_once,
) -> dict[str, Any]:
    """Fit a splat to views and write everything that can be had from it.

    Args:
        views: Views to fit, on the device that shall do the work.
        out: Folder for the files of `OUTPUT_NAMES`, `FIELD_NAME` where a surface is fitted,
            report.json and test/; files of these names are replaced, others stay.
        fit_config: How to fit the splat.
        mesh_config: How to mesh it, or None for no mesh of the splat.
        neus_config: How to fit a surface for the mesh instead, starting from the splat, or None.
        asset_config: What the light, textured mesh shall be like, or None for none.
        test_views: Held-out views to render into `out/test` and to score, or None.
        pictures: Sizes of the turntable and the contact sheet.
        warnings: What the loader had to say; goes into the report.
        stage_progress: Opens a progress bar for each stage.
        stopwatch: Holds the seconds that loading took, or None.
        write: Given each job that only encodes, writes and scores on the CPU. They may be done
            later and in another thread, in their order; the report's `scores`, `files` and
            `warnings` are there after the last.

    Returns:
        The report, as it stands in report.json.
    """
    prepare_output(out)
    stopwatch = stopwatch or Stopwatch()
    device = views.device
    notes = list(warnings)

    with stopwatch.stage("fit"), stage_progress("fit splat") as progress:
        fit = fit_splats(views, fit_config, progress=progress)
    splats = fit.splats
    write(partial(write_splat_ply, out / "splat.ply", splats.to("cpu")))

    mesh = surface = None
    if neus_config is not None:
        with stopwatch.stage("neus"), stage_progress("fit NeuS") as progress:
            guide, depths, neus_config = guide_of_splat(fit, neus_config)
            surface = fit_neus(guide, neus_config, depths=depths, progress=progress)
        save_field(out / FIELD_NAME, surface.field)  # on its device: not left for later
        with stopwatch.stage("mesh"), stage_progress("mesh") as progress:
            mesh = extract_mesh(surface.field, progress=progress)
    elif mesh_config is not None:
        with stopwatch.stage("mesh"), stage_progress("mesh") as progress:
            mesh = mesh_from_splats(
                splats,
                fit.views.cameras,
                mesh_config,
                render=render_splats,
                views=fit.views,  # aligned where they disagreed
                progress=progress,
            )
    asset = None
    if mesh is not None:
        for name in MESH_NAMES:
            write(partial(write_mesh, out / name, mesh.to("cpu")))
    if mesh is not None and asset_config is not None:
        with stopwatch.stage("texture"), stage_progress("texture") as progress:
            # from the views as they came: what was aligned for the fit is aligned to the mesh, once
            asset = make_asset(
                mesh.to(device),
                views,
                asset_config,
                distance=None if surface is None else field_distance(surface.field),
                progress=progress,
            )
        write(partial(write_mesh, out / ASSET_NAME, asset.mesh.to("cpu")))

    with stopwatch.stage("turntable"), stage_progress("turntable") as progress:
        turn = render_turntable(splats, views.cameras, pictures, progress)
        write(partial(write_video, out / "turntable.mp4", turn, pictures.turntable_fps))

    scores: dict[str, Any] = {}
    if test_views is not None:
        with stopwatch.stage("test"), stage_progress("test views") as progress:
            renders = straight_renders(splats, test_views.cameras, progress)
            score = partial(save_and_score, out / "test", *renders, test_views.to("cpu"))
            write(lambda: scores.update(score()))

    with stopwatch.stage("contact sheet"):
        sheet = compare_on_sheet(splats, views, test_views, pictures)
        write(partial(write_png, out / "contact_sheet.png", sheet))

    kept = [] if mesh is not None else [*MESH_NAMES]
    kept += [] if asset is not None else [ASSET_NAME]
    kept += [] if surface is not None else [FIELD_NAME]
    notes += [f"{out / name} is of an earlier run" for name in kept if (out / name).exists()]
    report = {
        **environment(device),
        "fit_settings": dataclasses.asdict(fit_config),
        "mesh_settings": None if mesh_config is None else dataclasses.asdict(mesh_config),
        "neus_settings": None if neus_config is None else dataclasses.asdict(neus_config),
        "views": {
            "count": len(views),
            "width": views.cameras.width,
            "height": views.cameras.height,
        },
        "engine": fit.report["engine"],
        "splats": len(splats),
        "fit": fit.report,
        "neus": None if surface is None else surface.report,
        "mesh": None
        if mesh is None
        else {"vertices": len(mesh.vertices), "faces": len(mesh.faces)},
        "asset": None if asset is None else asset.report,
        "scores": None,
        "seconds": stopwatch.rounded(),
        "peak_memory": memory(device),
        "files": [],
        "warnings": notes,
    }

    def complete_report() -> None:
        report["scores"] = scores or None
        there = [name for name in (*OUTPUT_NAMES, FIELD_NAME) if (out / name).exists()]
        report["files"] = [name for name in there if name not in kept]

    write(complete_report)
    return report


def guide_of_splat(fit: SplatFit, config: NeusFitConfig) -> tuple[Views, Tensor, NeusFitConfig]:
    """What `fit_neus` takes where a splat of the views was fitted.

    Returns:
        The views, with normals of the splat's depth where the frames agree and have none of their
        own; the splat's depth in each [V, H, W]; and the settings that suit them.
    """
    agree = fit.report["frames"] == "agree"
    if not agree:
        config = for_aligned_frames(config)
    elif fit.views.normals is None:
        config = config.with_changes(normal_until=SPLAT_NORMALS_UNTIL)
    # aligned where they disagreed
    guide, depths = guided(fit.views, fit.splats, render_splats, normals=agree)
    return guide, depths, config


def turntable_cameras(cameras: Cameras, frames: int, size: int) -> Cameras:
    """One turn about the point the views look at, at their mean distance and elevation.

    It starts at the first view and turns about +Y.
    """
    scale = min(1.0, size / max(cameras.width, cameras.height))
    # video encoders want even sizes
    width, height = (max(2, 2 * round(scale * x / 2)) for x in (cameras.width, cameras.height))
    cameras = resize_cameras(cameras, width, height)
    centre, _ = seen_volume(cameras)
    arms = cameras.centres - centre
    radius = float(arms.norm(dim=-1).mean())
    sine = float((arms[:, 1] / arms.norm(dim=-1)).mean())
    orbit = Orbit(
        num_views=frames,
        radius=radius,
        elevation_deg=math.degrees(math.asin(sine)),
        azimuth_start_deg=math.degrees(math.atan2(float(arms[0, 0]), float(arms[0, 2]))),
        fov_y_deg=math.degrees(2 * math.atan(height / 2 / float(cameras.K[:, 1, 1].mean()))),
    )
    turn = orbit_cameras(orbit, width, height)
    poses = turn.camera_to_world.clone()
    poses[:, :3, 3] += centre.to(poses)
    return dataclasses.replace(turn, camera_to_world=poses)


def render_turntable(
    splats: GaussianSplats,
    cameras: Cameras,
    pictures: PictureConfig,
    progress: Progress = silent,
) -> Tensor:  # [V, H, W, 3]
    """One turn around a splat on white, on the CPU."""
    path_cameras = turntable_cameras(cameras, pictures.turntable_frames, pictures.turntable_size)
    frames = []
    for index in range(len(path_cameras)):
        frames.append(render_splats(splats, path_cameras[index], depths=False).colours[0].cpu())
        progress(index + 1, len(path_cameras))
    return torch.stack(frames)


def straight_renders(
    splats: GaussianSplats, cameras: Cameras, progress: Progress = silent
) -> tuple[Tensor, Tensor]:
    """Straight colours [V, H, W, 3] and coverage [V, H, W] of a splat, on the CPU."""
    colours, alphas = [], []
    for index in range(len(cameras)):
        black = render_splats(splats, cameras[index], (0.0, 0.0, 0.0), depths=False)
        colours.append(unpremultiply(black.colours, black.alphas).cpu())
        alphas.append(black.alphas.cpu())
        progress(index + 1, len(cameras))
    return torch.cat(colours), torch.cat(alphas)


def save_and_score(
    folder: Path,
    colours: Tensor,  # [V, H, W, 3]
    alphas: Tensor,  # [V, H, W]
    test_views: Views,
) -> dict[str, Any]:
    """Write straight renders of held-out views as RGBA PNGs and score those very files.

    Args:
        folder: For the pictures, under the views' own names, and their transforms.json.
        colours: Straight sRGB in [0, 1]. [V, H, W, 3]
        alphas: Coverage in [0, 1]. [V, H, W]
        test_views: The truth.

    Returns:
        Means over the views and the figures of each; `lpips` is None where it cannot be computed,
        and `lpips_backend` says why.
    """
    truth = test_views.to("cpu")
    names = truth.names or tuple(f"r_{index:03d}" for index in range(len(truth)))
    rendered = dataclasses.replace(truth, images=colours, masks=alphas, names=names, normals=None)
    save_views(folder, rendered)
    written = torch.stack([read_rgba(folder / f"{name}.png") for name in names])
    lpips, reason = load_lpips()
    scores = score_views(written[..., :3], written[..., 3], truth.images, truth.masks, lpips=lpips)
    figures: Any = scores.pop("per_view")
    rows = [{"name": name, **row} for name, row in zip(names, figures, strict=True)]
    return {**scores, "lpips_backend": reason, "background": "white", "per_view": rows}


def compare_on_sheet(
    splats: GaussianSplats, views: Views, test_views: Views | None, pictures: PictureConfig
) -> Tensor:  # [H, W, 3]
    """Pairs of rows, given picture above render: fitted views, then held-out views if any."""
    rows = []
    for group in (views, test_views):
        if group is None:
            continue
        chosen = np.linspace(0, len(group), pictures.sheet_columns, endpoint=False).astype(int)
        shown = group[sorted(set(chosen.tolist()))]
        scale = min(1.0, pictures.sheet_size / max(shown.cameras.width, shown.cameras.height))
        width, height = (
            max(1, round(scale * x)) for x in (shown.cameras.width, shown.cameras.height)
        )
        shown = resize_views(shown, width, height)
        rows += [composite(shown.images, shown.masks).cpu()]
        rows += [render_splats(splats, shown.cameras, depths=False).colours.cpu()]
    return contact_sheet(torch.cat(rows), len(rows[0]))


def read_rgba(path: Path) -> Tensor:  # [H, W, 4]
    """An 8-bit RGBA picture as it lies on disk."""
    with Image.open(path) as image:
        return from_uint8(torch.from_numpy(np.array(image.convert("RGBA"))))


def write_png(path: Path, image: Tensor) -> None:  # [H, W, 3]
    """Write one picture, whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(to_uint8(image).cpu().numpy()).save(temporary, format="PNG")
