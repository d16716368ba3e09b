"""Muon: matrices learn by orthogonalised momentum, everything else as in AdamW.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon). torch.optim.Muon takes matrices only,
one after another; a small UNet's convolutions are most of its weights, and its three hundred
matrices have a dozen shapes, so here those of a shape are worked on together.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95  # Jordan et al.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5; Jordan et al.
NEWTON_SCHULZ_STEPS = 5  # Jordan et al.
RMS = 0.2  # of an update before the rate, as AdamW's is; Liu et al. 2025, arXiv 2502.16982
NARROWEST = 16  # rows and columns of what counts as a matrix: not a UNet's first and last layer


def is_matrix(parameter: Tensor) -> bool:
    """Whether a weight maps many channels to many; kernels are flattened."""
    return parameter.dim() > 1 and min(parameter.shape[:2]) >= NARROWEST


@torch.no_grad()
def orthogonalised(matrices: Tensor) -> Tensor:  # [N, R, C] -> [N, R, C]
    """About U V^T of each matrix U S V^T: singular values between 0.7 and 1.2.

    A quintic Newton-Schulz iteration on the side of fewer rows, in bfloat16.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # Jordan et al.
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for matrices, AdamW for the rest; one learning rate serves both.

    Args:
        parameters: What learns.
        lr: Learning rate, as AdamW would have it.
        betas: AdamW's, for the rest.
        weight_decay: Decoupled, of all.
        fused: Whether AdamW's kernels are fused, which CUDA allows.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        fused: bool = False,
    ) -> None:
        parameters = list(parameters)
        defaults = {"lr": lr, "weight_decay": weight_decay, "fused": fused}
        super().__init__(parameters, defaults)
        rest = [p for p in parameters if not is_matrix(p)]
        self._adamw = None
        if rest:
            self._adamw = torch.optim.AdamW(
                rest, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused
            )
            self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        """One update from the gradients; there is no closure."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        (group,) = self.param_groups
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None and is_matrix(parameter):
                shape = (len(parameter), parameter[0].numel())
                by_shape.setdefault(shape, []).append(parameter)
        for alike in by_shape.values():
            self._turn(alike, group["lr"], group["weight_decay"])
        if self._adamw is not None:
            self._adamw.param_groups[0]["lr"] = group["lr"]
            self._adamw.step()

    def _turn(self, alike: list[Tensor], rate: float, decay: float) -> None:
        rows, columns = len(alike[0]), alike[0][0].numel()
        gradients: Any = [p.grad for p in alike]
        momenta = [self._momentum(p) for p in alike]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
        turned = orthogonalised(torch.stack([m.reshape(rows, columns) for m in ahead]))
        updates = [u.view_as(p) for u, p in zip(turned, alike, strict=True)]
        torch._foreach_mul_(alike, 1 - rate * decay)
        torch._foreach_add_(alike, updates, alpha=-rate * RMS * max(rows, columns) ** 0.5)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state["exp_avg"]
