"""Surfaces of the orbits of a data folder by several methods: exactness, seconds, memory.

    python benchmarks/surfaces.py DATA --methods hull splat neus --out surfaces.json

Every method starts from the same views in memory. `splat` and `core` mesh the splat that is fitted
first (its seconds count), `neus` starts from that splat's depth and normals, `neus-alone` from the masks.
`core` is ComfyUI's own node "Extract Mesh from Splat" with its defaults; it needs COMFYUI_PATH.
Objects are folders with transforms_train.json, gt_mesh.ply and gt_points.npz.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import trimesh
from scipy.spatial import cKDTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from v3d_core.formats.mesh_files import write_mesh  # noqa: E402
from v3d_core.formats.views import load_views  # noqa: E402
from v3d_core.mesh.config import SplatMeshConfig  # noqa: E402
from v3d_core.mesh.from_splats import extract_surface, mesh_from_splats  # noqa: E402
from v3d_core.mesh.fusion import DistanceVolume  # noqa: E402
from v3d_core.neus.config import NEUS_PRESETS, for_aligned_frames, neus_preset  # noqa: E402
from v3d_core.neus.extract import extract_mesh  # noqa: E402
from v3d_core.neus.fit import fit_neus  # noqa: E402
from v3d_core.neus.guides import SPLAT_NORMALS_UNTIL, guided  # noqa: E402
from v3d_core.neus.start import distance_to_occupied  # noqa: E402
from v3d_core.report import peak_memory_mib  # noqa: E402
from v3d_core.splats.config import splat_preset  # noqa: E402
from v3d_core.splats.consensus import align_frames  # noqa: E402
from v3d_core.splats.fit import SplatFit, fit_splats  # noqa: E402
from v3d_core.splats.raster import render_splats  # noqa: E402
from v3d_core.structures import Mesh, Views  # noqa: E402
from v3d_core.visual_hull import tight_visual_hull  # noqa: E402

SAMPLES = 100_000  # points on each surface
THRESHOLDS = (0.005, 0.01)  # of the true bounding box's diagonal
WARM_UP_STEPS = 30
HULL_RESOLUTION = 224  # voxels: what the data's own figures of the hull were made with
COLUMNS = {
    "fscore_0.5pct": ("F 0.5 % (seen)", "{:.3f}"),
    "fscore_1pct": ("F 1 % (seen)", "{:.3f}"),
    "chamfer_l1": ("Chamfer-L1", "{:.4f}"),
    "chamfer_l1_seen": ("(seen)", "{:.4f}"),
    "normal_consistency": ("normals", "{:.3f}"),
    "watertight": ("watertight", "{:.0%}"),
    "parts": ("parts", "{:.0f}"),
    "faces": ("faces", "{:,.0f}"),
    "seconds": ("seconds", "{:.2f}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
}


def hull_mesh(views: Views, options: argparse.Namespace) -> Mesh:
    """The visual hull of the masks."""
    hull = tight_visual_hull(views, HULL_RESOLUTION)
    distance = distance_to_occupied(torch.nn.functional.pad(hull.occupied, (2,) * 6))
    origin = hull.centre - hull.half_size - 1.5 * hull.voxel
    return extract_surface(DistanceVolume(distance, origin, hull.voxel))


def splat_of(views: Views, options: argparse.Namespace) -> SplatFit:
    """The splat that the methods share a recipe for."""
    config = splat_preset(options.splat_preset, views.device.type)
    return fit_splats(views, config.with_changes(seed=options.seed))


def splat_mesh(views: Views, options: argparse.Namespace) -> Mesh:
    """Our mesh of a fitted splat: fused depth."""
    fit = splat_of(views, options)
    return mesh_from_splats(
        fit.splats, fit.views.cameras, SplatMeshConfig(), render=render_splats, views=fit.views
    )


def core_mesh(views: Views, options: argparse.Namespace) -> Mesh:
    """ComfyUI's mesh of the same splat, by its node and with its defaults."""
    sys.path.insert(0, str(ROOT / "tests" / "nodes" / "host"))
    import bootstrap

    bootstrap.make_importable("--cpu")
    from comfy_api.latest import Types
    from comfy_extras.nodes_gaussian_splat import SplatToMesh

    from v3d_core.cameras import flip_splat_frame

    splats = flip_splat_frame(splat_of(views, options).splats.to("cpu"))
    host = Types.SPLAT(
        positions=splats.means[None],
        scales=splats.scales[None],
        rotations=splats.quats[None],
        opacities=splats.opacities[None, :, None],
        sh=splats.sh[None],
    )
    defaults = {item.id: item.default for item in SplatToMesh.define_schema().inputs[1:]}
    mesh = SplatToMesh.execute(splat=host, **defaults).args[0]
    count, faces = mesh.vertices[0], mesh.faces[0]
    if getattr(mesh, "vertex_counts", None) is not None:
        count, faces = count[: int(mesh.vertex_counts[0])], faces[: int(mesh.face_counts[0])]
    return Mesh(count.float(), faces.long())


