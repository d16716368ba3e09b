"""Kernels of the NeuS fit side by side, and what the machine could do at best.

    python benchmarks/neus_kernels.py --out kernels.json
    python benchmarks/neus_kernels.py --device cpu --samples 36000

Hash grid: points on rays through the shell of a ball, as a fit has them. "features" are these
alone; "forward" also pulls a gradient back to the points; "both" adds the gradients of table and
pulled gradient. Compositing: blocks of 48 samples a ray, 6 channels. Engines take turns, the median
of the turns counts; on CUDA "captured" is the replay of a CUDA graph, without the host's share.

Floors: bytes that any engine must move, inputs read once and results written once, over the
bandwidth of a copy in the same run; floating-point operations over the rate of a float32 matrix
product. "rows" counts reads (or additions) of table entries, which are scattered.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# as the command line does: on CPU torch's waiting threads would take the cores from Warp's
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import record
from rasterizers import TURN_SECONDS, Clock

from v3d_core.neus.engines import COMPOSITORS, HASH_GRIDS
from v3d_core.neus.grid import FEATURES, HashGrid
from v3d_core.neus.torch_volume import Compositor

GRID = HashGrid()
RAY_SAMPLES, CHANNELS = 48, 6
TASKS = ("hash grid", "compositing")
# Operations per level and sample of the tree in kernels/hash_grid: lerps, slopes, their transposes
ENCODE_FLOPS, SLOPE_FLOPS, PULL_FLOPS, SCATTER_FLOPS, PUSH_FLOPS = 42, 30, 12, 64, 10
# per sample: two sigmoids at 10 each, alpha, the scan; and their gradient; and per channel
ALPHA_FLOPS, ALPHA_GRADIENT_FLOPS, CHANNEL_FLOPS, CHANNEL_GRADIENT_FLOPS = 40, 70, 2, 3

Work = Callable[[], Any]


class Floor(NamedTuple):
    """What a kind of work costs any engine."""

    bytes: float
    flops: float
    rows: float = 0


def floors(task: str, samples: int) -> dict[str, Floor]:
    """The least of every kind of work."""
    if task == "compositing":
        block = 4 * (3 + CHANNELS) + 1  # sdf, cosines, deltas, values, inside
        grads = 4 * (2 + CHANNELS)
        flops = ALPHA_FLOPS + CHANNELS * CHANNEL_FLOPS
        back = ALPHA_GRADIENT_FLOPS + CHANNELS * CHANNEL_GRADIENT_FLOPS
        forward = Floor(samples * (block + 4), samples * flops)
        return {
            "forward": forward,
            "both": Floor(forward.bytes + samples * (block + grads), samples * (flops + back)),
        }
    row, point, table = 4 * GRID.width, 12, 4 * FEATURES * GRID.entries
    per_level = samples * GRID.levels
    corners = 8 * per_level
    forward = Floor(
        samples * (point + row + row + point) + table,
        per_level * (ENCODE_FLOPS + SLOPE_FLOPS + PULL_FLOPS),
        corners,
    )
    return {
        "features": Floor(samples * (point + row) + table, per_level * ENCODE_FLOPS, corners),
        "forward": forward,
        "both": Floor(
            # back: points, both gradients in, the pulled gradient and its own out; the table's out
            forward.bytes + samples * (point + row + point + row + row) + table,
            forward.flops + per_level * (SCATTER_FLOPS + PUSH_FLOPS),
            2 * corners,
        ),
    }


def ray_points(samples: int, device: torch.device) -> Tensor:  # [N, 3]
    """Points of the unit cube on rays through a thin shell, ray by ray."""
    generator = torch.Generator().manual_seed(0)
    rays = -(-samples // RAY_SAMPLES)
    normals = torch.randn(rays, 3, generator=generator)
    normals = torch.nn.functional.normalize(normals, dim=-1)
    slant = torch.randn(rays, 3, generator=generator)
    directions = torch.nn.functional.normalize(normals + 0.5 * slant, dim=-1)
    along = torch.linspace(-0.03, 0.03, RAY_SAMPLES)
    points = 0.5 + 0.3 * normals[:, None] + directions[:, None] * along[:, None]
    return points.reshape(-1, 3)[:samples].to(device).contiguous()


def hash_grid_works(samples: int, device: torch.device) -> dict[str, dict[str, Work]]:
    """Every engine's works on one set of points."""
    generator = torch.Generator().manual_seed(1)

    def uniform(*shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator) - 1).to(device)

    points = ray_points(samples, device)
    table = (0.1 * uniform(GRID.entries, FEATURES)).requires_grad_()
    gradient = uniform(samples, GRID.width).requires_grad_()
    by_features, by_points = uniform(samples, GRID.width), uniform(samples, 3)

    def works(run: Callable) -> dict[str, Work]:
        def features() -> Tensor:
            with torch.no_grad():
                return run(points, table, GRID, False).features

        def forward() -> Tensor:
            encoded = run(points, table, GRID, True)
            return encoded.pull_back(gradient)

        def both() -> tuple[Tensor, ...]:
            encoded = run(points, table, GRID, True)
            pulled = encoded.pull_back(gradient)
            return torch.autograd.grad(
                [encoded.features, pulled], [table, gradient], [by_features, by_points]
            )

        return {"features": features, "forward": forward, "both": both}

    return {engine.name: works(engine.run) for engine in HASH_GRIDS.available(device)}


