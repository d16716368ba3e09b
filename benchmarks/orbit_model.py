"""Times the orbit sampler at full size with random weights, side by side with plain diffusers.

    python benchmarks/orbit_model.py --out results.json            # a CUDA device
    python benchmarks/orbit_model.py --tiny --steps 3 --out x.json # does it run? any device

Needs no model files: time and memory do not depend on the weights' values. Prints a table and
writes every figure as JSON. Peaks are torch's max_memory_allocated in GiB; "over weights" leaves
out what lay on the device before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from v3d_core.diffusion.conditioning import Conditioning
from v3d_core.diffusion.diffusers_backend import (
    DiffusersModel,
    build_image_encoder,
    build_unet,
    build_vae,
)
from v3d_core.diffusion.edm import SamplerConfig, initial_noise
from v3d_core.diffusion.families import FAMILIES, V3D, OrbitFamily
from v3d_core.diffusion.guidance import Guidance
from v3d_core.diffusion.layout import ClipShape, UNetShape, VaeShape
from v3d_core.diffusion.orbit import sample_orbit
from v3d_core.diffusion.sampler import sample_euler
from v3d_core.diffusion.settings import chosen_config
from v3d_core.report import environment

TINY = (
    UNetShape(64, (1, 1, 2), (True, True, False), 1, context_channels=96),
    VaeShape(32, (1, 1, 1, 2)),
    ClipShape(160, 3, 320, projection=96),
)


def random_weights(network: torch.nn.Module, device: torch.device, dtype: torch.dtype):
    """Weights of variance 1 / fan-in, so that values stay in float16's range."""
    network.to_empty(device=device)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
        else:
            torch.nn.init.constant_(parameter, 1.0 if parameter.numel() > 3 else 0.0)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    return network.to(dtype).eval().requires_grad_(False)


class Meter:
    """Seconds and peak memory of blocks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"

    def run(self, work):
        """Result, seconds, peak GiB, and GiB over what lay there before."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        result = work()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if not self.cuda:
            return result, seconds, 0.0, 0.0
        peak = torch.cuda.max_memory_allocated()
        return result, seconds, peak / 2**30, (peak - before) / 2**30


@torch.inference_mode()
def plain_diffusers(unet, condition: Conditioning, steps: int, noise: torch.Tensor) -> torch.Tensor:
    """What one writes with diffusers alone: its scheduler, both branches in one batch."""
    import diffusers

    scheduler = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(steps, device=noise.device)
    dtype, frames = unet.dtype, len(noise)
    latents = (noise[None] * scheduler.init_noise_sigma).to(dtype)
    picture = condition.latent[:, None].expand(1, frames, -1, -1, -1)
    picture = torch.cat([torch.zeros_like(picture), picture]).to(dtype)
    token = torch.cat([torch.zeros_like(condition.token), condition.token]).to(dtype)
    ids = torch.tensor([[1.0, 300.0, 0.02]] * 2, device=noise.device, dtype=dtype)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        predicted = unet(torch.cat([scaled, picture], 2), timestep, token, ids, return_dict=False)[
            0
        ]
        uncond, cond = predicted.chunk(2)
        guided = uncond + 3.5 * (cond - uncond)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    return latents[0]


def compare_sampling(model, condition, steps, noise, meter, repeats) -> dict:
    """Seconds of 25 steps, ours and diffusers', in turns on one warm device."""
    config = SamplerConfig(steps=steps)
    sigmas = config.sigmas().to(noise)

    def ours():
        x = noise * (1 + sigmas[0] ** 2).sqrt()
        return model.sample(
            condition, Guidance(), lambda d: sample_euler(d, x, sigmas), lambda: None
        )

    def theirs():
        return plain_diffusers(model.unet, condition, steps, noise)

    times: dict[str, list[float]] = {"ours": [], "diffusers": []}
    peaks = {}
    for round_ in range(repeats + 1):  # the first warms up
        for name, work in (("ours", ours), ("diffusers", theirs)):
            _, seconds, peak, over = meter.run(work)
            peaks[name] = {"peak": peak, "over_weights": over}
            if round_:
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "seconds": times,
        "median": medians,
        "ratio": medians["ours"] / medians["diffusers"],
        "memory": peaks,
    }


