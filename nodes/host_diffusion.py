"""V3D's conditioning, sampling and decoding on the host's CLIP_VISION, MODEL and VAE."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_base
import comfy.sample
import comfy.samplers
import torch
from comfy import model_management
from comfy.ldm.modules.temporal_ae import VideoDecoder
from torch import Tensor

from ..v3d_core.diffusion.bundled import TrainedFor
from ..v3d_core.diffusion.conditioning import (
    Conditioning,
    ConditioningConfig,
    augment_latent,
    augmentation_generator,
    check_picture,
    clip_pixels,
    latent_from_moments,
)
from ..v3d_core.diffusion.decode import (
    decode_in_chunks,
    decode_in_slices,
    sgm_decoder_layers,
)
from ..v3d_core.diffusion.decode_memory import DecodePlan, decode_bytes, plan_decode
from ..v3d_core.diffusion.edm import SamplerConfig, initial_noise
from ..v3d_core.diffusion.families import SV3D_P, SV3D_U, V3D, OrbitFamily
from ..v3d_core.diffusion.guidance import Guidance, guide
from ..v3d_core.diffusion.interrupt import interruptible
from ..v3d_core.diffusion.sampler import sample_euler
from ..v3d_core.images import resize_pictures
from .convert import pictures_from_image
from .runtime import log

StepCallback = Callable[[int, Tensor, Tensor, int], None]  # step, denoised, x, steps


def condition_picture(
    clip_vision, vae, image: Tensor, config: ConditioningConfig, seed: int
) -> Conditioning:
    """What the network is told about a picture, encoded by the host's models.

    Where the model says which size of frames it makes, the picture is brought to it.

    Raises:
        ValueError: A model is missing or not SVD's, or the picture is not one square picture.
    """
    if clip_vision is None:
        raise ValueError(
            "CLIP_VISION is empty: V3D.ckpt has no image encoder. Load svd_xt.safetensors beside "
            "it with V3D Load Model, or a ViT-H-14 laion2B file with Load CLIP Vision"
        )
    if vae is None:
        raise ValueError("VAE is empty; load svd_xt.safetensors with V3D Load Model")
    picture = picture_for(vae, image)
    if (trained := trained_for(vae)) and image.shape[1] != trained.size:
        log.info("the picture becomes one of %d px, as %s has it", trained.size, trained.name)
    generator = augmentation_generator(seed)
    token = clip_token(clip_vision, picture)
    if config.vae_mode == "mode":
        latent = vae.encode(picture).float()
    else:
        latent = latent_from_moments(_moments(vae, picture), config.vae_mode, generator)
    latent = latent.to(token.device)
    return Conditioning(token, augment_latent(latent, config.cond_aug, generator), config)


def picture_for(vae, image: Tensor) -> Tensor:  # [1, S, S, 3]
    """An IMAGE as the picture an orbit starts from, in the model's size where its file says one."""
    picture = check_picture(pictures_from_image(image))
    trained = trained_for(vae)
    if trained is None or picture.shape[1] == trained.size:
        return picture
    return resize_pictures(picture, trained.size, trained.size).clamp(0, 1)


def family_of_vae(vae) -> OrbitFamily:
    """The kind of model that V3D Load Model loaded a VAE for, V3D where another node did."""
    return getattr(vae, "v3d_family", V3D)


def trained_for(vae) -> TrainedFor | None:
    """What the model that a VAE belongs to is made for, where its file says so."""
    return getattr(vae, "v3d_trained_for", None)


def clip_token(clip_vision, picture: Tensor) -> Tensor:  # [1, S, S, 3] -> [1, 1, C]
    """The projected CLIP embedding, of pixels resampled V3D's way.

    The host's own `encode_image` would resample differently and round to 8 bits.
    """
    model_management.load_model_gpu(clip_vision.patcher)
    pixels = clip_pixels(picture, clip_vision.image_size).to(clip_vision.load_device)
    embeds = clip_vision.model(pixel_values=pixels, intermediate_output=-2)[2]
    return embeds[:, None].float().to(model_management.intermediate_device())


