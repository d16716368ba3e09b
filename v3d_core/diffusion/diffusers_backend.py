"""The networks through Hugging Face's diffusers and transformers, for use without ComfyUI.

Only their modules are used. Their pipeline puts noise on pixels, ramps the guidance and subtracts 1
from fps; V3D does none of that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import load
from ..progress import Progress, silent
from .checkpoint import read_part
from .conditioning import (
    Conditioning,
    ConditioningConfig,
    augment_latent,
    augmentation_generator,
    clip_pixels,
    latent_from_moments,
)
from .decode import decode_in_chunks, decode_in_slices, diffusers_decoder_layers
from .decode_memory import DecodePlan, plan_decode
from .diffusers_configs import (
    identity_quant_conv,
    image_encoder_settings,
    unet_settings,
    vae_settings,
)
from .families import V3D, OrbitFamily, family_of
from .frame_vectors import FrameVectors
from .guidance import Guidance, guide
from .interrupt import interruptible
from .layout import ClipShape, UNetShape, VaeShape
from .model_files import ModelParts
from .sampler import Denoiser, orbits_denoiser
from .temporal_conv import use_temporal_convs

logger = logging.getLogger(__name__)

NORM_EPS = 1e-5  # of the UNet's residual blocks; diffusers builds some of them with 1e-6
RESIDENT_BYTES = 16 * 2**30  # a device with less free memory holds one network at a time


class DiffusersModel:
    """An orbit model on one device; `condition`, `denoiser` and `decode` are its three doors."""

    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module,
        image_encoder: nn.Module,
        device: torch.device,
        offload: bool = False,
        family: OrbitFamily = V3D,
    ) -> None:
        """Take finished networks; with `offload` each is on the device only while it works."""
        self.family = family
        # diffusers knows SVD's three numbers only, the same for all frames
        self._vectors = None if family == V3D else FrameVectors.of(unet)
        self.unet, self.vae, self.image_encoder = unet, vae, image_encoder
        self.device = device
        vae_parts: list[Any] = [vae.encoder, vae.decoder]
        self._homes = {
            id(net): _Home(net, device, offload) for net in (unet, image_encoder, *vae_parts)
        }

    @contextmanager
    def _at_work(self, network: nn.Module) -> Iterator[None]:
        with self._homes[id(network)].at_work():
            yield

    @torch.inference_mode()
    def condition(
        self, image: Tensor, config: ConditioningConfig, seed: int
    ) -> Conditioning:  # image [1, H, W, 3]
        """Encode a checked picture."""
        generator = augmentation_generator(seed)
        encoder: Any = self.vae.encoder
        with self._at_work(self.image_encoder):
            net: Any = self.image_encoder
            pixels = clip_pixels(image.to(self.device, torch.float32)).to(net.dtype)
            token = net(pixel_values=pixels).image_embeds[:, None].float()
        with self._at_work(encoder):
            dtype = next(encoder.parameters()).dtype
            moments = encoder((image * 2 - 1).movedim(-1, 1).to(self.device, dtype))
        latent = latent_from_moments(moments, config.vae_mode, generator)
        return Conditioning(token, augment_latent(latent, config.cond_aug, generator), config)

    def denoiser(self, condition: Conditioning, guidance: Guidance) -> Denoiser:
        """The UNet with preconditioning and guidance, for `sample_euler`."""
        net: Any = self.unet
        dtype, frames = next(net.parameters()).dtype, condition.config.num_frames
        scales = guidance.scales(frames).to(self.device)
        token, latent = condition.token, condition.latent
        guided = bool((scales != 1).any())  # else the unconditional half would count for nothing
        if guided:
            token = torch.cat([torch.zeros_like(token), token])
            latent = torch.cat([torch.zeros_like(latent), latent])
        latent = latent[:, None].expand(-1, frames, -1, -1, -1)
        numbers = condition.config
        ids = torch.tensor([[numbers.fps_id, numbers.motion_bucket_id, numbers.cond_aug]])
        if self._vectors is not None:
            vectors = self.family.vectors(numbers).to(self.device)
            self._vectors.set(vectors.expand(len(token), -1, -1))
        token, latent = token.to(self.device, dtype), latent.to(self.device, dtype)
        ids = ids.to(self.device)  # stays float32: its sinusoids need the digits
        branches = orbits_denoiser(net, token, latent, ids.expand(len(token), -1))

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            made = branches(x[None].expand(len(token), -1, -1, -1, -1), sigma)  # [uncond, cond]
            return guide(made[0], made[1], scales) if guided else made[0]

        return denoise

    @torch.inference_mode()
    def sample(
        self,
        condition: Conditioning,
        guidance: Guidance,
        run: Callable[[Denoiser], Tensor],
        check: Callable[[], None],
    ) -> Tensor:
        """`run` with the denoiser, while the UNet is on the device."""
        with self._at_work(self.unet), interruptible(self.unet, check):
            return run(self.denoiser(condition, guidance))

    @torch.inference_mode()
    def decode(
        self,
        latents: Tensor,  # [T, 4, h, w]
        frames_per_slice: int = 0,
        progress: Progress = silent,
    ) -> tuple[Tensor, DecodePlan]:  # [T, H, W, 3]
        """Raw latents to pictures in [0, 1] on the CPU, and how they were decoded."""
        decoder: Any = self.vae.decoder
        dtype = next(decoder.parameters()).dtype
        count = len(latents)

        def check() -> None:
            progress(0, count)

        with self._at_work(decoder):
            plan = plan_decode(latents, dtype, self.device, frames_per_slice)
            z = latents.to(self.device, dtype)
            while (pictures := self._try_decode(z, plan, check)) is None:
                smaller = plan.smaller()
                logger.warning("out of memory decoding %s; trying %s", plan, smaller)
                torch.cuda.empty_cache()
                plan = smaller or plan
        pictures = pictures.float().add_(1).div_(2).clamp_(0, 1).movedim(1, -1).cpu()
        if not bool(torch.isfinite(pictures).all()):
            raise RuntimeError(
                f"decoding in {dtype} gave NaN values; use --dtype float32 for more range"
            )
        progress(count, count)
        return pictures, plan

    def _try_decode(
        self, z: Tensor, plan: DecodePlan, check: Callable[[], None]
    ) -> Tensor | None:  # [T, 3, H, W]
        """What the decoder makes of latents, or None when memory ran out and less may be tried."""
        decoder: Any = self.vae.decoder

        def decode(frames: Tensor) -> Tensor:
            return decoder(frames, torch.zeros(1, len(frames), device=frames.device), len(frames))

        try:
            if plan.together and not plan.whole:
                layers = diffusers_decoder_layers(decoder)
                return decode_in_slices(layers, z, plan.frames, check)
            with interruptible(decoder, check):
                return decode(z) if plan.whole else decode_in_chunks(decode, z, plan.frames)
        except torch.OutOfMemoryError:
            if plan.smaller() is None:
                raise
            return None


class _Home:
    """Where a network lives: always on the device, or in main memory when it is not at work."""

    def __init__(self, network: nn.Module, device: torch.device, offload: bool) -> None:
        self._device, self._kept = device, None
        if not (offload and device.type != "cpu"):
            network.to(device)
            return
        tensors = [*network.parameters(), *network.buffers()]
        pin = device.type == "cuda"  # pinned memory travels several times faster
        self._kept = [(t, t.data.pin_memory() if pin else t.data) for t in tensors]
        for tensor, home in self._kept:
            tensor.data = home

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Weights are on the device within; they never change, so nothing travels back."""
        if self._kept is None:
            yield
            return
        try:
            for tensor, home in self._kept:
                tensor.data = home.to(self._device, non_blocking=True)
            yield
        finally:
            for tensor, home in self._kept:
                tensor.data = home
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


