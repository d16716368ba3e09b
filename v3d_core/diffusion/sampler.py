"""The sampler: noise becomes an orbit of latents, whoever the network belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .edm import v_scalings


class Denoiser(Protocol):
    """The only thing the sampler knows of a model: the host's MODEL and diffusers both wear it."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The clean latents that noisy ones most likely come from, guidance included.

        Args:
            x: Latents plus noise of standard deviation sigma. [T, 4, h, w]
            sigma: The noise level, a scalar. []

        Returns:
            Denoised latents. [T, 4, h, w]
        """
        ...


StepCallback = Callable[[int, Tensor, Tensor], None]  # step, denoised, x before the step


def orbits_denoiser(unet: Any, token: Tensor, latent: Tensor, ids: Tensor) -> Denoiser:
    """diffusers' UNet with EDM's preconditioning (Karras et al. 2022, eq. 7), without guidance.

    Args:
        unet: UNetSpatioTemporalConditionModel.
        token: Projected CLIP embeddings. [B, 1, C]
        latent: Raw latents of the pictures, for every frame, in the UNet's type. [B, T, 4, h, w]
        ids: fps id, motion bucket and noise of the pictures. [B, 3]

    Returns:
        Takes and gives latents [B, T, 4, h, w]; float32.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        c_skip, c_out, c_in, c_noise = v_scalings(sigma.float())
        inputs = torch.cat([(c_in * x).to(latent.dtype), latent], dim=2)
        made = unet(inputs, c_noise.expand(len(inputs)), token, ids, return_dict=False)[0]
        return c_out * made.float() + c_skip * x

    return denoise


def sample_euler(
    denoiser: Denoiser,
    x: Tensor,  # [T, 4, h, w]
    sigmas: Tensor,  # [steps + 1]
    callback: StepCallback | None = None,
) -> Tensor:  # [T, 4, h, w]
    """Euler's method along the probability flow (Karras et al. 2022, algorithm 1 without churn).

    Args:
        denoiser: The network with its preconditioning and guidance.
        x: Noise scaled to the first level. [T, 4, h, w]
        sigmas: Falling noise levels, the last one 0. [steps + 1]
        callback: Told after every evaluation; raising inside it cancels.

    Returns:
        Clean latents. [T, 4, h, w]
    """
    for step in range(len(sigmas) - 1):
        sigma = sigmas[step]
        denoised = denoiser(x, sigma)
        if callback is not None:
            callback(step, denoised, x)
        slope = (x - denoised) / sigma
        x = x + (sigmas[step + 1] - sigma) * slope
    return x