def compare_decoding(model, latents, meter) -> dict:
    """Seconds, memory and differences of decoding whole, in slices, and in diffusers' chunks."""
    count = len(latents)
    frames = sorted({count, 9, 6, 4, 2, 1} & set(range(1, count + 1)), reverse=True)
    rows: dict = {}
    dtype = next(model.vae.decoder.parameters()).dtype
    z = latents.to(meter.device, dtype)

    @torch.inference_mode()
    def chunks(size):
        parts = [
            model.vae.decode(z[i : i + size], num_frames=len(z[i : i + size])).sample
            for i in range(0, count, size)
        ]
        return (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()

    whole, _ = model.decode(latents, count)
    ways = {f"ours {size}": lambda size=size: model.decode(latents, size)[0] for size in frames}
    ways |= {f"diffusers chunks of {s}": lambda size=s: chunks(size) for s in (count, 4)}
    for name, work in ways.items():
        pictures, seconds, peak, over = meter.run(work)
        difference = (pictures - whole).abs()
        rows[name] = {
            "seconds": seconds,
            "peak": peak,
            "over_weights": over,
            "max_difference": float(difference.max()),
            "mean_difference": float(difference.mean()),
        }
    return rows


def run_whole(networks, family: OrbitFamily, device, image, steps, meter, offloads, slices) -> dict:
    """sample_orbit from picture to frames: seconds and peak for each way to save memory."""
    rows = {}
    for offload in offloads:
        home = torch.device("cpu") if offload else device
        moved = (network.to(home) for network in networks)
        model = DiffusersModel(*moved, device=device, offload=offload, family=family)
        for frames in slices:
            config, _ = chosen_config(family, steps=steps, decode_frames=frames)
            result, seconds, peak, _ = meter.run(
                lambda config=config, model=model: sample_orbit(model, image, config, 0)
            )
            rows[f"offload {offload}, {frames} in work"] = {
                "seconds": seconds,
                "peak": peak,
                **result.report,
            }
    return rows


def main() -> None:
    """Measure everything that the device's memory allows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, help="px; the model's own by default")
    parser.add_argument("--steps", type=int, help="the model's own by default")
    kinds = {family.name.lower(): family for family in FAMILIES}
    parser.add_argument(
        "--model", choices=tuple(kinds), default="v3d", help="SV3D: whole orbits only"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--skip-parts", action="store_true", help="only the whole orbits")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile as well")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    family = kinds[options.model]
    options.size, options.steps = options.size or family.size, options.steps or family.steps
    unet_shape, vae_shape, clip_shape = (
        TINY if options.tiny else (UNetShape(), VaeShape(), ClipShape())
    )
    unet_shape = dataclasses.replace(unet_shape, vector_channels=family.vector_channels)
    unet = random_weights(build_unet(unet_shape), device, dtype)
    vae = random_weights(build_vae(vae_shape), device, torch.float32)
    vae.decoder.to(dtype)
    clip = build_image_encoder(clip_shape)
    positions = clip.vision_model.embeddings.position_ids.clone()
    clip = random_weights(clip, device, dtype)
    clip.vision_model.embeddings.position_ids = positions.to(device)
    meter = Meter(device)
    model = DiffusersModel(unet, vae, clip, device=device, family=family)
    image = torch.rand(1, options.size, options.size, 3)
    config = chosen_config(family)[0].conditioning
    condition = model.condition(image, config, 0)
    noise = initial_noise((config.num_frames, 4, options.size // 8, options.size // 8), 0).to(
        device
    )
    results: dict = {"environment": environment(device), "options": vars(options) | {"out": ""}}
    if not options.skip_parts and family == V3D:
        results["sampling"] = compare_sampling(
            model, condition, options.steps, noise, meter, options.repeats
        )
        print(json.dumps(results["sampling"], indent=1))
        results["decoding"] = compare_decoding(model, 5.5 * noise.cpu(), meter)
        print(json.dumps(results["decoding"], indent=1))
    if options.compile:
        unet.compile()
        start = time.perf_counter()
        compare_sampling(model, condition, 1, noise, meter, 1)
        compiling = time.perf_counter() - start
        compiled = compare_sampling(model, condition, options.steps, noise, meter, 1)
        results["compiled"] = {"seconds_compiling": compiling, **compiled}
        print(json.dumps(results["compiled"], indent=1))
        unet._compiled_call_impl = None
    offloads = (False, True) if device.type == "cuda" else (False,)
    count = config.num_frames
    results["orbit"] = run_whole(
        (unet, vae, clip), family, device, image, options.steps, meter, offloads, (count, 4, 1)
    )
    print(json.dumps(results["orbit"], indent=1))
    options.out.write_text(json.dumps(results, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
