"""Small random models in the exact key layout of V3D.ckpt and svd_xt.safetensors.

Loaded by path from both test folders. `library` imports a module of v3d_core by its name there:
importlib's import_module, or the way ComfyUI loads the pack.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "conditioner.embedders.0.open_clip.model."
SV3D_ENCODER = "conditioner.embedders.1.encoder."
SIZE = 64  # px of the pictures the tests use: latents of 8x8


@dataclass(frozen=True)
class TinyModels:
    """Files of one tiny model and its companion."""

    folder: Path
    v3d: Path  # pickle as V3D saves it: UNet and first stage under "state_dict"
    v3d_without_vae: Path  # safetensors, UNet alone
    svd: Path  # safetensors: another UNet, the same first stage, image encoder, leftovers


def tiny_shapes(library: Callable[[str], Any]) -> dict[str, Any]:
    """Widths of the tiny networks, of SVD's architecture."""
    layout = library("v3d_core.diffusion.layout")
    return {
        "unet": layout.UNetShape(
            model_channels=64,
            channel_mult=(1, 1, 2),
            attention=(True, True, False),
            res_blocks=1,
            context_channels=96,
        ),
        "vae": layout.VaeShape(channels=32, channel_mult=(1, 1, 1, 2), res_blocks=2),
        "clip": layout.ClipShape(width=160, layers=3, mlp_width=320, projection=96),
    }


def random_state(
    library: Callable[[str], Any], shape: Any, seed: int, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """Weights that keep activations near 1, so that every layer matters and nothing explodes."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, size in library("v3d_core.diffusion.checkpoint").part_layout(shape, "sgm").items():
        value = torch.randn(size, generator=generator)
        if name.endswith("mix_factor"):
            pass  # sigmoid of it: both branches count
        elif len(size) > 1:
            value /= math.sqrt(math.prod(size[1:]))
        elif name.endswith("weight"):
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        state[prefix + name] = value
    return state


def write_models(folder: Path, library: Callable[[str], Any], seed: int = 0) -> TinyModels:
    """Write the files of one tiny model into a folder."""
    shapes = tiny_shapes(library)
    unet = random_state(library, shapes["unet"], seed, UNET)
    vae = random_state(library, shapes["vae"], seed + 1, VAE)
    clip = random_state(library, shapes["clip"], seed + 2, CLIP + "visual.")
    leftovers = {
        CLIP + "logit_scale": torch.tensor(4.6),
        CLIP + "text_projection": torch.randn(8, 8),
        CLIP + "positional_embedding": torch.randn(7, 8),
        CLIP + "token_embedding.weight": torch.randn(9, 8),
        CLIP + "ln_final.weight": torch.ones(8),
        CLIP + "ln_final.bias": torch.zeros(8),
    }
    copies = {name.replace(VAE, "conditioner.embedders.3."): v for name, v in vae.items()}
    copies = {name: v.clone() for name, v in copies.items() if ".encoder." in name}
    other = random_state(library, shapes["unet"], seed + 3, UNET)
    models = TinyModels(
        folder, *(folder / n for n in ("V3D.ckpt", "v3d_unet.safetensors", "svd_xt.safetensors"))
    )
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {**unet, **vae}}, models.v3d)
    save_file(unet, models.v3d_without_vae)
    save_file({**other, **vae, **clip, **leftovers, **copies}, models.svd)
    return models


def write_sv3d(folder: Path, library: Callable[[str], Any], kind: str, seed: int = 0) -> Path:
    """A tiny `sv3d_u` or `sv3d_p`: all networks in one file, the encoder in the conditioner."""
    shapes = tiny_shapes(library)
    channels = {"sv3d_u": 256, "sv3d_p": 1280}[kind]  # generative-models sv3d_u.yaml, sv3d_p.yaml
    unet = random_state(library, replace(shapes["unet"], vector_channels=channels), seed, UNET)
    clip = random_state(library, shapes["clip"], seed + 2, CLIP + "visual.")
    vae = random_state(library, shapes["vae"], seed + 1)
    image = {n: v for n, v in vae.items() if n.startswith("encoder.")}
    generator = torch.Generator().manual_seed(seed + 5)
    for name, size in (("quant_conv", 8), ("post_quant_conv", 4)):
        image[f"{name}.weight"] = torch.randn(size, size, 1, 1, generator=generator) / 2
        image[f"{name}.bias"] = torch.randn(size, generator=generator) / 10
    image["decoder.conv_in.weight"] = torch.zeros(64, 4, 3, 3)  # of an image, never read
    decoder = {VAE + n: v for n, v in vae.items() if n.startswith("decoder.")}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}.safetensors"
    save_file({**unet, **clip, **decoder, **{SV3D_ENCODER + n: v for n, v in image.items()}}, path)
    return path


def picture() -> torch.Tensor:  # [1, SIZE, SIZE, 3]
    """A coloured, asymmetric picture on white."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    image = torch.ones(SIZE, SIZE, 3)
    disc = ((x - 30) ** 2 + (y - 34) ** 2) < 20**2
    image[disc] = torch.stack([x / SIZE, y / SIZE, (x + y) / SIZE / 2], -1)[disc]
    image[10:20, 40:52] = torch.tensor([0.8, 0.1, 0.2])
    return image[None]
