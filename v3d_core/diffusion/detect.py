"""Reads the widths of a network off the names and shapes of its tensors.

Each function raises KeyError when the tensors are not those of its network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from .layout import ClipShape, Shape, UNetShape, VaeShape


def unet_shape(shapes: Mapping[str, Shape], naming: str = "sgm") -> UNetShape:
    """Widths of the UNet whose tensors (without prefix) have these names and shapes."""
    sgm = naming == "sgm"
    blocks = 0  # per level; a level of sgm's takes one block more, its downsampler

    def conv(level: int, index: int) -> str:
        if sgm:
            return f"input_blocks.{1 + level * (blocks + 1) + index}.0.in_layers.2.weight"
        return f"down_blocks.{level}.resnets.{index}.spatial_res_block.conv1.weight"

    def norm(level: int) -> str:
        return (
            f"input_blocks.{1 + level * (blocks + 1)}.1.norm.weight"
            if sgm
            else f"down_blocks.{level}.attentions.0.norm.weight"
        )

    base, in_channels = shapes["input_blocks.0.0.weight" if sgm else "conv_in.weight"][:2]
    blocks = _count(lambda index: conv(0, index) in shapes)
    levels = _count(lambda level: conv(level, 0) in shapes)
    middle = "middle_block.1" if sgm else "mid_block.attentions.0"
    vector = "label_emb.0.0" if sgm else "add_embedding.linear_1"
    return UNetShape(
        model_channels=base,
        channel_mult=tuple(shapes[conv(level, 0)][0] // base for level in range(levels)),
        attention=tuple(norm(level) in shapes for level in range(levels)),
        res_blocks=blocks,
        in_channels=in_channels,
        out_channels=shapes["out.2.weight" if sgm else "conv_out.weight"][0],
        context_channels=shapes[f"{middle}.transformer_blocks.0.attn2.to_k.weight"][1],
        vector_channels=shapes[f"{vector}.weight"][1],
    )


def vae_shape(shapes: Mapping[str, Shape], naming: str = "sgm") -> VaeShape:
    """Widths of the autoencoder whose tensors (without prefix) have these names and shapes."""

    def conv(level: int, index: int) -> str:
        if naming == "sgm":
            return f"encoder.down.{level}.block.{index}.conv2.weight"
        return f"encoder.down_blocks.{level}.resnets.{index}.conv2.weight"

    channels = shapes["encoder.conv_in.weight"][0]
    levels = _count(lambda level: conv(level, 0) in shapes)
    return VaeShape(
        channels=channels,
        channel_mult=tuple(shapes[conv(level, 0)][0] // channels for level in range(levels)),
        res_blocks=_count(lambda index: conv(0, index) in shapes),
        latent_channels=shapes["decoder.conv_in.weight"][1],
    )


def clip_shape(shapes: Mapping[str, Shape], naming: str = "sgm") -> ClipShape:
    """Widths of the image encoder whose tensors (without prefix) have these names and shapes."""
    names = {entry.sgm: entry.diffusers for entry in ClipShape(layers=1).entries()}

    def shape(name: str) -> Shape:
        return shapes[name if naming == "sgm" else names[name]]

    layer = "transformer.resblocks" if naming == "sgm" else "vision_model.encoder.layers"
    norm = "ln_1" if naming == "sgm" else "layer_norm1"
    width, _, patch_size, _ = shape("conv1.weight")
    return ClipShape(
        width=width,
        layers=_count(lambda index: f"{layer}.{index}.{norm}.weight" in shapes),
        mlp_width=shape("transformer.resblocks.0.mlp.c_fc.weight")[0],
        patch_size=patch_size,
        image_size=patch_size * round((shape("positional_embedding")[0] - 1) ** 0.5),
        projection=shape("proj")[1 if naming == "sgm" else 0],
    )


def _count(exists: Callable[[int], bool]) -> int:
    """How many of 0, 1, 2, ... exist."""
    return next(index for index in itertools.count() if not exists(index))