def neus_mesh(views: Views, options: argparse.Namespace) -> Mesh:
    """The surface fit, from the depth of a fitted splat."""
    fit = splat_of(views, options)
    agree = fit.report["frames"] == "agree"
    views, depths = guided(fit.views, fit.splats, render_splats, normals=agree)
    return _fitted(views, options, agree, depths)


def neus_mesh_alone(views: Views, options: argparse.Namespace) -> Mesh:
    """The surface fit, from the masks."""
    consensus = align_frames(views, seed=options.seed)
    if consensus is None:
        return _fitted(views, options, True, None)
    return _fitted(consensus.views, options, False, None)


def _fitted(views: Views, options, agree: bool, depths: torch.Tensor | None) -> Mesh:
    config = neus_preset(options.preset, views.device.type)
    config = config.with_changes(seed=options.seed, steps=options.steps)
    if not agree:
        config = for_aligned_frames(config)
    elif depths is not None:
        config = config.with_changes(normal_until=SPLAT_NORMALS_UNTIL)
    field = fit_neus(views, config, depths=depths).field
    return extract_mesh(field, options.resolution)


METHODS: dict[str, Callable[[Views, argparse.Namespace], Mesh]] = {
    "hull": hull_mesh,
    "splat": splat_mesh,
    "core": core_mesh,
    "neus-alone": neus_mesh_alone,
    "neus": neus_mesh,
}


def mesh_scores(mesh: trimesh.Trimesh, folder: Path) -> dict[str, float]:
    """F-scores, Chamfer-L1 and normal consistency, without alignment.

    Precision counts against the whole truth, recall over the points that the training views see.
    Normal consistency is the mean |cosine| to the nearest sample, both ways, over the whole truth.
    """
    truth = trimesh.load(folder / "gt_mesh.ply", process=False, force="mesh")
    diagonal = float(np.linalg.norm(np.ptp(truth.vertices[np.unique(truth.faces)], axis=0)))
    ours, faces = trimesh.sample.sample_surface(mesh, SAMPLES, seed=1)
    theirs, true_faces = trimesh.sample.sample_surface(truth, SAMPLES, seed=2)
    known = np.load(folder / "gt_points.npz")
    seen = known["points"][known["visible_train"]].astype(float)
    our_tree, true_tree = cKDTree(ours), cKDTree(theirs)
    accuracy, nearest = true_tree.query(ours)
    complete, back = our_tree.query(theirs)
    complete_seen = our_tree.query(seen)[0]
    normals, true_normals = mesh.face_normals[faces], truth.face_normals[true_faces]
    there = np.abs((normals * true_normals[nearest]).sum(-1)).mean()
    again = np.abs((true_normals * normals[back]).sum(-1)).mean()
    scores = {
        "chamfer_l1": float((accuracy.mean() + complete.mean()) / 2),
        "chamfer_l1_seen": float((accuracy.mean() + complete_seen.mean()) / 2),
        "normal_consistency": float((there + again) / 2),
        "watertight": float(mesh.is_watertight and mesh.volume > 0),
        "parts": float(mesh.body_count),
        "faces": float(len(mesh.faces)),
    }
    for threshold in THRESHOLDS:
        precision = float((accuracy < threshold * diagonal).mean())
        recall = float((complete_seen < threshold * diagonal).mean())
        scores[f"fscore_{threshold * 100:g}pct"] = 2 * precision * recall / (precision + recall)
    return scores


