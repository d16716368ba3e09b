"""A CPU's kernels of both fits beside plain torch: the splat's loss, NeuS's networks and samples.

    python benchmarks/cpu_kernels.py --out cpu-kernels.json

Sizes are those of a step: 2 pictures of 512 px, 768 rays of 32 samples. Both take turns in one run
and the median of the turns counts, so ratios hold where times do not. "both" is the gradient, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# as the command line does: torch's waiting threads would take the cores from Warp's
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import record
from rasterizers import TURN_SECONDS, Clock

from v3d_core.neus.config import NeusFitConfig
from v3d_core.neus.engines import COLOUR_NETWORKS, DISTANCE_NETWORKS, SAMPLERS
from v3d_core.neus.field import GEOMETRY_FEATURES
from v3d_core.neus.grid import HashGrid
from v3d_core.neus.torch_networks import Layers, Places
from v3d_core.neus.trilinear import interleaved
from v3d_core.splats.photometric import LossWeights, photometric_loss_torch

CPU = torch.device("cpu")
PICTURES, SIDE = 2, 512  # of a splat's step
FIT = NeusFitConfig()
POINTS = FIT.rays * FIT.samples

Work = Callable[[], Any]


def random(*shape: int, seed: int) -> Tensor:
    """Normal numbers, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_works() -> dict[str, dict[str, Work]]:
    """The splat's loss with its gradient."""
    from v3d_core.splats.warp_photometric import photometric_loss_warp

    pictures = random(PICTURES, SIDE, SIDE, 4, seed=0).sigmoid().requires_grad_()
    targets = random(PICTURES, SIDE, SIDE, 4, seed=1).sigmoid()
    confidences, batch = torch.ones(PICTURES, SIDE, SIDE), torch.arange(PICTURES)
    backgrounds = random(PICTURES, 3, seed=2).sigmoid()

    def works(run: Callable[..., Tensor]) -> dict[str, Work]:
        def both() -> Any:
            weights = LossWeights(0.2, 0.2)
            loss = run(pictures, targets, confidences, batch, backgrounds, weights)
            return torch.autograd.grad(loss, pictures)

        return {"both": both}

    return {"warp": works(photometric_loss_warp), "torch": works(photometric_loss_torch)}


def layers(inputs: int, outputs: int, seed: int) -> Layers:
    """A network's weights, of units that are neither all on nor all off."""
    first = random(FIT.hidden, inputs, seed=seed) * (2 / inputs) ** 0.5
    second = random(outputs, FIT.hidden, seed=seed + 1) * 0.1
    biases = torch.zeros(FIT.hidden), torch.zeros(outputs)
    parts = (first, biases[0], second, biases[1])
    return Layers(*(part.requires_grad_() for part in parts))


def network_works(which: str) -> dict[str, dict[str, Work]]:
    """A network at the samples of a step."""
    width, outs = HashGrid(levels=FIT.levels).width, 1 + GEOMETRY_FEATURES
    features = (0.1 * random(width, POINTS, seed=3)).requires_grad_()
    unit, normals = random(POINTS, 3, seed=4).tanh(), F.normalize(random(POINTS, 3, seed=5))
    outputs = random(POINTS, outs, seed=6).requires_grad_()
    normals.requires_grad_()
    places = Places(unit, features.t(), torch.ones(width))
    distance, colour = layers(3 + width, outs, 7), layers(outs + 3 + width + 3, 3, 9)

    def works(run: Callable) -> dict[str, Work]:
        def ask() -> list[Tensor]:
            if which == "distance":
                return list(run(places, distance, True))
            return [run(outputs, places, normals, None, colour)]

        def forward() -> Any:
            with torch.no_grad():
                return ask()

        def both() -> Any:
            found = ask()
            leaves = [features, *distance] if which == "distance" else [outputs, normals, *colour]
            return torch.autograd.grad(found, leaves, [torch.ones_like(f) for f in found])

        return {"forward": forward, "both": both}

    engines = DISTANCE_NETWORKS if which == "distance" else COLOUR_NETWORKS
    return {engine.name: works(engine.run) for engine in engines.available(CPU)}


def sampling_works() -> dict[str, dict[str, Work]]:
    """Samples of a step's rays through the band around a ball."""
    cells = FIT.start_resolution
    side = (torch.arange(cells) + 0.5) / cells * 2 - 1
    x, y, z = torch.meshgrid(side, side, side, indexing="ij")
    start = (x * x + y * y + z * z).sqrt() - 0.6
    known = interleaved(torch.stack([start, start]))
    origins = 3 * F.normalize(random(FIT.rays, 3, seed=11), dim=-1)
    towards = F.normalize(0.35 * random(FIT.rays, 3, seed=12) - origins, dim=-1)
    jitter = random(FIT.rays, seed=13).sigmoid()
    settings = (torch.zeros(3), 1.0, FIT.band, FIT.samples, FIT.surface_share)

    def works(run: Callable) -> dict[str, Work]:
        return {"forward": lambda: run(origins, towards, jitter, known, *settings)}

    return {engine.name: works(engine.run) for engine in SAMPLERS.available(CPU)}


TASKS: dict[str, Callable[[], dict[str, dict[str, Work]]]] = {
    "splat's loss": loss_works,
    "distance network": lambda: network_works("distance"),
    "colour network": lambda: network_works("colour"),
    "samples along rays": sampling_works,
}


def measure(task: str, turns: int) -> list[dict[str, Any]]:
    """Every kind of work of a task, engines in turns."""
    clock, engines, cases = Clock(CPU), TASKS[task](), []
    for kind in engines["torch"]:
        works = {name: kinds[kind] for name, kinds in engines.items()}
        times: dict[str, list[float]] = {name: [] for name in works}
        repeats = {}
        for name, work in works.items():
            clock(work, 2)
            repeats[name] = max(1, round(TURN_SECONDS * 1e3 / clock(work, 1)))
        for _ in range(turns):
            for name, work in works.items():
                times[name].append(clock(work, repeats[name]))
        medians = {name: round(statistics.median(found), 3) for name, found in times.items()}
        cases.append({"task": task, "work": kind, "ms": medians})
    return cases


def markdown(stored: dict[str, Any]) -> str:
    """The table of one stored run."""
    lines = ["| task | work | warp, ms | torch, ms | torch / warp |", "|---" * 5 + "|"]
    for case in stored["results"]["cases"]:
        warp, plain = case["ms"]["warp"], case["ms"]["torch"]
        lines.append(
            f"| {case['task']} | {case['work']} | {warp:.2f} | {plain:.2f} | {plain / warp:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    record.add_arguments(parser)
    parser.set_defaults(device="cpu")
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    if options.device != "cpu":
        parser.error(f"these kernels run on the CPU, got --device {options.device}")
    cases = [case for task in TASKS for case in measure(task, options.turns)]
    stored = record.make_record(options, {"cases": cases})
    record.store(stored, options.out)
    print(markdown(stored))
    print(f"\n{stored['command']}\n{record.source_line(stored)}")


if __name__ == "__main__":
    main()
