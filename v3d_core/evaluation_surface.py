"""Scores of a surface against the true one: Chamfer distance, F-scores, normals, topology."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from .formats.mesh_files import read_mesh
from .mesh.parts import part_labels
from .mesh.topology import count_edges
from .structures import Mesh

TRUE_MESH, TRUE_POINTS = "gt_mesh.ply", "gt_points.npz"
SAMPLES = 100_000  # points on each surface
THRESHOLDS = (0.005, 0.01)  # of the diagonal of the true bounding box
SEEN_COLUMN = "visible_train"  # of the points file: which points the training views see

Array = np.ndarray


@dataclass(frozen=True)
class SurfaceSamples:
    """Points of a surface with the unit normals of their faces.

    Attributes:
        points: World units. [P, 3] float64
        normals: [P, 3] float64
    """

    points: Array
    normals: Array


@dataclass(frozen=True)
class TrueSurface:
    """The true surface of an object.

    Attributes:
        mesh: The surface, world frame.
        seen: Points of it that the training views see, or None where that is unknown.
    """

    mesh: Mesh
    seen: SurfaceSamples | None = None


def load_true_surface(folder: Path) -> TrueSurface | None:
    """`gt_mesh.ply` of an object's folder and the seen points of `gt_points.npz`, or None.

    Raises:
        ValueError: A file is damaged, or the points lack `points`, `normals` or `visible_train`.
    """
    if not (folder / TRUE_MESH).is_file():
        return None
    mesh = read_mesh(folder / TRUE_MESH)
    path = folder / TRUE_POINTS
    if not path.is_file():
        return TrueSurface(mesh)
    try:
        with np.load(path, allow_pickle=False) as stored:
            points, normals, seen = (stored[k] for k in ("points", "normals", SEEN_COLUMN))
            points, normals = points[seen].astype(np.float64), normals[seen].astype(np.float64)
    except KeyError as error:
        raise ValueError(
            f"{path}: {error.args[0]}; points, normals and {SEEN_COLUMN} are needed"
        ) from error
    except Exception as error:  # readers of damaged files raise anything
        raise ValueError(f"{path}: cannot be read as points: {error}") from error
    if points.ndim != 2 or points.shape[1:] != (3,) or points.shape != normals.shape:
        raise ValueError(
            f"{path}: points are {points.shape}, normals {normals.shape}; both must be [P, 3]"
        )
    if not np.isfinite(points).all() or not np.isfinite(normals).all():
        raise ValueError(f"{path}: NaN or infinite values among the points; make the file anew")
    return TrueSurface(mesh, SurfaceSamples(points, normals) if len(points) else None)


def sample_surface(mesh: Mesh, count: int, random: np.random.Generator) -> SurfaceSamples:
    """Random points of a mesh, equally likely everywhere on it.

    Raises:
        ValueError: The mesh has no area.
    """
    corners = mesh.vertices.detach().cpu().numpy().astype(np.float64)[mesh.faces.cpu().numpy()]
    a, b, c = corners.swapaxes(0, 1)
    crosses = np.cross(b - a, c - a)
    doubled = np.linalg.norm(crosses, axis=1)  # areas
    if not doubled.sum() > 0:
        raise ValueError(f"the mesh of {len(corners)} faces has no area, so it cannot be scored")
    chosen = random.choice(len(corners), count, p=doubled / doubled.sum())
    uv = random.random((count, 2))
    folded = uv.sum(1) > 1  # a square folded at its diagonal is a triangle
    uv[folded] = 1 - uv[folded]
    a, b, c = a[chosen], b[chosen], c[chosen]
    points = a + uv[:, :1] * (b - a) + uv[:, 1:] * (c - a)
    return SurfaceSamples(points, crosses[chosen] / doubled[chosen][:, None])


def surface_scores(
    mesh: Mesh,
    truth: TrueSurface,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Scores of a mesh against the true surface, as they lie: nothing is aligned.

    Both surfaces are sampled and every sample looks for the nearest one of the other surface.
    Accuracy is the mean distance from the mesh to the truth, completeness that from the truth to
    the mesh, Chamfer-L1 their mean. Precision and recall are the shares within a threshold, and
    the F-score is their harmonic mean. Normal consistency is the mean |cosine| between the normals
    of neighbours, both ways. For `_seen`, recall, completeness and their half of the normals are
    of the true points that the training views see; the other half still uses the whole truth.

    Args:
        mesh: The surface to score, in the frame of the truth.
        truth: The true one.
        samples: Points on each surface. A perfect mesh scores a Chamfer-L1 of about
            0.5 sqrt(area / samples), not 0.
        seed: Of the points.
        tick: Called between the steps; raising in it cancels.

    Returns:
        `accuracy`, `completeness`, `chamfer_l1` (world units), `fscore_0.5pct`, `fscore_1pct`
        (thresholds in shares of the diagonal of the true bounding box), `normal_consistency`, and
        all but accuracy again with `_seen` where seen points are known.

    Raises:
        ValueError: One of the meshes has no area.
    """
    own = sample_surface(mesh, samples, np.random.default_rng([seed, 1]))
    true = sample_surface(truth.mesh, samples, np.random.default_rng([seed, 2]))
    tick()
    own_tree, true_tree = KDTree(own.points), KDTree(true.points)
    tick()
    used = truth.mesh.vertices[truth.mesh.faces.reshape(-1)].cpu().numpy().astype(np.float64)
    diagonal = float(np.linalg.norm(np.ptp(used, axis=0)))
    there = _nearest(own, true, true_tree)
    tick()

    def scores(target: SurfaceSamples) -> dict[str, float]:
        back = _nearest(target, own, own_tree)
        found = {
            "completeness": float(back[0].mean()),
            "chamfer_l1": float((there[0].mean() + back[0].mean()) / 2),
        }
        for threshold in THRESHOLDS:
            precision, recall = (
                float((way[0] < threshold * diagonal).mean()) for way in (there, back)
            )
            both = precision + recall
            found[f"fscore_{threshold * 100:g}pct"] = 2 * precision * recall / both if both else 0.0
        found["normal_consistency"] = float((there[1].mean() + back[1].mean()) / 2)
        tick()
        return found

    result = {"accuracy": float(there[0].mean()), **scores(true)}
    if truth.seen is not None:
        result |= {f"{key}_seen": value for key, value in scores(truth.seen).items()}
    return result


def _nearest(source: SurfaceSamples, target: SurfaceSamples, tree: KDTree) -> tuple[Array, Array]:
    """Distance of each source point to the nearest target [P], and |cosine| of their normals [P]."""
    distance, index = tree.query(source.points)
    return distance, np.abs((source.normals * target.normals[index]).sum(1))


def topology(mesh: Mesh) -> dict[str, float]:
    """`watertight` (1: every edge has two faces and a volume is enclosed), `parts`, `faces`."""
    faces: Any = mesh.faces.cpu().numpy()
    if not len(faces):
        return {"watertight": 0.0, "parts": 0.0, "faces": 0.0}
    a, b, c = mesh.vertices.detach().cpu().numpy().astype(np.float64)[faces].swapaxes(0, 1)
    volume = float((a * np.cross(b, c)).sum()) / 6
    return {
        "watertight": float(count_edges(faces).watertight and volume > 0),
        "parts": float(part_labels(faces).max() + 1),
        "faces": float(len(faces)),
    }
