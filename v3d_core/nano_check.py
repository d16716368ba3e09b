"""How good a small orbit model is, on objects it never saw: pictures, PSNR, and 3-D consistency."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .cameras import Orbit, orbit_cameras
from .cli_shared import say
from .diffusion.bundled import NANO_SCALE, NANO_STEPS
from .diffusion.conditioning import LATENT_SCALE, ConditioningConfig, clip_pixels
from .diffusion.diffusers_backend import DiffusersModel, load_diffusers_model
from .diffusion.edm import SamplerConfig
from .diffusion.model_files import find_model
from .diffusion.sampler import orbits_denoiser, sample_euler
from .nano import VALIDATION_SEEDS, render_pictures
from .pose_views import pose_views
from .splats.config import splat_preset
from .splats.fit import fit_splats
from .splats.raster import render_splats


@torch.inference_mode()
def sample_many(
    model: DiffusersModel,
    pictures: Tensor,  # [B, S, S, 3]
    scale: float,
    seed: int,
    steps: int = SamplerConfig.steps,
) -> Tensor:  # [B, T, S, S, 3]
    """`sample_orbit` for many pictures at a time, with one guidance scale for all frames."""
    config, unet, device = ConditioningConfig(), model.unet, model.device
    vae: Any = model.vae
    dtype = next(unet.parameters()).dtype
    pictures = pictures.to(device)
    encoder: Any = model.image_encoder
    token = encoder(pixel_values=clip_pixels(pictures).to(dtype)).image_embeds[:, None]
    latent = vae.encoder((pictures * 2 - 1).movedim(-1, 1))[:, :4]
    generator = torch.Generator().manual_seed(seed)
    latent = latent + config.cond_aug * torch.randn(latent.shape, generator=generator).to(device)
    frames, batch = config.num_frames, len(pictures)
    latent = latent.to(dtype)[:, None].expand(-1, frames, -1, -1, -1)
    ids = torch.tensor([[config.fps_id, config.motion_bucket_id, config.cond_aug]], device=device)
    ids = ids.expand(batch, -1)

    cond = orbits_denoiser(unet, token, latent, ids)
    uncond = orbits_denoiser(unet, 0 * token, 0 * latent, ids)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        made = cond(x, sigma)
        if scale == 1:
            return made
        other = uncond(x, sigma)
        return other + scale * (made - other)

    sigmas = SamplerConfig(steps=steps).sigmas().to(device)
    noise = torch.randn((batch, *latent.shape[1:]), generator=generator).to(device)
    latents = sample_euler(denoise, noise * (1 + sigmas[0] ** 2).sqrt(), sigmas) / LATENT_SCALE
    decoded = [
        vae.decoder(
            z.to(next(vae.decoder.parameters()).dtype),
            torch.zeros(1, frames, device=device),
            frames,
        )
        for z in latents
    ]
    return torch.stack(decoded).float().add(1).div(2).clamp(0, 1).movedim(2, -1)


def psnr_of_frames(made: Tensor, true: Tensor) -> Tensor:  # [N, T, S, S, 3] twice -> [N, T]
    """PSNR of every frame on white, dB."""
    return -10 * (made - true).square().mean(dim=(2, 3, 4)).clamp_min(1e-10).log10()


def odd_from_even(frames: Tensor, device: torch.device) -> float:  # [T, S, S, 3]
    """PSNR in dB with which a splat of the even frames predicts the odd ones, on white.

    Objects are cut out as V3D Pose Views does it.

    Raises:
        ValueError: It finds no flat background.
    """
    size = frames.shape[1]
    cameras = orbit_cameras(Orbit(num_views=len(frames)), size, size)
    views = pose_views(frames.cpu(), cameras).views
    config = splat_preset("draft", device.type)
    splats = fit_splats(views[::2].to(device), config).splats
    made = render_splats(splats, cameras[1::2].to(device), depths=False).colours
    return float(psnr_of_frames(made[None].cpu(), frames[None, 1::2].cpu()).mean())


def sheet(rows: list[Tensor], path: Path) -> None:
    """Rows of pictures [n, S, S, 3] in [0, 1] under one another."""
    strips = [torch.cat(list(row), dim=1) for row in rows]
    image = (torch.cat(strips) * 255).round().to(torch.uint8).cpu().numpy()
    Image.fromarray(image).save(path)


def main() -> None:
    """Score a model file on the validation objects."""
    parser = argparse.ArgumentParser(description="Score a small orbit model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scales", type=float, nargs="+", default=[NANO_SCALE])
    parser.add_argument("--steps", type=int, default=NANO_STEPS)
    parser.add_argument("--objects", type=int, default=len(VALIDATION_SEEDS))
    parser.add_argument("--consistency", type=int, default=0, help="objects to fit splats to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_diffusers_model(find_model(options.model), device, torch.float32, offload=False)
    size = 128
    true = render_pictures(VALIDATION_SEEDS[: options.objects], size, device).float() / 255
    vae: Any = model.vae
    with torch.inference_mode():
        again = torch.stack(
            [
                vae.decoder(
                    vae.encoder((o * 2 - 1).movedim(-1, 1))[:, :4],
                    torch.zeros(1, len(o), device=device),
                    len(o),
                )
                for o in true
            ]
        )
    again = again.float().add(1).div(2).clamp(0, 1).movedim(2, -1)
    report: dict[str, Any] = {"autoencoder": float(psnr_of_frames(again, true).mean())}
    for scale in options.scales:
        start = time.perf_counter()
        made = sample_many(model, true[:, 0], scale, seed=0, steps=options.steps)
        scores = psnr_of_frames(made, true)
        mirrored = psnr_of_frames(made, true[:, [0, *range(true.shape[1] - 1, 0, -1)]])
        report[f"scale {scale}"] = {
            "frame_0": float(scores[:, 0].mean()),
            "mean": float(scores.mean()),
            "mean_if_turned_the_other_way": float(mirrored.mean()),
            "per_frame": [round(float(x), 2) for x in scores.mean(0)],
            "per_object": [round(float(x), 2) for x in scores.mean(1)],
            "seconds": round(time.perf_counter() - start, 1),
        }
        rows = []
        for index in range(min(10, len(true))):
            rows += [true[index, ::2], made[index, ::2]]
        sheet(rows, options.out / f"sheet_{scale}.png")
        if options.consistency and scale == options.scales[0]:
            pairs, without = [], []
            for i in range(options.consistency):
                try:
                    pairs.append((odd_from_even(true[i], device), odd_from_even(made[i], device)))
                except ValueError as error:  # no flat background
                    without.append(f"{i}: {error}")
            count = max(1, len(pairs))
            report["odd_from_even"] = {
                "true": sum(a for a, _ in pairs) / count,
                "made": sum(b for _, b in pairs) / count,
                "pairs": [[round(a, 2), round(b, 2)] for a, b in pairs],
                "left_out": without,
            }
        assert all(math.isfinite(x) for x in scores.flatten().tolist())
    (options.out / "check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
