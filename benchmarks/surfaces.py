"""Surfaces of the orbits of a data folder by several methods: exactness, seconds, memory.

    python benchmarks/surfaces.py DATA --methods hull splat neus --out surfaces.json

Every method starts from the same views in memory. `splat` and `core` mesh the splat that is fitted
first (its seconds count), `neus` starts from that splat's depth and normals, `neus-alone` from the masks.
`core` is ComfyUI's own node "Extract Mesh from Splat" with its defaults; it needs COMFYUI_PATH.
Objects are folders with transforms_train.json, gt_mesh.ply and gt_points.npz.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from v3d_core.evaluation_methods import hull_mesh, measured  # noqa: E402
from v3d_core.evaluation_surface import (  # noqa: E402
    load_true_surface,
    surface_scores,
    topology,
)
from v3d_core.formats.mesh_files import read_mesh, write_mesh  # noqa: E402
from v3d_core.formats.views import load_views  # noqa: E402
from v3d_core.mesh.config import SplatMeshConfig  # noqa: E402
from v3d_core.mesh.from_splats import mesh_from_splats  # noqa: E402
from v3d_core.neus.config import (  # noqa: E402
    NEUS_PRESETS,
    NeusFitConfig,
    for_aligned_frames,
    neus_preset,
)
from v3d_core.neus.extract import extract_mesh  # noqa: E402
from v3d_core.neus.fit import fit_neus  # noqa: E402
from v3d_core.reconstruct import guide_of_splat  # noqa: E402
from v3d_core.splats.config import SplatFitConfig, guide_preset, splat_preset  # noqa: E402
from v3d_core.splats.consensus import align_frames  # noqa: E402
from v3d_core.splats.fit import SplatFit, fit_splats  # noqa: E402
from v3d_core.splats.raster import render_splats  # noqa: E402
from v3d_core.structures import Mesh, Views  # noqa: E402

WARM_UP_STEPS = 30
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


def splat_of(
    views: Views,
    options: argparse.Namespace,
    preset: Callable[[str, str], SplatFitConfig] = splat_preset,
) -> SplatFit:
    """The splat that `splat` and `core` make a mesh of; `neus` has one of `guide_preset`."""
    config = preset(options.splat_preset, views.device.type)
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
    fit = splat_of(views, options, guide_preset)
    views, depths, config = guide_of_splat(fit, neus_config(views, options))
    field = fit_neus(views, config, depths=depths).field
    return extract_mesh(field, options.resolution)


def neus_mesh_alone(views: Views, options: argparse.Namespace) -> Mesh:
    """The surface fit, from the masks."""
    config = neus_config(views, options)
    consensus = align_frames(views, seed=options.seed)
    if consensus is not None:
        views, config = consensus.views, for_aligned_frames(config)
    return extract_mesh(fit_neus(views, config).field, options.resolution)


def neus_config(views: Views, options: argparse.Namespace) -> NeusFitConfig:
    """The preset with the options that were given."""
    config = neus_preset(options.preset, views.device.type)
    return config.with_changes(seed=options.seed, steps=options.steps)


METHODS: dict[str, Callable[[Views, argparse.Namespace], Mesh]] = {
    "hull": lambda views, options: hull_mesh(views),
    "splat": splat_mesh,
    "core": core_mesh,
    "neus-alone": neus_mesh_alone,
    "neus": neus_mesh,
}


def mesh_scores(mesh: Mesh, folder: Path) -> dict[str, float]:
    """What the table shows: F-scores count recall over the points that the training views see."""
    truth = load_true_surface(folder)
    assert truth is not None
    scores = surface_scores(mesh, truth)
    shown = {key: scores[key] for key in ("chamfer_l1", "chamfer_l1_seen", "normal_consistency")}
    shown |= {key: scores[f"{key}_seen"] for key in ("fscore_0.5pct", "fscore_1pct")}
    return {**shown, **topology(mesh)}


def measure(folder: Path, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Means over the runs of one method on one object, and each run."""
    views = load_views(folder).views.to(options.device)
    runs = []
    for seed in range(options.runs):
        options.seed = seed
        mesh, cost = measured(views.device, lambda: METHODS[method](views, options))
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(options.keep or scratch) / f"{folder.name}-{method}-{options.seed}.ply"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mesh(path, mesh.to("cpu"))  # scored is what a file holds
            scores = mesh_scores(read_mesh(path), folder)
        runs.append({"seed": options.seed, **cost._asdict(), **scores})
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
    # results from before a guide had settings of its own do not say
    guide = f", {results['guide_steps']} steps where they guide" if "guide_steps" in results else ""
    lines += [
        "",
        f"Surface fit: `{results['preset']}` preset, meshes of {results['resolution']} voxels; splats: "
        f"`{results['splat_preset']}`{guide}; mean of {results['runs']} runs, fit and meshing together, "
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
        "guide_steps": guide_preset(options.splat_preset, options.device.split(":")[0]).steps,
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