def measure(folder: Path, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Means over the runs of one method on one object, and each run."""
    views = load_views(folder).views.to(options.device)
    on_cuda = views.device.type == "cuda"
    runs = []
    for seed in range(options.runs):
        options.seed = seed
        gc.collect()
        if on_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        mesh = METHODS[method](views, options)
        if on_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() / 2**20 if on_cuda else peak_memory_mib()
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(options.keep or scratch) / f"{folder.name}-{method}-{options.seed}.ply"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mesh(path, mesh.to("cpu"))  # scored is what a file holds
            scores = mesh_scores(trimesh.load(path, process=False, force="mesh"), folder)
        runs.append({"seed": options.seed, "seconds": seconds, "peak_mib": peak, **scores})
        print(f"{folder.name} {method}: {runs[-1]}", file=sys.stderr, flush=True)
    means = {key: statistics.fmean(run[key] for run in runs) for key in COLUMNS}
    return {"mean": means, "runs": runs}


def warm_up(folder: Path, options: argparse.Namespace) -> None:
    """A few steps of everything, so that kernels are compiled and caches warm."""
    views, steps = load_views(folder).views.to(options.device), options.steps
    options.seed, options.steps = 0, WARM_UP_STEPS
    for method in set(options.methods) - {"hull", "core"}:
        if options.device != "cpu":
            METHODS[method](views, options)
    options.steps = steps


def markdown(stored: dict[str, Any]) -> str:
    """One line per object and method."""
    lines = ["| object | method | " + " | ".join(name for name, _ in COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    results = stored["results"]
    for name, methods in results["objects"].items():
        for method, result in methods.items():
            cells = [form.format(result["mean"][key]) for key, (_, form) in COLUMNS.items()]
            lines.append(f"| {name} | {method} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Surface fit: `{results['preset']}` preset, meshes of {results['resolution']} voxels; splats: "
        f"`{results['splat_preset']}`; mean of {results['runs']} runs, fit and meshing together, "
        "views in memory.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the methods and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    record.add_arguments(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["hull", "splat", "neus"])
    parser.add_argument("--preset", choices=tuple(NEUS_PRESETS), default="normal")
    parser.add_argument("--splat-preset", choices=tuple(NEUS_PRESETS), default="normal")
    parser.add_argument("--steps", type=int, help="of the surface fit; default: the preset's")
    parser.add_argument("--resolution", type=int, default=384, help="of the meshes, voxels")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of objects; default: all")
    parser.add_argument("--keep", type=Path, help="folder for the meshes")
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.data.glob("*/gt_points.npz"))
    folders = [path for path in folders if not options.only or path.name in options.only]
    if not folders:
        raise SystemExit(f"{options.data}: no folder in it has a gt_points.npz")
    warm_up(folders[0], options)
    results = {
        "objects": {},
        "preset": options.preset,
        "splat_preset": options.splat_preset,
        "resolution": options.resolution,
        "runs": options.runs,
    }
    for folder in folders:
        measured = {method: measure(folder, method, options) for method in options.methods}
        results["objects"][folder.name] = measured
        stored = record.make_record(options, results)
        record.store(stored, options.out)  # what is done is kept if the rest takes too long
    print(markdown(stored))
    print(f"\n{stored['command']}\n{record.source_line(stored)}")


if __name__ == "__main__":
    main()