def compositing_works(samples: int, device: torch.device) -> dict[str, dict[str, Work]]:
    """Every engine's works on one block of rays, which fall through a surface."""
    generator = torch.Generator().manual_seed(2)
    shape = (-(-samples // RAY_SAMPLES), RAY_SAMPLES)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    along = torch.linspace(0.06, -0.06, RAY_SAMPLES, device=device)
    sdf = (along + 0.02 * uniform(shape[0], 1)).contiguous().requires_grad_()
    cosines = (-uniform(*shape)).requires_grad_()
    values = uniform(*shape, CHANNELS).requires_grad_()
    inv_s = torch.full((), 100.0, device=device).requires_grad_()
    deltas, inside = torch.full(shape, 0.0025, device=device), uniform(*shape) < 0.9
    anneal = torch.full((), 0.5, device=device)
    by_values, by_opacities = uniform(shape[0], CHANNELS), uniform(shape[0])

    def works(run: Compositor) -> dict[str, Work]:
        def forward() -> Any:
            with torch.no_grad():
                return run(sdf, cosines, deltas, inside, values, inv_s, anneal)

        def both() -> tuple[Tensor, ...]:
            out = run(sdf, cosines, deltas, inside, values, inv_s, anneal)
            return torch.autograd.grad(
                [out.values, out.opacities], [sdf, cosines, values, inv_s],
                [by_values, by_opacities],
            )  # fmt: skip

        return {"forward": forward, "both": both}

    return {engine.name: works(engine.run) for engine in COMPOSITORS.available(device)}


def captured(work: Work, device: torch.device) -> Work:
    """The work as a CUDA graph to replay."""
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = work()
    return lambda: (graph.replay(), kept)[0]


def machine_rates(device: torch.device) -> dict[str, float]:
    """Bytes per second of a copy and float32 operations per second of a matrix product."""
    clock = Clock(device)
    large = device.type == "cuda"
    source = torch.ones((1 << 28) if large else (1 << 24), device=device)
    target = torch.empty_like(source)
    side = 8192 if large else 1024
    a, b = (torch.rand(side, side, device=device) for _ in range(2))
    rates = {}
    for name, work, amount in (
        ("bytes_per_s", lambda: target.copy_(source), 8 * source.numel()),
        ("flops_per_s", lambda: torch.mm(a, b), 2 * side**3),
    ):
        work()
        rates[name] = amount / (min(clock(work, 3) for _ in range(5)) / 1e3)
    return rates


def measure_case(task: str, samples: int, turns: int, only: list[str] | None, device: torch.device):
    """All engines in turns."""
    clock = Clock(device)
    build = hash_grid_works if task == "hash grid" else compositing_works
    engines = (HASH_GRIDS if task == "hash grid" else COMPOSITORS).available(device)
    capturable = {engine.name for engine in engines if engine.capturable}
    works: dict[tuple[str, str], Work] = {}
    for name, kinds in build(samples, device).items():
        if only is not None and name not in only:
            continue
        for kind, work in kinds.items():
            works[name, kind] = work
            if device.type == "cuda" and name in capturable:
                works[f"{name}, captured", kind] = captured(work, device)
    repeats = {}
    for key, work in works.items():
        clock(work, 2)
        repeats[key] = max(1, min(200, round(TURN_SECONDS * 1e3 / clock(work, 1))))
    times: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for _ in range(turns):
        for key, work in works.items():
            times[key].append(clock(work, repeats[key]))
    figures_of: dict[str, dict[str, Any]] = {}
    for (name, kind), values in times.items():
        figures = figures_of.setdefault(name, {})
        figures[f"{kind}_ms"] = round(statistics.median(values), 4)
        figures[f"{kind}_spread_ms"] = [round(min(values), 4), round(max(values), 4)]
    floor = {kind: least._asdict() for kind, least in floors(task, samples).items()}
    return {"task": task, "samples": samples, "floor": floor, "engines": figures_of}


def markdown(record_: dict[str, Any]) -> str:
    """The table of one stored run."""
    results = record_["results"]
    rates = results["rates"]
    lines = [
        "| task | samples | work | engine | ms | MB | floor: memory, ms | floor: arithmetic, ms "
        "| times the floor | million rows per ms |",
        "|---" * 10 + "|",
    ]
    for case in results["cases"]:
        for kind, least in case["floor"].items():
            memory = least["bytes"] / rates["bytes_per_s"] * 1e3
            arithmetic = least["flops"] / rates["flops_per_s"] * 1e3
            for name, figures in case["engines"].items():
                ms = figures[f"{kind}_ms"]
                rows = f"{least['rows'] / ms / 1e6:.2g}" if least["rows"] else "-"
                lines.append(
                    f"| {case['task']} | {case['samples']:,} | {kind} | {name} | {ms:.3f} "
                    f"| {least['bytes'] / 1e6:.1f} | {memory:.4f} | {arithmetic:.4f} "
                    f"| {ms / max(memory, arithmetic):.1f} | {rows} |"
                )
    lines.append("")
    lines.append(
        f"Copy {rates['bytes_per_s'] / 1e9:,.0f} GB/s, float32 matrix product "
        f"{rates['flops_per_s'] / 1e12:.2f} TFLOP/s, both measured in the run."
    )
    return "\n".join(lines)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    record.add_arguments(parser)
    parser.add_argument("--samples", type=int, nargs="+", default=[36_000, 200_000])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", nargs="+", help="names of engines; default: all")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    results: dict[str, Any] = {"rates": machine_rates(device), "cases": []}
    for task in TASKS:
        for samples in options.samples:
            case = measure_case(task, samples, options.turns, options.only, device)
            results["cases"].append(case)
            print(case, file=sys.stderr, flush=True)
    stored = record.make_record(options, results)
    record.store(stored, options.out)
    print(markdown(stored))
    print(f"\n{stored['command']}\n{record.source_line(stored)}")


if __name__ == "__main__":
    main()
