"""Seconds and memory of one step of `v3d train` on the full-size SVD shape, with random weights.

    python benchmarks/training_step.py --out training_step.json

One orbit of 18 frames of 512 px per step (latents of 64 x 64), bfloat16 arithmetic, what `v3d train`
builds: LoRA adapters of the attention on a UNet in bfloat16, or all weights in float32 with AdamW;
with and without gradient checkpointing, and all weights also without the moving average. The median
of the timed steps counts. A way that does not fit into the memory is listed as such.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import record

from v3d_core.diffusion.diffusers_backend import build_unet
from v3d_core.diffusion.layout import UNetShape
from v3d_core.diffusion.lora import Lora
from v3d_core.diffusion.training import OrbitTrainer, TrainConfig
from v3d_core.diffusion.training_config import RunConfig
from v3d_core.diffusion.training_data import EncodedOrbits
from v3d_core.diffusion.training_networks import halve_frozen_layers

FRAMES, LATENT_SIDE, ORBITS = 18, 64, 4
WARM_UP, TIMED = 2, 5
DEVIATION = 0.02  # of the random weights; any small one, the time does not depend on it


class Way(NamedTuple):
    """One way to train."""

    lora: bool
    checkpointing: bool
    average: bool

    def __str__(self) -> str:
        parts = ["LoRA" if self.lora else "all weights"]
        parts += ["checkpointing"] if self.checkpointing else []
        parts += ["moving average"] if self.average else []
        return ", ".join(parts)


WAYS = (
    Way(True, False, True),
    Way(True, True, True),
    Way(False, False, True),
    Way(False, True, True),
    Way(False, True, False),
)


def random_unet(shape: UNetShape, device: torch.device) -> nn.Module:
    """A UNet with small random weights, made on the device."""
    unet: nn.Module = build_unet(shape).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in unet.parameters():
        parameter.data.normal_(0, DEVIATION, generator=generator)
    return unet


def random_orbits(shape: UNetShape, device: torch.device) -> EncodedOrbits:
    """Latents and tokens of no picture."""
    generator = torch.Generator(device).manual_seed(1)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    latents = normal(ORBITS, FRAMES, 4, LATENT_SIDE, LATENT_SIDE) / 0.18215
    return EncodedOrbits(latents, normal(ORBITS, FRAMES, shape.context_channels))


def timed(way: Way, shape: UNetShape, device: torch.device) -> dict[str, Any]:
    """Median seconds of a step and the peak of memory, or that it did not fit."""
    run = RunConfig()
    config = TrainConfig(
        batch_size=1,
        gradient_checkpointing=way.checkpointing,
        ema_decay=TrainConfig.ema_decay if way.average else 0.0,
    )
    torch.cuda.reset_peak_memory_stats(device)
    try:
        unet, lora = random_unet(shape, device), None
        if way.lora:
            halve_frozen_layers(unet)
            lora = Lora(unet, shape, run.lora_rank)
        trainer = OrbitTrainer(unet, None, config, lora.parameters if lora else None)
        data, seconds = random_orbits(shape, device), []
        for _ in range(WARM_UP + TIMED):
            start = time.perf_counter()
            trainer.update(data).item()
            seconds.append(time.perf_counter() - start)
    except torch.cuda.OutOfMemoryError:
        return {"way": str(way), "fits": False}
    return {
        "way": str(way),
        "fits": True,
        "trained": sum(p.numel() for p in trainer.parameters),
        "seconds": statistics.median(seconds[WARM_UP:]),
        "gib": torch.cuda.max_memory_allocated(device) / 2**30,
    }


def markdown(stored: dict[str, Any]) -> str:
    """The table of docs/numbers.md."""
    lines = ["| what learns | trained weights | s per step | peak GiB |", "|---|---|---|---|"]
    for row in stored["results"]:
        if row["fits"]:
            lines.append(
                f"| {row['way']} | {row['trained'] / 1e6:.0f} M | {row['seconds']:.2f} | "
                f"{row['gib']:.1f} |"
            )
        else:
            lines.append(f"| {row['way']} | | does not fit | |")
    return "\n".join(lines)


def main() -> None:
    """Time every way and store the rows."""
    parser = argparse.ArgumentParser(description="Time a training step of the full-size SVD shape.")
    record.add_arguments(parser)
    options = parser.parse_args()
    device, rows, stored = torch.device(options.device), [], {}
    for way in WAYS:
        rows.append(timed(way, UNetShape(), device))
        print(rows[-1], file=sys.stderr, flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        stored = record.make_record(options, rows)
        record.store(stored, options.out)  # what is done is kept if the rest does not end
    print(markdown(stored))


if __name__ == "__main__":
    main()
