"""Fit splats to the orbits of a data folder: seconds, held-out scores, memory, as JSON and a table.

    python benchmarks/splats.py DATA --preset normal --out results.json
    python benchmarks/splats.py DATA --only spot --set steps=800 max_splats=30000 --runs 1
    python benchmarks/splats.py DATA --levels 30 34 35 37 --budgets 0.25 0.5 1 2 --out curve.json

DATA is one object's folder or holds one per object, with transforms_train.json and
transforms_test.json. Timed is `fit_splats` alone: from frames on the device to the finished splat,
queued work waited for. One untimed fit comes first, because kernels are compiled and memory pools
filled only once. Run r takes the seed of the recipe + r. Test views are loaded once, lie on the CPU
during the fits, and are given to the score and to nothing else.

How soon a level of PSNR is reached is found with fits that get a time budget each, from the start
again, and not by looking into a running fit: a budget's learning rates and splits are its own. The
answer is the shortest of these times whose mean PSNR is at the level, with nothing in between.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import os
import statistics
import sys
from pathlib import Path
from typing import Any

# as the command line does: on CPU torch's waiting threads would take the cores from Warp's
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import record

from v3d_core.evaluation_methods import measured
from v3d_core.formats.views import load_views
from v3d_core.metrics import score_views
from v3d_core.reconstruct import straight_renders
from v3d_core.splats.config import SPLAT_PRESETS, SplatFitConfig, splat_preset
from v3d_core.splats.fit import fit_splats
from v3d_core.structures import GaussianSplats, Views

SCORES = {
    "psnr": ("PSNR", "{:.2f}"),
    "psnr_object": ("PSNR object", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "alpha_iou": ("alpha IoU", "{:.4f}"),
}
COLUMNS = {
    "seconds": ("seconds", "{:.2f}"),
    **SCORES,
    "splats": ("splats", "{:,.0f}"),
    "steps": ("steps", "{:.0f}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
}
BUDGETS = {"cuda": (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0), "cpu": (10.0, 20.0, 40.0, 60.0)}
LEVELS = (30.0, 34.0, 35.0, 37.0)
CPU_WARM_UP_STEPS = 10


def find_objects(data: Path, only: list[str] | None) -> list[Path]:
    """Folders with both splits."""
    found = [data] if (data / "transforms_train.json").is_file() else []
    found += sorted(path.parent for path in data.glob("*/transforms_train.json"))
    found = [path for path in found if (path / "transforms_test.json").is_file()]
    found = [path for path in found if not only or path.name in only]
    if not found:
        raise SystemExit(f"{data}: no folder in it has transforms_train.json and _test.json")
    return found


def changed(config: SplatFitConfig, changes: list[str]) -> SplatFitConfig:
    """A recipe with `key=value` applied; values as Python writes them, else text."""
    values: dict[str, Any] = {}
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign:
            raise SystemExit(f"--set {change}: expected key=value")
        if key not in {field.name for field in dataclasses.fields(config)}:
            raise SystemExit(f"--set {key}: no such setting of a fit")
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    return config.with_changes(**values)


def timed_fit(views: Views, config: SplatFitConfig) -> tuple[GaussianSplats, dict[str, Any]]:
    """One fit with its seconds and its peak memory."""
    fit, cost = measured(views.device, lambda: fit_splats(views, config))
    row = {
        "seconds": round(cost.seconds, 4),
        "splats": len(fit.splats),
        "steps": fit.report["steps"],
        "peak_mib": round(cost.peak_mib, 1),
        "seed": config.seed,
        "report": fit.report,
    }
    return fit.splats, row


@torch.no_grad()
def held_out_scores(splats: GaussianSplats, test_views: Views) -> dict[str, float]:
    """Means over the held-out views, on white, at the size of the views."""
    renders = straight_renders(splats, test_views.cameras)
    scores: Any = score_views(*renders, test_views.images, test_views.masks)
    return {key: round(scores[key], 5) for key in SCORES}


def measure_object(path: Path, config: SplatFitConfig, options) -> dict[str, Any]:
    """All fits of one object."""
    device = torch.device(options.device)
    views = load_views(path).views.to(device)
    test_views = load_views(path, split="test").views
    warm_up = config
    if device.type == "cpu":
        warm_up = config.with_changes(steps=min(config.steps, CPU_WARM_UP_STEPS), seconds=0.0)
    fit_splats(views, warm_up)
    result: dict[str, Any] = {
        "views": len(views),
        "test_views": len(test_views),
        "size": [views.cameras.width, views.cameras.height],
        "test_size": [test_views.cameras.width, test_views.cameras.height],
    }

    def several(recipe: SplatFitConfig, label: str) -> list[dict[str, Any]]:
        rows = []
        for run in range(options.runs):
            splats, row = timed_fit(views, recipe.with_changes(seed=recipe.seed + run))
            rows.append({**row, **held_out_scores(splats, test_views)})
            print(
                f"{path.name} {label} run {run}: {row['seconds']:.2f} s {rows[-1]['psnr']:.2f} dB",
                file=sys.stderr,
                flush=True,
            )
        return rows

    result["runs"] = several(config, "recipe")
    result["budgets"] = [
        {"budget": budget, "runs": several(config.with_changes(seconds=budget), f"{budget:g} s")}
        for budget in options.budgets
    ]
    return result


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def seconds_to(level: float, result: dict[str, Any]) -> float | None:
    """Mean seconds of the fastest setting whose mean PSNR is at a level."""
    settings = [result["runs"], *(budget["runs"] for budget in result["budgets"])]
    reached = [mean(rows, "seconds") for rows in settings if mean(rows, "psnr") >= level]
    return min(reached, default=None)


def markdown(stored: dict[str, Any]) -> str:
    """The tables of one stored benchmark."""
    results = stored["results"]
    objects: dict[str, Any] = results["objects"]
    lines = ["| object | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for name, result in objects.items():
        cells = [_with_spread(result["runs"], key, form) for key, (_, form) in COLUMNS.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if len(objects) > 1:
        every = [row for result in objects.values() for row in result["runs"]]
        cells = [form.format(mean(every, key)) for key, (_, form) in COLUMNS.items()]
        lines.append("| **mean** | " + " | ".join(cells) + " |")
    lines += ["", _explanation(stored)]
    if any(result["budgets"] for result in objects.values()):
        lines += ["", *_curve(objects, results["levels"])]
    return "\n".join(lines)


def _with_spread(rows: list[dict[str, Any]], key: str, form: str) -> str:
    values = [row[key] for row in rows]
    text, low, high = (form.format(v) for v in (statistics.fmean(values), min(values), max(values)))
    return text if low == high else f"{text} ({low} to {high})"


def _explanation(stored: dict[str, Any]) -> str:
    results = stored["results"]
    first = next(iter(results["objects"].values()))
    changes = ", ".join(results["changes"])
    return (
        f"`{results['preset']}` preset{f' with {changes}' if changes else ''}, "
        f"engine {first['runs'][0]['report']['engine']}; mean of {len(first['runs'])} runs "
        f"(smallest to largest); {first['views']} views of {_size(first['size'])} in memory to "
        f"finished splat; scores on white over {first['test_views']} held-out views of "
        f"{_size(first['test_size'])}; peak: "
        + ("torch's max_memory_allocated." if results["on_cuda"] else "resident, whole process.")
    )


def _size(size: list[int]) -> str:
    return f"{size[0]} x {size[1]} px"


def _curve(objects: dict[str, Any], levels: list[float]) -> list[str]:
    """PSNR by time budget, and the seconds to each level."""
    budgets = next(iter(objects.values()))["budgets"]
    head = [f"{row['budget']:g} s" for row in budgets] + [f"to {level:g} dB" for level in levels]
    lines = ["| object, held-out PSNR after | " + " | ".join(head) + " |"]
    lines.append("|---" * (len(head) + 1) + "|")
    for name, result in objects.items():
        cells = [
            f"{mean(row['runs'], 'psnr'):.2f} ({mean(row['runs'], 'seconds'):.2f} s)"
            for row in result["budgets"]
        ]
        for level in levels:
            seconds = seconds_to(level, result)
            cells.append("-" if seconds is None else f"{seconds:.2f} s")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    note = "A column of the table is a fit of its own with that time budget (in brackets: what it "
    return [*lines, "", note + "took); the last ones are the fastest of all fits at that level."]


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    record.add_arguments(parser)
    parser.add_argument("--preset", default="normal", choices=tuple(SPLAT_PRESETS))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of objects; default: all")
    parser.add_argument("--levels", type=float, nargs="*", help="PSNR values to reach, dB")
    parser.add_argument("--budgets", type=float, nargs="*", help="seconds; needed for levels")
    options = parser.parse_args()
    if options.budgets is None:
        wanted = options.levels is not None
        options.budgets = BUDGETS[torch.device(options.device).type] if wanted else ()
    device_type = torch.device(options.device).type
    config = changed(splat_preset(options.preset, device_type), options.changes)
    results: dict[str, Any] = {
        "preset": options.preset,
        "changes": options.changes,
        "config": dataclasses.asdict(config),
        "levels": options.levels or list(LEVELS),
        "on_cuda": torch.device(options.device).type == "cuda",
        "objects": {},
    }
    for path in find_objects(options.data, options.only):
        results["objects"][path.name] = measure_object(path, config, options)
    stored = record.make_record(options, results)
    record.store(stored, options.out)
    print(markdown(stored))
    print(f"\n{stored['command']}\n{record.source_line(stored)}")


if __name__ == "__main__":
    main()
