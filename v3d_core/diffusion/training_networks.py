"""Networks to train: from weight files, or of SVD's architecture with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import ModelPart, read_part
from .diffusers_backend import build_image_encoder, build_unet, build_vae
from .diffusers_configs import identity_quant_conv
from .layout import ClipShape, UNetShape, VaeShape

REPEATED_BLOCKS = ("SpatioTemporalResBlock", "TransformerSpatioTemporalModel")


def load_network(part: ModelPart, dtype: torch.dtype = torch.float32) -> Any:
    """A network with the weights of a file, on the CPU, not learning."""
    state = read_part(part, "diffusers", dtype)
    if isinstance(part.shape, UNetShape):
        network = build_unet(part.shape)
    elif isinstance(part.shape, VaeShape):
        network = build_vae(part.shape)
        state |= {name: t.to(dtype) for name, t in identity_quant_conv(part.shape).items()}
    else:
        network = build_image_encoder(part.shape)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def halve_frozen_layers(network: nn.Module) -> None:
    """Linear and convolution layers that do not learn in bfloat16: half the memory.

    Autocast makes the same copies of them at every step, so results stay equal to the bit.
    """
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            module.to(torch.bfloat16)


def compile_blocks(unet: nn.Module) -> int:
    """Let torch.compile make kernels for the UNet's blocks; how many there are.

    Blocks of one class and size share them. A step of 64 of V3D-nano's orbits on an H200, replayed
    as a CUDA graph, takes 109 ms; 122 with the blocks' parts compiled instead, 110 with the whole
    UNet, 117 with weights in channels_last, and about 198 as it is written. The first takes 100 s.
    """
    import torch._dynamo

    count = 0
    for module in unet.modules():
        if type(module).__name__ in REPEATED_BLOCKS:
            module.compile(dynamic=False)
            count += 1
    torch._dynamo.config.recompile_limit = max(count, torch._dynamo.config.recompile_limit)
    return count


@contextmanager
def as_written() -> Iterator[None]:
    """Compiled blocks run as they are written meanwhile: for few runs, or other sizes and types."""
    stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6
    with stance("force_eager") if stance else nullcontext():  # older ones compile once more
        yield


def new_unet(shape: UNetShape, seed: int) -> Any:
    """A UNet that starts as SVD's did: every residual branch and the output are 0.

    So the first prediction is v = 0 everywhere, and depth adds no noise to the first gradients
    (generative-models' `zero_module`).
    """
    with _seeded(seed):
        unet = build_unet(shape, "cpu")
    for name, module in unet.named_modules():
        kind = type(module).__name__
        if kind in ("ResnetBlock2D", "TemporalResnetBlock"):
            _zero(module.conv2)
        elif kind == "TransformerSpatioTemporalModel":
            _zero(module.proj_out)
        elif name == "conv_out":
            _zero(module)
    return unet


def new_vae(shape: VaeShape, seed: int) -> Any:
    """An autoencoder with temporal decoder; its identity convolution does not learn."""
    with _seeded(seed):
        vae = build_vae(shape, "cpu")
    identity = identity_quant_conv(shape)
    vae.load_state_dict(identity, strict=False)
    for parameter in vae.quant_conv.parameters():
        parameter.requires_grad_(False)
    return vae


def new_image_encoder(shape: ClipShape, seed: int) -> Any:
    """An image encoder with CLIP's own initialisation."""
    with _seeded(seed):
        return build_image_encoder(shape, "cpu")


class _seeded:
    """Torch's global random numbers from a seed within, as they were afterwards."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._kept: Tensor = torch.random.get_rng_state()
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        torch.random.set_rng_state(self._kept)


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
