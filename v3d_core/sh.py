"""Real spherical harmonics in the order and sign of 3D Gaussian Splatting files."""

from __future__ import annotations

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814  # Y_0^0 = 1 / (2 sqrt(pi))
_C1 = 0.4886025119029199  # sqrt(3 / (4 pi))
_C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
_C3 = (
    0.5900435899266435,
    2.890611442640554,
    0.4570457994644658,
    0.3731763325901154,
    1.445305721320277,
)


def dc_from_colours(colours: Tensor) -> Tensor:
    """Degree-0 coefficients of sRGB colours in [0, 1]. Any shape"""
    return (colours - 0.5) / SH_C0


def colours_from_dc(dc: Tensor) -> Tensor:
    """sRGB colours of degree-0 coefficients; may leave [0, 1]. Any shape"""
    return dc * SH_C0 + 0.5


def sh_basis(directions: Tensor, degree: int) -> Tensor:  # [..., 3] -> [..., (degree + 1)^2]
    """Basis values along unit directions, degree 0 to 3."""
    if not 0 <= degree <= 3:
        raise ValueError(f"sh_basis: degree must be 0 to 3, got {degree}")
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        basis += [-_C1 * y, _C1 * z, -_C1 * x]
    xx, yy, zz = x * x, y * y, z * z
    if degree >= 2:
        basis += [
            _C2[0] * x * y,
            -_C2[0] * y * z,
            _C2[1] * (2 * zz - xx - yy),
            -_C2[0] * x * z,
            _C2[2] * (xx - yy),
        ]
    if degree >= 3:
        basis += [
            -_C3[0] * y * (3 * xx - yy),
            _C3[1] * x * y * z,
            -_C3[2] * y * (4 * zz - xx - yy),
            _C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            -_C3[2] * x * (4 * zz - xx - yy),
            _C3[4] * z * (xx - yy),
            -_C3[0] * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, dim=-1)


def eval_sh(
    sh: Tensor,  # [N, K, 3]
    directions: Tensor,  # [V, N, 3]
) -> Tensor:  # [V, N, 3]
    """sRGB colours seen along unit directions from the camera; at least 0 as in 3DGS."""
    degree = {1: 0, 4: 1, 9: 2, 16: 3}[sh.shape[1]]
    if degree == 0:
        colours = colours_from_dc(sh[:, 0]).expand(len(directions), -1, -1)
    else:
        colours = torch.einsum("vnk,nkc->vnc", sh_basis(directions, degree), sh) + 0.5
    return colours.clamp(min=0)