def load_diffusers_model(
    parts: ModelParts,
    device: torch.device,
    dtype: torch.dtype | None = None,
    offload: bool | None = None,
    compile_unet: bool = False,
) -> DiffusersModel:
    """Build the three networks from weight files.

    Args:
        parts: Where the networks are.
        device: Where they work.
        dtype: Of UNet, image encoder and decoder; None is float16 on CUDA, else float32. The
            encoder is always float32: it overflows in float16 and takes milliseconds.
        offload: Keep only the network at work on the device; None decides by its free memory.
        compile_unet: Use torch.compile for the UNet: minutes at first, faster steps afterwards.

    Raises:
        MissingPackageError: diffusers or transformers is missing; the text has the line to install.
    """
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    if offload is None:
        offload = device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < RESIDENT_BYTES
    unet, vae, clip = parts.unet.shape, parts.vae.shape, parts.clip.shape
    assert isinstance(unet, UNetShape) and isinstance(vae, VaeShape) and isinstance(clip, ClipShape)
    networks = (build_unet(unet), build_vae(vae), build_image_encoder(clip))
    for network, part in zip(networks, (parts.unet, parts.vae, parts.clip), strict=True):
        state = read_part(part, "diffusers", torch.float32 if part.kind == "vae" else dtype)
        if part.kind == "vae":
            state |= identity_quant_conv(vae)
        network.load_state_dict(state, strict=True, assign=True)
        network.eval().requires_grad_(False)
    networks[1].decoder.to(dtype)
    if compile_unet:
        networks[0].compile()
    logger.info("orbit model on %s in %s, offload %s", device, dtype, offload)
    return DiffusersModel(*networks, device=device, offload=offload, family=family_of(unet))


def build_unet(shape: UNetShape, device: str = "meta") -> Any:
    """diffusers' UNet of these widths: without weights on the meta device, else with random ones."""
    with torch.device(device):
        unet = load("diffusers").UNetSpatioTemporalConditionModel(**unet_settings(shape))
    for block in unet.modules():
        if type(block).__name__ in ("ResnetBlock2D", "TemporalResnetBlock"):
            block.norm1.eps = block.norm2.eps = NORM_EPS
    use_temporal_convs(unet)
    return unet


def build_vae(shape: VaeShape, device: str = "meta") -> Any:
    """diffusers' autoencoder of these widths; `device` as in `build_unet`."""
    with torch.device(device):
        vae = load("diffusers").AutoencoderKLTemporalDecoder(**vae_settings(shape))
    use_temporal_convs(vae)
    return vae


def build_image_encoder(shape: ClipShape, device: str = "meta") -> Any:
    """transformers' image encoder of these widths; `device` as in `build_unet`."""
    transformers = load("transformers")
    config = transformers.CLIPVisionConfig(**image_encoder_settings(shape))
    with torch.device(device):
        network = transformers.CLIPVisionModelWithProjection(config)
    embeddings = network.vision_model.embeddings
    if embeddings.position_ids.is_meta:  # numbers 0, 1, 2, ...; no weight file has them
        embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    return network
