"""The sampler: noise becomes an orbit of latents, whoever the network belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


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
