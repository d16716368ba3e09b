"""Rasterisers side by side: milliseconds per call, forward and forward + backward.

    python benchmarks/rasterizers.py --out results.json              # the table of docs/numbers.md
    python benchmarks/rasterizers.py --scaling --out scaling.json    # to 1M splats, 100 x 1024 px
    python benchmarks/rasterizers.py --device cpu --views 1 --splats 20000 --size 256

One scene for all: flat surface splats on a bumpy ball, as dense as their size, the same at every
run. Engines take turns; each turn makes several calls in a row, as a fit does, and the median of the
turns counts. On CUDA time is taken between two events, host overhead included where it leaves the
device idle. gsplat is measured twice: "gsplat" through our
adapter, and its own front door, `gsplat.rasterization`.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# as the command line does: on CPU torch's waiting threads would take the cores from Warp's
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import record

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.splats.engines import ORACLE, Rasterizer, find_engine
from v3d_core.splats.projection import Pinholes

SCALING = [  # views, splats, px
    (18, 50_000, 512),
    (18, 100_000, 512),
    (18, 200_000, 512),
    (18, 500_000, 512),
    (18, 1_000_000, 512),
    (100, 1_000_000, 512),
    (100, 100_000, 1024),
    (100, 1_000_000, 1024),
]
PIXELS_PER_CALL = 18 * 1024 * 1024  # more views than fit go in groups, all engines alike
TURN_SECONDS = 0.1  # calls in a row per turn take about so long

Call = Callable[[list[Tensor], Pinholes], list[Tensor]]  # pictures, and what else has a gradient


def bumpy_ball(count: int, device: torch.device) -> list[Tensor]:
    """Means, quats, scales, opacities and colours of splats that cover a bumpy ball evenly."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    height = 1 - 2 * index / count  # Fibonacci points: even on the sphere
    angle = math.pi * (1 + 5**0.5) * index
    ring = (1 - height * height).sqrt()
    normals = torch.stack([ring * angle.cos(), height, ring * angle.sin()], dim=-1)
    bumps = (5 * normals).sin().prod(-1, keepdim=True)
    means = 0.65 * (1 + 0.15 * bumps) * normals
    # the turn that takes the z axis to the normal: (1 + n.z, z x n), normalised by the engines
    x, y, z = normals.unbind(-1)
    quats = torch.stack([1 + z + 1e-6, -y, x, torch.zeros_like(x)], dim=-1)
    spacing = 0.65 * math.sqrt(4 * math.pi / count)
    scales = spacing * torch.tensor([0.7, 0.7, 0.15]).double().expand(count, 3)
    opacities = 0.55 + 0.4 * (12.9898 * index).sin().square()
    colours = 0.5 + 0.4 * (torch.tensor([3.0, 7.0, 13.0]).double() * means + bumps).sin()
    scene = (means, quats, scales, opacities, colours)
    return [part.float().to(device).contiguous() for part in scene]


def pinholes(views: int, size: int, device: torch.device) -> Pinholes:
    """Cameras of a whole turn, a little above the ball."""
    cameras = orbit_cameras(Orbit(num_views=views, elevation_deg=10), size, size).to(device)
    return Pinholes(cameras.world_to_camera.contiguous(), cameras.K.contiguous(), size, size)


def find_engines(device: torch.device) -> dict[str, Call | str]:
    """Every engine by name: how to call it, or why it is absent."""
    found: dict[str, Call | str] = {}

    def contract(rasterize: Rasterizer) -> Call:
        def call(scene: list[Tensor], cameras: Pinholes) -> list[Tensor]:
            means, quats, scales, opacities, colours = scene
            return [rasterize(means, quats, scales, opacities, colours[None], cameras, None)]

        return call

    for name in ("warp", "gsplat"):
        engine, reason = find_engine(name, device)
        found[name] = reason if engine is None else contract(engine.rasterize)
    if not isinstance(found["gsplat"], str):
        found["gsplat.rasterization"] = stock_gsplat
    found["torch"] = contract(ORACLE.rasterize)
    return found


def stock_gsplat(scene: list[Tensor], cameras: Pinholes) -> list[Tensor]:
    """gsplat's own front door, as its users call it."""
    import gsplat

    means, quats, scales, opacities, colours = scene
    picture, coverage, _ = gsplat.rasterization(
        means,
        quats,
        scales,
        opacities,
        colours,
        cameras.world_to_camera,
        cameras.K,
        cameras.width,
        cameras.height,
        packed=False,
    )
    return [picture, coverage]


