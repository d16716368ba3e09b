"""One method on one object: its figures, its files, and whether a folder holds them already."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .evaluation_methods import Cost, Pipeline, consistency, measured, render_mesh
from .evaluation_surface import (
    TRUE_MESH,
    TRUE_POINTS,
    TrueSurface,
    load_true_surface,
    surface_scores,
    topology,
)
from .formats.mesh_files import read_mesh, write_mesh
from .formats.ply import write_splat_ply
from .formats.transforms import find_transforms, read_transforms
from .formats.views import has_split, load_views
from .images import compare_side_by_side, composite, contact_sheet, resize_views
from .progress import Progress
from .reconstruct import save_and_score, straight_renders, write_png
from .structures import Mesh, Views

RESULT_NAME = "result.json"
COMPARISON_NAME = "comparison.png"
COMPARED_VIEWS = 3  # on a comparison, spread evenly
COMPARED_SIZE = 192  # px, longer side of each of its pictures at most
PICTURE_SCORES = ("psnr", "psnr_object", "ssim", "alpha_iou", "lpips")


@dataclass(frozen=True)
class ObjectData:
    """One object's data: training views on the device, the rest on the CPU."""

    views: Views
    test_views: Views | None
    truth: TrueSurface | None


def input_hash(folder: Path) -> str:
    """SHA-256 over everything an evaluation reads of an object: cameras, pictures, true surface.

    Raises:
        ValueError: A transforms file is damaged or a picture is missing.
    """
    files: list[Path] = []
    for split in ("train", "test"):
        path = find_transforms(folder, split)
        if path is not None:
            transforms = read_transforms(path)
            files += [path, *transforms.pictures, *transforms.masks]
    files += [folder / name for name in (TRUE_MESH, TRUE_POINTS) if (folder / name).is_file()]
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def load_object(folder: Path, device: torch.device) -> ObjectData:
    """Everything that is read of an object.

    Raises:
        ValueError: A file is damaged.
    """
    test = load_views(folder, split="test").views if has_split(folder, "test") else None
    views = load_views(folder).views
    return ObjectData(views.to(device), test, load_true_surface(folder))


def measure_run(
    method: str, pipeline: Pipeline, data: ObjectData, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Figures of one run; its files go into `folder`."""
    if method == "consistency":
        recipe = pipeline.config.splat.with_changes(seed=pipeline.seed)
        found, cost = measured(data.views.device, lambda: consistency(data.views, recipe, progress))
        _write_comparison(folder, data.views, found.unseen, torch.ones(found.unseen.shape[:3]))
        return {**found.scores, **_cost(cost)}
    renders = None
    row: dict[str, Any] = {}
    test = data.test_views
    if method == "splat":
        fit, cost = pipeline.fit(progress)
        write_splat_ply(folder / "splat.ply", fit.splats)
        row |= {"splats": len(fit.splats), "steps": fit.report["steps"]}
        row["engine"] = fit.report["engine"]
        if test is not None:
            renders = straight_renders(fit.splats, test.cameras, progress)
    else:
        made, cost = pipeline.mesh(method, progress)
        path = folder / ("mesh.ply" if made.texture is None else "mesh.glb")
        write_mesh(path, made.to("cpu"))
        mesh = read_mesh(path)  # scored is what a file holds
        row |= _surface_row(mesh, data.truth, pipeline.config.samples, progress)
        if test is not None and (mesh.texture is not None or mesh.vertex_colours is not None):
            on_device = mesh.to(data.views.device)
            renders = render_mesh(on_device, test.cameras, pipeline.config.rays, progress)
    if renders is not None and test is not None:
        scores = save_and_score(folder / "test", *renders, test)
        row |= {key: scores[key] for key in PICTURE_SCORES if scores[key] is not None}
        row["lpips_backend"] = scores["lpips_backend"]
        _write_comparison(folder, test, *renders)
    return {**row, **_cost(cost)}


def _surface_row(
    mesh: Mesh, truth: TrueSurface | None, samples: int, progress: Progress
) -> dict[str, float]:
    # a mesh with uvs is cut along the seams of its atlas, which says nothing of the surface
    row = topology(mesh) if mesh.uvs is None else {"faces": float(len(mesh.faces))}
    if truth is not None:

        def tick() -> None:
            progress(0, 1, None, "Comparing the surfaces")

        row |= surface_scores(mesh, truth, samples=samples, tick=tick)
    return row


def _write_comparison(folder: Path, truth: Views, colours: Tensor, alphas: Tensor) -> None:
    """Some views in rows: truth, render and four times their difference, on white."""
    count = min(COMPARED_VIEWS, len(truth))
    chosen = [k * len(truth) // count for k in range(count)]
    truth = truth.to("cpu")[chosen]
    scale = min(1.0, COMPARED_SIZE / max(truth.cameras.width, truth.cameras.height))
    size = [max(1, round(scale * x)) for x in (truth.cameras.width, truth.cameras.height)]
    truth = dataclasses.replace(truth, normals=None)
    drawn = dataclasses.replace(truth, images=colours[chosen], masks=alphas[chosen])
    first, second = (resize_views(views, *size) for views in (truth, drawn))
    rows = compare_side_by_side(
        composite(first.images, first.masks), composite(second.images, second.masks)
    )
    write_png(folder / COMPARISON_NAME, contact_sheet(rows, columns=1))


@contextmanager
def folder_of_run(staging: Path, *, first: bool) -> Iterator[Path]:
    """Where a run writes: the files of the first one are kept."""
    if first:
        yield staging
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)


def nothing_to_score(method: str, data: ObjectData) -> str:
    """Why a method has no figures on an object, or ""."""
    if method == "consistency" or data.test_views is not None:
        return ""
    if data.truth is not None:
        return "no held-out views" if method == "splat" else ""
    return f"neither held-out views nor {TRUE_MESH}"


def _cost(cost: Cost) -> dict[str, float]:
    return {"seconds": round(cost.seconds, 4), "peak_mib": round(cost.peak_mib, 1)}


def mean_figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over runs of every figure that all of them have."""
    keys = [key for key, value in rows[0].items() if isinstance(value, (int, float))]
    return {
        key: sum(row[key] for row in rows) / len(rows)
        for key in keys
        if key != "seed" and all(key in row for row in rows)
    }


def plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))


def earlier_result(place: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The result in a folder if it is of this identity and whole, else nothing."""
    try:
        result = json.loads((place / RESULT_NAME).read_text(encoding="utf-8"))
        same = all(result[key] == value for key, value in identity.items())
        whole = all((place / name).is_file() for name in result["files"])
        numbers = all(isinstance(value, (int, float)) for value in result["means"].values())
        rows = all(isinstance(row["seconds"], float) for row in result["runs"])
        return result if same and whole and numbers and rows and "lpips" in result else {}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}
