"""Noise levels and preconditioning of the diffusion (Karras et al. 2022, "EDM").

SVD is trained with v-prediction inside EDM's frame; the formulas are those of generative-models'
`EDMDiscretization` and `VScalingWithEDMcNoise`, which V3D uses unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplerConfig:
    """How an orbit is sampled; the defaults are V3D's (scripts/pub/V3D_512.py, V3D_512.yaml)."""

    steps: int = 25  # evaluations of the network; its time grows in proportion
    sigma_min: float = 0.002  # last noise level before 0
    sigma_max: float = 700.0  # first noise level
    rho: float = 7.0  # spacing: larger puts more steps at low noise; Karras et al. 2022, eq. 5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, at least 1 is needed; V3D takes 25")
        if not 0 < self.sigma_min < self.sigma_max < float("inf"):
            raise ValueError(
                f"noise levels must satisfy 0 < sigma_min < sigma_max, got {self.sigma_min} and "
                f"{self.sigma_max}"
            )

    def sigmas(self) -> Tensor:  # [steps + 1]
        """The noise levels, from sigma_max down to sigma_min, then 0."""
        return edm_sigmas(self.steps, self.sigma_min, self.sigma_max, self.rho)


def edm_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:  # [steps + 1]
    """Karras et al. 2022, eq. 5: evenly spaced in sigma^(1/rho), with a 0 appended."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def v_scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in and c_noise of v-prediction with unit data deviation. Any shape

    `denoised = c_skip x + c_out F(c_in x, c_noise)` (Karras et al. 2022, eq. 7, with the
    coefficients of Salimans and Ho 2022 for v).
    """
    scale = (sigma**2 + 1).rsqrt()
    return scale**2, -sigma * scale, scale, 0.25 * sigma.log()


def initial_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Unit noise of a seed, drawn on the CPU so that every device starts alike.

    ComfyUI's KSampler draws the same numbers for the same seed and shape.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