def _moments(vae, picture: Tensor) -> Tensor:  # [1, S, S, 3] -> [1, 8, s, s]
    pixels = vae.process_input(picture.movedim(-1, 1))
    needed = vae.memory_used_encode(pixels.shape, vae.vae_dtype)
    model_management.load_models_gpu([vae.patcher], memory_required=needed)
    network = vae.first_stage_model
    moments = network.encoder(pixels.to(vae.device, vae.vae_dtype))
    if hasattr(network, "quant_conv"):
        moments = network.quant_conv(moments)
    return moments.float().to(model_management.intermediate_device())


def host_conditioning(condition: Conditioning, family: OrbitFamily) -> tuple[list, list]:
    """CONDITIONING of the conditional and the unconditional branch, for any sampler of the host.

    The host embeds of these numbers what the kind of model is told, as `OrbitFamily.vectors` does.
    """
    elevations, azimuths = family.angles_deg(condition.config)
    numbers = {
        "fps": condition.config.fps_id + 1,  # the host subtracts 1 before it embeds
        "motion_bucket_id": condition.config.motion_bucket_id,
        "augmentation_level": condition.config.cond_aug,
        "elevation": elevations,
        "azimuth": azimuths,
    }
    token, latent = condition.token, condition.latent
    positive = [[token, {**numbers, "concat_latent_image": latent}]]
    negative = [
        [torch.zeros_like(token), {**numbers, "concat_latent_image": torch.zeros_like(latent)}]
    ]
    return positive, negative


def sample_latents(
    model,
    condition: Conditioning,
    sampler: SamplerConfig,
    guidance: Guidance,
    seed: int,
    callback: StepCallback,
) -> Tensor:  # [T, 4, h, w]
    """Sample an orbit on the host's MODEL; its patches, LoRAs and offloading stay in force.

    Returns:
        Raw latents, ready for the decoder.
    """
    check_token(model, condition)
    frames = condition.config.num_frames
    positive, negative = host_conditioning(condition, family_of_model(model))
    noise = initial_noise((frames, *condition.latent.shape[1:]), seed)
    if guidance.kind != "constant":
        model = with_guidance(model, guidance.scales(frames))

    def euler(model_k, x, sigmas, extra_args=None, callback=None, disable=None):
        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            return model_k(x, sigma.expand(len(x)), **(extra_args or {}))

        def report(step: int, denoised: Tensor, x: Tensor) -> None:
            callback({"i": step, "denoised": denoised, "x": x})

        network = model.model.diffusion_model
        if "torch_compile_kwargs" in model.model_options:  # hooks would break its graph
            return sample_euler(denoiser, x, sigmas, report)
        with interruptible(network, model_management.throw_exception_if_processing_interrupted):
            return sample_euler(denoiser, x, sigmas, report)

    return comfy.sample.sample_custom(
        model,
        noise,
        guidance.scale,
        comfy.samplers.KSAMPLER(euler),
        sampler.sigmas(),
        positive,
        negative,
        torch.zeros_like(noise),
        callback=callback,
        disable_pbar=True,
        seed=seed,
    ).float()


def family_of_model(model) -> OrbitFamily:
    """The kind of orbit model that a MODEL is, whoever loaded it.

    Raises:
        ValueError: It is not SVD's network.
    """
    kinds = {  # SV3D's are SVD's subclasses, so they come first
        comfy.model_base.SV3D_p: SV3D_P,
        comfy.model_base.SV3D_u: SV3D_U,
        comfy.model_base.SVD_img2vid: V3D,
    }
    for kind, family in kinds.items():
        if isinstance(model.model, kind):
            return family
    raise ValueError(
        f"MODEL is {type(model.model).__name__}, an SVD-shaped model is needed; load V3D.ckpt, "
        "sv3d_u.safetensors or sv3d_p.safetensors with V3D Load Model"
    )