class Workload:
    """One engine on one scene: all views, in groups that fit."""

    def __init__(self, call: Call, scene: list[Tensor], cameras: Pinholes) -> None:
        self.call = call
        self.scene = [part.detach().clone().requires_grad_() for part in scene]
        per_call = max(1, PIXELS_PER_CALL // (cameras.width * cameras.height))
        views = len(cameras.K)
        calls = -(-views // per_call)
        size = -(-views // calls)
        self.groups = [
            Pinholes(
                cameras.world_to_camera[at : at + size],
                cameras.K[at : at + size],
                cameras.width,
                cameras.height,
            )
            for at in range(0, views, size)
        ]
        # the same gradient for all engines, made beforehand
        self.gradient = torch.linspace(-1, 1, 4, device=scene[0].device).expand(
            size, cameras.height, cameras.width, 4
        )
        self.gradient = self.gradient.contiguous()

    @torch.no_grad()
    def forward(self) -> None:
        for group in self.groups:
            self.call(self.scene, group)

    def both(self) -> None:
        for part in self.scene:
            part.grad = None
        for group in self.groups:
            outputs = self.call(self.scene, group)
            gradient = self.gradient[: len(group.K)]
            split = [3, 1] if len(outputs) == 2 else [4]
            torch.autograd.backward(outputs, list(gradient.split(split, dim=-1)))


class Clock:
    """Milliseconds of work on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, work: Callable[[], None], repeats: int) -> float:
        """Mean of `repeats` calls in a row."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(repeats):
                work()
            return (time.perf_counter() - start) * 1e3 / repeats
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        first.record()
        for _ in range(repeats):
            work()
        last.record()
        torch.cuda.synchronize(self.device)
        return first.elapsed_time(last) / repeats

    def peak_mib(self, work: Callable[[], None]) -> float | None:
        """Most memory in use during the work, over what was in use before."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20


def measure_case(
    engines: dict[str, Call], views: int, splats: int, size: int, turns: int, device: torch.device
) -> dict[str, Any]:
    """All engines in turns on one scene."""
    clock = Clock(device)
    scene, cameras = bumpy_ball(splats, device), pinholes(views, size, device)
    row: dict[str, Any] = {"views": views, "splats": splats, "size": size, "engines": {}}
    works: dict[tuple[str, str], tuple[Callable[[], None], int]] = {}
    for name, call in engines.items():
        try:
            load = Workload(call, scene, cameras)
            for _ in range(2):  # kernel caches, memory pools
                load.both()
                load.forward()
            row["engines"][name] = {
                "groups": len(load.groups),
                "peak_mib": clock.peak_mib(load.both),
            }
            for kind, work in (("forward", load.forward), ("both", load.both)):
                repeats = min(100, math.ceil(TURN_SECONDS * 1e3 / clock(work, 1)))
                works[name, kind] = (work, repeats)
        except torch.cuda.OutOfMemoryError as error:
            row["engines"][name] = {"failed": f"out of memory: {str(error).split('. ')[0]}"}
            works = {key: value for key, value in works.items() if key[0] != name}
            gc.collect()
            torch.cuda.empty_cache()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for _ in range(turns):
        for key, (work, repeats) in works.items():
            times[key].append(clock(work, repeats))
    for (name, kind), values in times.items():
        row["engines"][name][f"{kind}_ms"] = round(statistics.median(values), 4)
        row["engines"][name][f"{kind}_spread_ms"] = [round(min(values), 4), round(max(values), 4)]
    return row


def markdown(record_: dict[str, Any]) -> str:
    """The table of one stored run."""
    results = record_["results"]
    names = list(dict.fromkeys(name for row in results["cases"] for name in row["engines"]))
    others = [name for name in names if name != "warp"]
    head = ["views", "splats", "px"]
    for name in names:
        head += [f"{name}: forward", "forward + backward"]
    head += [f"{name} / warp" for name in others if "warp" in names]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in results["cases"]:
        cells = [str(row["views"]), f"{row['splats']:,}", str(row["size"])]
        for name in names:
            figures = row["engines"].get(name, {})
            cells += [_ms(figures.get("forward_ms")), _ms(figures.get("both_ms"))]
        mine = row["engines"].get("warp", {})
        for name in others if "warp" in names else ():
            theirs = row["engines"].get(name, {})
            ratios = [
                f"{theirs[key] / mine[key]:.2f}"
                for key in ("forward_ms", "both_ms")
                if key in theirs and key in mine
            ]
            cells.append(", ".join(ratios) or "-")
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    lines.append("Milliseconds for all views; ratios are forward, forward + backward.")
    for name, reason in results["absent"].items():
        lines.append(f"Absent: {name} ({reason}).")
    peaks = [
        f"{row['views']} x {row['size']} px, {row['splats']:,} splats: "
        + ", ".join(
            f"{name} {figures['peak_mib']:,.0f}"
            for name, figures in row["engines"].items()
            if figures.get("peak_mib") is not None
        )
        for row in results["cases"]
        if any(f.get("peak_mib") is not None for f in row["engines"].values())
    ]
    if peaks:
        lines.append("Peak MiB over the scene's own, forward + backward: " + "; ".join(peaks) + ".")
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    record.add_arguments(parser)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 18])
    parser.add_argument("--splats", type=int, nargs="+", default=[50_000, 500_000])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--scaling", action="store_true", help="the scaling series instead")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", nargs="+", help="names of engines; default: all but slow torch")
    options = parser.parse_args()
    device = torch.device(options.device)
    found = find_engines(device)
    wanted = options.only or [name for name in found if name != "torch" or device.type == "cpu"]
    engines = {n: call for n, call in found.items() if n in wanted and not isinstance(call, str)}
    absent = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    cases = [(v, n, options.size) for v in options.views for n in options.splats]
    results: dict[str, Any] = {"absent": absent, "cases": []}
    for views, splats, size in SCALING if options.scaling else cases:
        row = measure_case(engines, views, splats, size, options.turns, device)
        results["cases"].append(row)
        print(row, file=sys.stderr, flush=True)
    stored = record.make_record(options, results)
    record.store(stored, options.out)
    print(markdown(stored))
    print(f"\n{stored['command']}\n{record.source_line(stored)}")


if __name__ == "__main__":
    main()
