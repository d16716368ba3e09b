"""Settings with which diffusers and transformers build SVD's networks in any width.

The constructors take them as keywords, the config.json files of a diffusers folder hold them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .conditioning import LATENT_SCALE, ConditioningConfig
from .layout import HEAD_CHANNELS, ClipShape, UNetShape, VaeShape

SVD_NUMBERS = 3  # fps, motion bucket and noise, which diffusers' network takes


def unet_settings(shape: UNetShape) -> dict[str, Any]:
    """Of diffusers' UNetSpatioTemporalConditionModel."""
    widths = tuple(shape.model_channels * mult for mult in shape.channel_mult)
    down = ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal")
    up = ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")
    return {
        "addition_time_embed_dim": shape.vector_channels // SVD_NUMBERS,
        "block_out_channels": widths,
        "cross_attention_dim": shape.context_channels,
        "down_block_types": tuple(down[has] for has in shape.attention),
        "in_channels": shape.in_channels,
        "layers_per_block": shape.res_blocks,
        "num_attention_heads": tuple(width // HEAD_CHANNELS for width in widths),
        "num_frames": ConditioningConfig().num_frames,
        "out_channels": shape.out_channels,
        "projection_class_embeddings_input_dim": shape.vector_channels,
        "sample_size": None,
        "transformer_layers_per_block": 1,
        "up_block_types": tuple(up[has] for has in reversed(shape.attention)),
    }


def vae_settings(shape: VaeShape) -> dict[str, Any]:
    """Of diffusers' AutoencoderKLTemporalDecoder."""
    return {
        "block_out_channels": tuple(shape.channels * mult for mult in shape.channel_mult),
        "down_block_types": ("DownEncoderBlock2D",) * len(shape.channel_mult),
        "force_upcast": True,  # the encoder overflows in float16
        "in_channels": 3,
        "latent_channels": shape.latent_channels,
        "layers_per_block": shape.res_blocks,
        "out_channels": 3,
        "scaling_factor": LATENT_SCALE,
    }


def image_encoder_settings(shape: ClipShape) -> dict[str, Any]:
    """Of transformers' CLIPVisionConfig."""
    return {
        "attention_dropout": 0.0,
        "hidden_act": "gelu",  # OpenCLIP ViT-H/14
        "hidden_size": shape.width,
        "image_size": shape.image_size,
        "intermediate_size": shape.mlp_width,
        "layer_norm_eps": 1e-05,
        "num_attention_heads": shape.heads,
        "num_channels": 3,
        "num_hidden_layers": shape.layers,
        "patch_size": shape.patch_size,
        "projection_dim": shape.projection,
    }


def identity_quant_conv(shape: VaeShape) -> dict[str, Tensor]:
    """The convolution that diffusers has after its encoder and SVD has not."""
    size = 2 * shape.latent_channels
    return {
        "quant_conv.weight": torch.eye(size)[..., None, None],
        "quant_conv.bias": torch.zeros(size),
    }