def check_token(model, condition: Conditioning) -> None:
    """Refuse a token of another width than MODEL takes."""
    wanted = model.model.model_config.unet_config["context_dim"]
    if condition.token.shape[-1] != wanted:
        raise ValueError(
            f"CLIP_VISION makes tokens of {condition.token.shape[-1]} values but MODEL takes "
            f"{wanted}; V3D and SVD need OpenCLIP ViT-H/14, which svd_xt.safetensors contains"
        )


def with_guidance(model, scales: Tensor):  # [T]
    """A clone of MODEL whose guidance scale differs from frame to frame.

    It acts on denoised latents, after the host's own guidance: the host's hook for a guidance
    function subtracts from x and loses 8e-4 at sigma 700 in float32.
    """

    def per_frame(args: dict) -> Tensor:
        return guide(args["uncond_denoised"], args["cond_denoised"], scales)

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(per_frame, disable_cfg1_optimization=True)
    return clone


def decode_latents(vae, latents: Tensor, frames_per_slice: int) -> tuple[Tensor, str]:
    """Frames [T, H, W, 3] of raw latents, all decoded together, and a word on how.

    Works like the host's decode (loads the VAE, frees other models), but never cuts the orbit into
    chunks that do not know of each other. Only where memory is too short even for one frame in work
    does it blend overlapping chunks, with a warning: what was sampled is not lost.
    """
    decoder = getattr(vae.first_stage_model, "decoder", None)
    if not isinstance(decoder, VideoDecoder) or decoder.time_mode != "conv-only":
        return vae.decode(latents), "frame by frame (this VAE has no temporal decoder)"
    count = len(latents)
    whole = decode_bytes(tuple(latents.shape), vae.vae_dtype, frames_per_slice or count)
    model_management.load_models_gpu([vae.patcher], memory_required=whole, force_full_load=True)
    _finish_loading(vae, decoder)
    free = vae.patcher.get_free_memory(vae.device)
    plan = plan_decode(latents, vae.vae_dtype, vae.device, frames_per_slice, free)
    while (frames := _try_decode(vae, decoder, latents, plan)) is None:
        smaller = plan.smaller()
        log.warning("out of memory decoding %s; trying %s", plan, smaller)
        model_management.soft_empty_cache()
        plan = smaller or plan
    if not plan.together:
        log.warning("decoded %s: frames differ slightly from those of a larger device", plan)
    return frames, str(plan)


def _finish_loading(vae, decoder) -> None:
    """Bring the decoder's last convolution to the device.

    A host that is told to keep weights in main memory (--novram) leaves it behind: it holds another
    layer, and only layers without any are cast while they run. Core's VAE Decode fails there.
    """
    last = decoder.conv_out
    if not vae.patcher.is_dynamic() and last.weight.device != vae.device:
        last.to(vae.device)


def _try_decode(vae, decoder, latents: Tensor, plan: DecodePlan) -> Tensor | None:
    """The frames, or None when memory ran out and less may be tried."""
    check = model_management.throw_exception_if_processing_interrupted
    try:
        with model_management.cuda_device_context(vae.device):
            z = latents.to(vae.device, vae.vae_dtype)
            if plan.together and not plan.whole:
                layers = sgm_decoder_layers(decoder)
                pictures = decode_in_slices(layers, z, plan.frames, check)
            else:
                decode = vae.first_stage_model.decode
                with interruptible(decoder, check):
                    pictures = decode(z) if plan.whole else decode_in_chunks(decode, z, plan.frames)
            pictures = pictures.to(vae.output_device, torch.float32, copy=True)
    except Exception as error:
        if not model_management.is_oom(error) or plan.smaller() is None:
            raise
        return None
    return vae.process_output(pictures).movedim(1, -1)
