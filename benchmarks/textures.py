"""Finished assets of the orbits of a data folder, rendered from the test views by other people's software.

    python benchmarks/textures.py DATA --meshes FOLDER --out textures.json

Every mesh is made light, unwrapped, textured and written as a .glb; trimesh reads it, embree casts
the rays. Meshes are the true ones and, of `--meshes`, FOLDER/NAME-neus-0.ply as `surfaces.py --keep`
leaves them. `vertex` is the same light mesh with vertex colours, `blend` the plain weighted blend,
`splat` our own render of the splat that `normal` fits. PSNR is of the pixels that the object covers in the
true picture, both over white, and, under names that end in `_either`, of those that either covers, as
`evaluate.py` of the data folder counts them: a mesh that is too fat pays for it there alone. Needs embreex.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import trimesh

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from v3d_core.formats.mesh_files import read_mesh, write_mesh  # noqa: E402
from v3d_core.formats.views import load_views  # noqa: E402
from v3d_core.images import composite  # noqa: E402
from v3d_core.mesh.asset import (  # noqa: E402
    AssetConfig,
    make_asset,
    make_light,
    shape_from_views,
)
from v3d_core.mesh.colours import colour_vertices  # noqa: E402
from v3d_core.mesh.refine import blend_texture  # noqa: E402
from v3d_core.mesh_queries import MeshQueries, cast_pixels  # noqa: E402
from v3d_core.metrics import psnr  # noqa: E402
from v3d_core.splats.config import splat_preset  # noqa: E402
from v3d_core.splats.fit import fit_splats  # noqa: E402
from v3d_core.splats.raster import render_splats  # noqa: E402
from v3d_core.structures import Cameras, Mesh, Views  # noqa: E402

RAYS = 3  # along each side of a pixel
COVERED = 0.5  # of a pixel of the true picture, from which it counts
WHITE = (1.0, 1.0, 1.0)
METHODS = ("vertex", "blend", "texture", "splat")
COLUMNS = ("vertex", "blend", "texture", "splat", "seconds")


class Render:
    """A mesh file seen from cameras, unlit: trimesh reads it, embree finds what is seen."""

    def __init__(self, path: Path) -> None:
        from trimesh.ray.ray_pyembree import RayMeshIntersector  # embreex: not for the tables

        self.mesh = trimesh.load(path, process=False, force="mesh")
        self.rays = RayMeshIntersector(self.mesh, scale_to_box=False)

    def over_white(self, cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures [V, H, W, 3] and coverage [V, H, W]: means over the rays of each pixel."""
        pictures = np.zeros((len(cameras), cameras.height, cameras.width, 3))
        coverage = np.zeros(pictures.shape[:3])
        places = (np.arange(RAYS) + 0.5) / RAYS
        rows, columns = np.mgrid[: cameras.height, : cameras.width]
        for v in range(len(cameras)):
            K, pose = cameras.K[v].double().numpy(), cameras.camera_to_world[v].double().numpy()
            for dx in places:
                for dy in places:
                    x = (columns + dx - K[0, 2]) / K[0, 0]
                    y = (rows + dy - K[1, 2]) / K[1, 1]
                    directions = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
                    colours, hit = self._colours(pose, directions @ pose[:3, :3].T)
                    pictures[v] += colours.reshape(pictures[v].shape)
                    coverage[v] += hit.reshape(coverage[v].shape)
        mean = pictures / RAYS**2, coverage / RAYS**2
        return torch.from_numpy(mean[0]).float(), torch.from_numpy(mean[1]).float()

    def _colours(self, pose: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Over white [R, 3], and whether anything is hit [R]."""
        origins = np.broadcast_to(pose[:3, 3], directions.shape)
        seen, hit = np.ones_like(directions), np.zeros(len(directions), bool)
        places, rays, faces = self.rays.intersects_location(
            origins, directions, multiple_hits=False
        )
        hit[rays] = True
        corners = self.mesh.triangles[faces]
        weights = trimesh.triangles.points_to_barycentric(corners, places)[..., None]
        visual, indices = self.mesh.visual, self.mesh.faces[faces]
        if visual.kind == "texture":
            uv = (visual.uv[indices] * weights).sum(1)
            picture = texture_of(visual)
            seen[rays] = trimesh.visual.color.uv_to_interpolated_color(uv, picture)[:, :3] / 255
        else:
            seen[rays] = (visual.vertex_colors[indices][..., :3] * weights).sum(1) / 255
        return seen, hit


def texture_of(visual: Any) -> Any:
    """The picture of a textured mesh, whatever trimesh calls its material."""
    return getattr(visual.material, "baseColorTexture", None) or visual.material.image


def psnr_on_object(
    pictures: torch.Tensor,  # [V, H, W, 3]
    coverage: torch.Tensor,  # [V, H, W]
    views: Views,
) -> tuple[float, float]:
    """Over the pixels that the object covers, and over those that it or the mesh does.

    Both over white; means over the views, dB.
    """
    truth = composite(views.images, views.masks, WHITE)

    def mean(area: torch.Tensor) -> float:  # [V, H, W] bool
        return sum(psnr(pictures[v], truth[v], area[v]) for v in range(len(views))) / len(views)

    return mean(views.masks > COVERED), mean((views.masks > 0) | (coverage > COVERED))


def with_vertex_colours(mesh: Mesh, views: Views) -> Mesh:
    """The mesh coloured from the pictures as the mesh stage does it."""
    depth = cast_pixels(MeshQueries(mesh.vertices, mesh.faces), views.cameras)
    depths = torch.where(depth.face >= 0, depth.distance, 0.0)
    plain = dataclasses.replace(mesh, uvs=None, texture=None)
    size = float((mesh.vertices.amax(0) - mesh.vertices.amin(0)).norm())
    return colour_vertices(plain, views.cameras, views.images, views.masks, depths, 0.01 * size)


def measure(folder: Path, mesh: Mesh, options: argparse.Namespace) -> dict[str, Any]:
    """All methods on one mesh."""
    device = torch.device(options.device)
    views = load_views(folder).views.to(device)
    test = load_views(folder, split="test").views
    mesh = mesh.to(device)
    config = AssetConfig(
        faces=options.faces, texture_size=options.size, refine_geometry=options.refine_geometry
    )
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(options.keep or scratch)
        place.mkdir(parents=True, exist_ok=True)
        light, _ = make_light(mesh, config)
        if config.refine_geometry and {"vertex", "blend"} & set(options.methods):
            light, _ = shape_from_views(light, views, config)

        def score(method: str, result: Mesh, kind: str) -> None:
            path = place / f"{folder.name}-{options.kind}-{method}.{kind}"
            write_mesh(path, result.to("cpu"))
            figures[method], figures[f"{method}_either"] = psnr_on_object(
                *Render(path).over_white(test.cameras), test
            )

        if "vertex" in options.methods:
            score("vertex", with_vertex_colours(light, views), "ply")
        if "blend" in options.methods:
            score("blend", blend_texture(light, views, config.refining()).mesh, "glb")
        if "texture" in options.methods:
            start = time.perf_counter()
            asset = make_asset(mesh, views, config)
            figures["seconds"] = time.perf_counter() - start
            figures["report"] = asset.report
            score("texture", asset.mesh, "glb")
    return figures


def measure_splat(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Our own render of the splat that `normal` fits, dB as `psnr_on_object`."""
    device = torch.device(options.device)
    views = load_views(folder).views.to(device)
    test = load_views(folder, split="test").views
    splats = fit_splats(views, splat_preset("normal", device.type)).splats
    drawn = render_splats(splats, test.cameras.to(device), WHITE)
    return psnr_on_object(drawn.colours.cpu(), drawn.alphas.cpu(), test)


def cell(figures: dict[str, Any], key: str) -> str:
    """One figure, in brackets that over the pixels of either, if it was measured."""
    if key not in figures:
        return ""
    either = figures.get(f"{key}_either")
    return f"{figures[key]:.2f}" + ("" if either is None else f" ({either:.2f})")


def markdown(stored: dict[str, Any]) -> str:
    """One line per object and mesh."""
    results = stored["results"]
    lines = [
        "| object | mesh | vertex colours, dB | plain blend, dB | texture, dB | splat, dB | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, kinds in results["objects"].items():
        for kind, figures in kinds.items():
            cells = [cell(figures, key) for key in COLUMNS]
            lines.append(f"| {name} | {kind} | " + " | ".join(cells) + " |")
    brackets = " (in brackets: of those that the mesh covers, too)" if "(" in "".join(lines) else ""
    lines += [
        "",
        f"{results['faces']:,} faces, texture of {results['size']}; PSNR of the covered pixels{brackets} of the test views, rendered "
        f"by trimesh and embree with {RAYS} x {RAYS} rays a pixel; seconds of cleaning, decimating, unwrapping and "
        "texturing.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    record.add_arguments(parser)
    parser.add_argument("--meshes", type=Path, help="folder with NAME-neus-0.ply")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--faces", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=1024, help="texels along a side")
    parser.add_argument(
        "--refine-geometry",
        action=argparse.BooleanOptionalAction,
        default=AssetConfig.refine_geometry,
        help="of all methods but the splat; default: on",
    )
    parser.add_argument("--only", nargs="*", help="names of objects; default: all")
    parser.add_argument("--keep", type=Path, help="folder for the meshes")
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.data.glob("*/gt_mesh.ply"))
    folders = [path for path in folders if not options.only or path.name in options.only]
    if not folders:
        raise SystemExit(f"{options.data}: no folder in it has a gt_mesh.ply")
    results: dict[str, Any] = {"objects": {}, "faces": options.faces, "size": options.size}
    stored = None
    for folder in folders:
        meshes = {"true": folder / "gt_mesh.ply"}
        if options.meshes is not None:
            meshes["neus"] = options.meshes / f"{folder.name}-neus-0.ply"
        splat = measure_splat(folder, options) if "splat" in options.methods else None
        for kind, path in meshes.items():
            options.kind = kind
            figures = measure(folder, read_mesh(path), options)
            if splat is not None:
                figures["splat"], figures["splat_either"] = splat
            results["objects"].setdefault(folder.name, {})[kind] = figures
            print(f"{folder.name} {kind}: {figures}", file=sys.stderr, flush=True)
            stored = record.make_record(options, results)
            record.store(stored, options.out)  # what is done is kept if the rest takes too long
    assert stored is not None
    print(markdown(stored))
    print(f"\n{stored['command']}\n{record.source_line(stored)}")


if __name__ == "__main__":
    main()
