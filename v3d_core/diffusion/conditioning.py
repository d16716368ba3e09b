"""What the network is told about the picture: a CLIP token, a latent, and three numbers.

V3D's numerics (scripts/pub/V3D_512.py): the noise of `cond_aug` goes onto the raw latent after
encoding, not onto the pixels as in stock SVD, and the latent is not scaled by 0.18215.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP, per channel
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LATENT_SCALE = 0.18215  # latents the UNet makes, against raw ones; Rombach et al. 2022
LOGVAR_RANGE = (-30.0, 20.0)  # Rombach et al. 2022, DiagonalGaussianDistribution
VAE_MODES = ("mode", "sample")
SIZE_MULTIPLE = 64  # px: eight in the autoencoder times eight in the UNet's three halvings

# Keeps the noise of the condition apart from the start noise of the same seed: without it frame
# 0's noise and the condition's would be the same numbers. Any odd constant serves; 2^64 / phi.
AUGMENTATION_STREAM = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class ConditioningConfig:
    """The numbers V3D was tuned with; they steer nothing a user would want to steer."""

    num_frames: int = 18  # V3D
    fps_id: float = 1.0  # V3D scripts/pub/V3D_512.py; ComfyUI's `fps` is this plus 1
    motion_bucket_id: float = 300.0  # V3D scripts/pub/V3D_512.py
    cond_aug: float = 0.02  # V3D scripts/pub/V3D_512.py; deviation of noise on raw latents (5.5)
    vae_mode: str = "mode"  # V3D samples; the mode needs no random numbers and differs little
    elevation_deg: float = 0.0  # of the orbit, positive above; V3D's networks know no other

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames is {self.num_frames}, at least 1 is needed; V3D makes 18")
        if self.vae_mode not in VAE_MODES:
            raise ValueError(f"vae_mode {self.vae_mode!r} is none of {', '.join(VAE_MODES)}")
        if not -90 < self.elevation_deg < 90:
            raise ValueError(
                f"elevation_deg must lie between -90 and 90, got {self.elevation_deg:g}"
            )
        for name in ("fps_id", "motion_bucket_id", "cond_aug"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a number from 0 up, got {getattr(self, name)}")


@dataclass(frozen=True)
class Conditioning:
    """The conditional branch; the unconditional one has zeros for token and latent.

    Attributes:
        token: Projected CLIP embedding of the picture, not normalised. [1, 1, C]
        latent: Raw latent of the picture with its noise. [1, 4, h, w]
        config: The three numbers, equal in both branches.
    """

    token: Tensor
    latent: Tensor
    config: ConditioningConfig


def check_picture(image: Tensor) -> Tensor:  # [1, H, W, 3 or 4] -> [1, H, W, 3]
    """One square picture as an orbit starts from it; alpha is laid on white.

    Raises:
        ValueError: Not one picture, not square, or of a size the networks cannot halve.
    """
    if image.ndim != 4 or image.shape[-1] not in (3, 4):
        raise ValueError(f"expected a picture [1, H, W, 3 or 4], got {list(image.shape)}")
    count, height, width, channels = image.shape
    if count != 1:
        raise ValueError(
            f"{count} pictures came in one batch, 1 is needed: an orbit shows one object. Take one "
            "out of the batch, or queue them one after another"
        )
    if height != width or height % SIZE_MULTIPLE:
        raise ValueError(
            f"the picture is {width}x{height}; a square with a side of a multiple of "
            f"{SIZE_MULTIPLE} is needed, V3D's is 512x512. V3D Prepare Image makes one"
        )
    if not bool(torch.isfinite(image).all()):
        raise ValueError("the picture has NaN or infinite values; make it again")
    if channels == 4:
        image = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    return image.clamp(0, 1)


def clip_pixels(image: Tensor, size: int = 224) -> Tensor:  # [1, H, W, 3] -> [1, 3, size, size]
    """A picture as the image encoder takes it: blurred, resized, normalised.

    The resampling is that of generative-models' FrozenOpenCLIPImageEmbedder, kornia 0.6's
    `resize(bicubic, align_corners=True, antialias=True)`: a Gaussian blur, then bicubic
    interpolation between corner pixels. Host and diffusers resample otherwise.
    """
    pixels = image.movedim(-1, 1)
    for axis in (2, 3):
        factor = pixels.shape[axis] / size
        if max(pixels.shape[2:]) > size:
            pixels = _blur(pixels, max((factor - 1) / 2, 0.001), axis)
    pixels = torch.nn.functional.interpolate(
        pixels, size=(size, size), mode="bicubic", align_corners=True
    )
    mean, std = (pixels.new_tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def _blur(pixels: Tensor, sigma: float, axis: int) -> Tensor:
    """Gaussian blur along one axis, reflected at the border; the kernel spans 4 sigma."""
    taps = int(max(4 * sigma, 3)) | 1
    offset = torch.arange(taps, device=pixels.device, dtype=pixels.dtype) - taps // 2
    kernel = torch.softmax(-(offset**2) / (2 * sigma**2), 0)
    kernel = kernel.reshape(1, 1, -1, 1) if axis == 2 else kernel.reshape(1, 1, 1, -1)
    pad = (0, 0, taps // 2, taps // 2) if axis == 2 else (taps // 2, taps // 2, 0, 0)
    padded = torch.nn.functional.pad(pixels, pad, mode="reflect")
    channels = pixels.shape[1]
    return torch.nn.functional.conv2d(
        padded, kernel.expand(channels, *kernel.shape[1:]), groups=channels
    )


def augmentation_generator(seed: int) -> torch.Generator:
    """Random numbers of the condition, independent of the start noise of the same seed."""
    return torch.Generator().manual_seed((seed + AUGMENTATION_STREAM) % 2**64)


def latent_from_moments(
    moments: Tensor,  # [1, 8, h, w]
    vae_mode: str,
    generator: torch.Generator,
) -> Tensor:  # [1, 4, h, w]
    """Mode or sample of the posterior that the encoder describes by mean and log variance."""
    mean, logvar = moments.float().chunk(2, dim=1)
    if vae_mode == "mode":
        return mean
    deviation = (0.5 * logvar.clamp(*LOGVAR_RANGE)).exp()
    return mean + deviation * torch.randn(mean.shape, generator=generator).to(mean)


def augment_latent(latent: Tensor, cond_aug: float, generator: torch.Generator) -> Tensor:
    """`latent + cond_aug N(0, 1)`, on the raw latent. [1, 4, h, w]"""
    return latent + cond_aug * torch.randn(latent.shape, generator=generator).to(latent)
