"""The optimised Gaussians and the edits of their set: split the needy, remove the invisible.

Storage has room for the whole budget from the start and never moves, so that a step over it can be
captured once as a CUDA graph. Slots without a Gaussian are transparent: no picture shows them and
no gradient reaches them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..structures import GaussianSplats
from .adam import Adam
from .projection import MAX_ALPHA, MIN_ALPHA, quats_to_rotations

SPLIT_SHRINK = 1.6  # a split Gaussian's width against its parent's; Kerbl et al. 2023, section 5.2
SPLIT_OFFSET = 0.5  # standard deviations from the parent's centre, along its longest axis
EMPTY_LOG_SCALE = -10.0  # of an empty slot: small, so that nothing pulls at it
EMPTY_LOGIT = -30.0  # of the opacity of an empty slot: far below the 1/255 that is drawn


class Parameters:
    """Raw optimised variables of up to `capacity` Gaussians and their Adam state.

    Raw forms: `log_scales`, `logit_opacities` (of opacity / 0.99: an opacity above that is cut by
    the rasterisers and would get no gradient), quaternions of any length; `sh` is split so that
    the higher bands can learn more slowly, as in 3DGS.
    """

    def __init__(
        self,
        splats: GaussianSplats,
        rates: dict[str, float],
        capacity: int,
        epsilon: float = 1e-15,  # Adam's, as in 3DGS
    ) -> None:
        room = capacity - len(splats)
        if room < 0:
            raise ValueError(f"{len(splats)} splats do not fit into room for {capacity}")
        opacities = (splats.opacities / MAX_ALPHA).clamp(1e-4, 1 - 1e-4)
        raw = {
            "means": (splats.means, 0.0),
            "log_scales": (splats.scales.log(), EMPTY_LOG_SCALE),
            "quats": (splats.quats, 1.0),
            "logit_opacities": (torch.logit(opacities), EMPTY_LOGIT),
            "sh_dc": (splats.sh[:, :1], 0.0),
            "sh_rest": (splats.sh[:, 1:], 0.0),
        }
        self.values: dict[str, Tensor] = {}
        for name, (value, filler) in raw.items():
            empty = value.new_full((room, *value.shape[1:]), filler)
            self.values[name] = torch.cat([value.detach(), empty]).requires_grad_(True)
        self.adam = Adam(self.values, rates, epsilon)
        # how hard pictures pulled at each Gaussian since the last edit; see `engines.Rasterizer`
        self.pull = torch.zeros(capacity, device=splats.device)

    def __len__(self) -> int:
        """How many Gaussians there are; waits for the device."""
        return int((self.values["logit_opacities"] > EMPTY_LOGIT / 2).sum())

    def opacities(self) -> Tensor:  # [capacity]
        """Opacities in [0, 0.99], differentiable."""
        return self.values["logit_opacities"].sigmoid() * MAX_ALPHA

    def activated(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Means, quats, scales, opacities and sh as the rasteriser takes them, differentiable."""
        v = self.values
        sh = torch.cat([v["sh_dc"], v["sh_rest"]], dim=1) if v["sh_rest"].numel() else v["sh_dc"]
        return v["means"], v["quats"], v["log_scales"].exp(), self.opacities(), sh

    def forget_gradients(self) -> None:
        """Drop the gradients of the last step."""
        for value in self.values.values():
            value.grad = None

    @torch.no_grad()
    def splats(self) -> GaussianSplats:
        """The Gaussians that can be seen as a checked value, sharing no memory with the optimiser."""
        means, quats, scales, opacities, sh = self.activated()
        seen = torch.nonzero(opacities >= MIN_ALPHA)[:, 0]
        quats = torch.nn.functional.normalize(quats[seen], dim=-1)
        return GaussianSplats(means[seen], scales[seen], quats, opacities[seen], sh[seen])

    @torch.no_grad()
    def put(self, slots: Tensor, values: dict[str, Tensor]) -> None:
        """Write Gaussians into slots and forget these slots' optimiser state."""
        for name, value in self.values.items():
            value.index_copy_(0, slots, values[name])
        self.adam.forget(slots)


@torch.no_grad()
def split_and_prune(
    parameters: Parameters,
    budget: int,
    prune_opacity: float,
) -> tuple[int, int]:
    """Remove Gaussians fainter than `prune_opacity`, then split those that are pulled hardest.

    `pull` is the measure of Kerbl et al. 2023, section 5.2; it starts anew afterwards.

    A split replaces one Gaussian by two, half a standard deviation to both sides along its longest
    axis and thinner there, which keeps the covered area and needs no random numbers.

    Returns:
        How many were removed and how many were split.
    """
    v, scores = parameters.values, parameters.pull
    logits = v["logit_opacities"]
    filled = logits > EMPTY_LOGIT / 2
    alive = filled & (parameters.opacities() >= prune_opacity)
    removed = int((filled & ~alive).sum())
    logits.masked_fill_(~alive, EMPTY_LOGIT)
    empty = torch.nonzero(~alive)[:, 0]
    room = max(0, min(budget, len(alive)) - (len(alive) - len(empty)))
    candidates = torch.nonzero(alive & (scores > 0))[:, 0]
    ranked = candidates[torch.argsort(scores[candidates], descending=True, stable=True)]
    parents = ranked[:room]

    log_scales = v["log_scales"][parents]
    longest = log_scales.argmax(-1, keepdim=True)
    axis = quats_to_rotations(v["quats"][parents]).gather(
        2, longest[:, None].expand(-1, 3, 1)
    )[..., 0]  # fmt: skip
    offset = SPLIT_OFFSET * log_scales.gather(1, longest).exp() * axis
    child = {name: value.detach()[parents] for name, value in v.items()}
    child["log_scales"] = log_scales.scatter_add(
        1, longest, torch.full_like(log_scales[:, :1], -math.log(SPLIT_SHRINK))
    )
    centre = child["means"]
    parameters.put(parents, {**child, "means": centre + offset})
    parameters.put(empty[: len(parents)], {**child, "means": centre - offset})
    parameters.pull.zero_()
    return removed, len(parents)
