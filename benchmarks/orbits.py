"""Reconstruct every orbit of a data folder with one recipe and print a table of the scores.

    python benchmarks/orbits.py DATA --out OUT [--preset normal] [--resolution PX] [--only NAME...]

DATA holds one folder per object with transforms_train.json and transforms_test.json (nerf-synthetic
form), and for mesh scores gt_mesh.ply and gt_points.npz (points, normals, visible_train). Each
object is reconstructed in a process of its own, so that its peak memory is its own. OUT gets
one folder per object, as `v3d reconstruct` writes it, and results.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from v3d_core.evaluation_surface import (  # noqa: E402
    load_true_surface,
    surface_scores,
    topology,
)
from v3d_core.formats.mesh_files import read_mesh  # noqa: E402

COLUMNS = {
    "psnr": ("PSNR", "{:.2f}"),
    "psnr_object": ("PSNR object", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "alpha_iou": ("alpha IoU", "{:.4f}"),
    "fscore_1pct": ("F 1 % (seen)", "{:.3f}"),
    "fscore_0.5pct": ("F 0.5 % (seen)", "{:.3f}"),
    "chamfer_l1": ("Chamfer-L1", "{:.4f}"),
    "watertight": ("watertight", "{}"),
    "splats": ("splats", "{:,}"),
    "fit_seconds": ("fit s", "{:.1f}"),
    "mesh_seconds": ("mesh s", "{:.1f}"),
    "total_seconds": ("all s", "{:.1f}"),
    "resident_mib": ("peak MiB", "{:.0f}"),
}


def main() -> None:
    """Run the recipe and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="normal")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of objects; default: all")
    options = parser.parse_args()
    objects = sorted(path.parent for path in options.data.glob("*/transforms_train.json"))
    objects = [path for path in objects if not options.only or path.name in options.only]
    if not objects:
        raise SystemExit(f"{options.data}: no folder in it has a transforms_train.json")
    rows = {}
    for path in objects:
        rows[path.name] = score_object(path, options)
        print(f"{path.name}: {rows[path.name]}", file=sys.stderr)
    summary = {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "machine": f"{platform.machine()} {platform.system()}, {_cpu_name()}",
        "arguments": sys.argv[1:],
        "objects": rows,
    }
    (options.out / "results.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    print(table(rows))
    print(f"\ncommit {summary['commit']}, {summary['machine']}")


def score_object(path: Path, options: argparse.Namespace) -> dict[str, float | int | bool]:
    """Reconstruct one object and gather its figures."""
    out = options.out / path.name
    command = [sys.executable, "-m", "v3d_core", "reconstruct", str(path), "--out", str(out)]
    command += ["--preset", options.preset, "--seed", str(options.seed)]
    if options.resolution is not None:
        command += ["--resolution", str(options.resolution)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    row = {key: report["scores"][key] for key in ("psnr", "psnr_object", "ssim", "alpha_iou")}
    if (path / "gt_mesh.ply").is_file():
        row |= mesh_scores(out / "mesh.ply", path)
    seconds = report["seconds"]
    return row | {
        "splats": report["splats"],
        "fit_seconds": seconds["fit"],
        "mesh_seconds": seconds["mesh"],
        "total_seconds": seconds["total"],
        "resident_mib": report["peak_memory"]["resident_mib"],
    }


def mesh_scores(predicted: Path, folder: Path) -> dict[str, float | bool]:
    """F-scores over what the training views see, and Chamfer-L1 of it."""
    mesh, truth = read_mesh(predicted), load_true_surface(folder)
    assert truth is not None
    scores = surface_scores(mesh, truth)
    return {
        "chamfer_l1": scores["chamfer_l1_seen"],
        "watertight": bool(topology(mesh)["watertight"]),
        **{key: scores[f"{key}_seen"] for key in ("fscore_0.5pct", "fscore_1pct")},
    }


def table(rows: dict[str, dict[str, float | int | bool]]) -> str:
    """Markdown, one object a line."""
    present = [key for key in COLUMNS if any(key in row for row in rows.values())]
    lines = ["| object | " + " | ".join(COLUMNS[key][0] for key in present) + " |"]
    lines.append("|---" * (len(present) + 1) + "|")
    for name, row in rows.items():
        cells = [COLUMNS[key][1].format(row[key]) if key in row else "" for key in present]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


if __name__ == "__main__":
    main()
