"""Builds the host's own MODEL, CLIP_VISION and VAE from the networks that v3d_core finds in files.

The host's detection knows one width and builds a checkpoint's UNet whether it is wanted or not;
here each network is built alone, from its own widths, with the host's classes, data types and
memory management.
"""

from __future__ import annotations

import comfy.clip_vision
import comfy.ldm.models.autoencoder
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from comfy import model_management

from ..v3d_core.diffusion.bundled import trained_for
from ..v3d_core.diffusion.checkpoint import CheckpointError, ModelPart, read_part
from ..v3d_core.diffusion.diffusers_configs import image_encoder_settings
from ..v3d_core.diffusion.families import SV3D_P, SV3D_U, V3D, family_of
from ..v3d_core.diffusion.layout import ClipShape, UNetShape, VaeShape

HOST_CLASSES = {
    V3D: comfy.supported_models.SVD_img2vid,
    SV3D_U: comfy.supported_models.SV3D_u,
    SV3D_P: comfy.supported_models.SV3D_p,
}


def host_model(part: ModelPart, disable_dynamic: bool = False):
    """MODEL: the video UNet in a model patcher of the host.

    The host calls this again, with `disable_dynamic`, when it needs a second copy of the weights.
    """
    shape = part.shape
    assert isinstance(shape, UNetShape)
    load_device = model_management.get_torch_device()
    offload_device = model_management.unet_offload_device()
    config = HOST_CLASSES[family_of(shape)](unet_config(shape))
    wanted = list(config.supported_inference_dtypes)
    dtype = model_management.unet_dtype(
        model_params=parameter_count(shape), supported_dtypes=wanted, weight_dtype=torch.float32
    )
    cast = model_management.unet_manual_cast(dtype, load_device, wanted)
    config.set_inference_dtype(dtype, cast, device=load_device)
    model = config.get_model({}, "", device=offload_device)
    # looked up at call time: the host replaces the class when it can load weights on demand
    patcher_class = (
        comfy.model_patcher.ModelPatcher
        if disable_dynamic
        else comfy.model_patcher.CoreModelPatcher
    )
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    state = read_part(part, "sgm", dtype)
    load_strictly(model.diffusion_model, state, patcher.is_dynamic(), part)
    model.to(offload_device)
    patcher.cached_patcher_init = (host_model, (part,))
    return patcher


def host_clip_vision(part: ModelPart):
    """CLIP_VISION: the image encoder."""
    shape = part.shape
    assert isinstance(shape, ClipShape)
    settings = {"model_type": "clip_vision_model", **image_encoder_settings(shape)}
    clip = comfy.clip_vision.ClipVisionModel(settings)
    state = read_part(part, "diffusers", clip.dtype)
    load_strictly(clip.model, state, clip.patcher.is_dynamic(), part)
    return clip


def host_vae(part: ModelPart):
    """VAE: the autoencoder with the temporal decoder."""
    shape = part.shape
    assert isinstance(shape, VaeShape)
    if shape == VaeShape():
        vae = comfy.sd.VAE(sd=read_part(part, "sgm"))
    else:
        vae = _vae_of_other_width(part, shape)
    vae.patcher.cached_patcher_init = (host_vae_patcher, (part,))
    # here and not at MODEL: V3D Conditioning has no MODEL, and latents are the VAE's
    vae.v3d_trained_for = trained_for(part.path)
    return vae


def host_vae_patcher(part: ModelPart, disable_dynamic: bool = False):
    """The patcher of a fresh VAE, for hosts that copy it to a second device."""
    vae = host_vae(part)
    if not disable_dynamic or not vae.patcher.is_dynamic():
        return vae.patcher
    return comfy.model_patcher.ModelPatcher(
        vae.first_stage_model, vae.patcher.load_device, vae.patcher.offload_device
    )


def _vae_of_other_width(part: ModelPart, shape: VaeShape):
    """The host builds SVD's autoencoder in one width only: take its shell, put ours inside."""
    widths = {
        "double_z": True,
        "z_channels": shape.latent_channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": shape.channels,
        "ch_mult": list(shape.channel_mult),
        "num_res_blocks": shape.res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    target = "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"
    network = comfy.ldm.models.autoencoder.AutoencodingEngine(
        regularizer_config={"target": target},
        encoder_config={
            "target": "comfy.ldm.modules.diffusionmodules.model.Encoder",
            "params": widths,
        },
        decoder_config={
            "target": "comfy.ldm.modules.temporal_ae.VideoDecoder",
            "params": {**widths, "video_kernel_size": [3, 1, 1], "alpha": 0.0},
        },
    ).eval()
    shell = {"ddconfig": {**widths, "ch": 32, "ch_mult": [1], "num_res_blocks": 1}, "embed_dim": 4}
    stand_in = comfy.ldm.models.autoencoder.AutoencoderKL(**shell).state_dict()
    vae = comfy.sd.VAE(sd=stand_in, config={"params": shell})
    ratio = 2 ** (len(shape.channel_mult) - 1)
    vae.downscale_ratio = vae.upscale_ratio = ratio
    vae.latent_channels = shape.latent_channels
    network.to(vae.vae_dtype)
    model_management.archive_model_dtypes(network)
    patcher = vae.patcher
    vae.first_stage_model = network
    vae.patcher = comfy.model_patcher.CoreModelPatcher(
        network, load_device=patcher.load_device, offload_device=patcher.offload_device
    )
    state = read_part(part, "sgm", vae.vae_dtype)
    load_strictly(network, state, vae.patcher.is_dynamic(), part)
    vae.size = None
    vae.model_size()
    return vae


def load_strictly(network: torch.nn.Module, state: dict, assign: bool, part: ModelPart) -> None:
    """Load weights; names the host's network does not share with the file are an error."""
    missing, unexpected = network.load_state_dict(state, strict=False, assign=assign)
    if missing or unexpected:
        raise CheckpointError(
            f"{part.path}: this ComfyUI builds another network: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}) and {len(unexpected)} unknown "
            f"({', '.join(unexpected[:3])}); update ComfyUI-V3D"
        )


def unet_config(shape: UNetShape) -> dict:
    """The settings the host's detection finds for a UNet of these widths."""
    depth = [int(has) for has in shape.attention]
    return {
        "use_checkpoint": False,
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "num_classes": "sequential",
        "adm_in_channels": shape.vector_channels,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "model_channels": shape.model_channels,
        "num_res_blocks": [shape.res_blocks] * len(depth),
        "transformer_depth": [level for level in depth for _ in range(shape.res_blocks)],
        "transformer_depth_output": [level for level in depth for _ in range(shape.res_blocks + 1)],
        "channel_mult": list(shape.channel_mult),
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": True,
        "context_dim": shape.context_channels,
        "extra_ff_mix_layer": True,
        "use_spatial_context": True,
        "merge_strategy": "learned_with_images",
        "merge_factor": 0.0,
        "video_kernel_size": [3, 1, 1],
        "use_temporal_resblock": True,
        "use_temporal_attention": True,
        "disable_temporal_crossattention": False,
    }


def parameter_count(shape: UNetShape) -> int:
    """Number of weights, which the host's choice of a data type looks at."""
    return sum(torch.Size(entry.shape).numel() for entry in shape.entries())
