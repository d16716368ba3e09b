"""V3D Conditioning and V3D Sample Orbit: one picture becomes the frames of an orbit."""

from __future__ import annotations

import json
import math
import time

import torch
from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..v3d_core.cameras import Orbit, orbit_cameras
from ..v3d_core.diffusion.bundled import chosen_numbers
from ..v3d_core.diffusion.conditioning import VAE_MODES, ConditioningConfig
from ..v3d_core.diffusion.edm import SamplerConfig
from ..v3d_core.diffusion.guidance import GUIDANCE_KINDS, Guidance
from ..v3d_core.images import contact_sheet
from ..v3d_core.pose_views import pose_views
from ..v3d_core.report import peak_memory_mib
from ..v3d_core.structures import Cameras, Views
from .convert import to_host
from .host_diffusion import (
    check_model,
    condition_picture,
    decode_latents,
    host_conditioning,
    sample_latents,
    trained_for,
)
from .runtime import NodeProgress, log, named_errors, tell
from .sockets import V3DViews
from .turntable import turn_frames

NAME = "V3D Sample Orbit"
MAX_SEED = 0xFFFFFFFFFFFFFFFF
OF_THE_MODEL = 0  # as steps or scale: the number that the model was made for
SHEET_COLUMNS = 6  # of the preview: 18 frames in three rows
PREVIEW_INTERVAL_S = 1.0  # each picture makes the device wait, so not too many


def _picture_inputs() -> list[io.Input]:
    return [
        io.ClipVision.Input("clip_vision", tooltip="The image encoder, from V3D Load Model."),
        io.Vae.Input("vae", tooltip="The autoencoder with the temporal decoder."),
        io.Image.Input(
            "image",
            tooltip="One square picture of the object on white, as V3D Prepare Image makes it. V3D "
            "was trained on 512x512; for V3D-nano any size becomes 128x128. It becomes frame 0.",
        ),
    ]


def _number_inputs() -> list[io.Input]:
    """The numbers V3D was tuned with; their order is part of saved workflows."""
    defaults = ConditioningConfig()
    return [
        io.Int.Input(
            "frames",
            default=defaults.num_frames,
            min=1,
            max=128,
            advanced=True,
            tooltip="Frames of the full turn. V3D was trained on 18; others drift. Time and memory "
            "grow in proportion.",
        ),
        io.Float.Input(
            "fps_id",
            default=defaults.fps_id,
            min=0.0,
            max=1000.0,
            step=1.0,
            advanced=True,
            tooltip="V3D's number for frames per second; core's fps is this plus 1. Leave at 1.",
        ),
        io.Float.Input(
            "motion_bucket_id",
            default=defaults.motion_bucket_id,
            min=0.0,
            max=1023.0,
            step=1.0,
            advanced=True,
            tooltip="V3D was tuned with 300. It is no speed control here.",
        ),
        io.Float.Input(
            "cond_aug",
            default=defaults.cond_aug,
            min=0.0,
            max=10.0,
            step=0.01,
            advanced=True,
            tooltip="Noise on the picture's latent. More lets frame 0 drift from the picture and "
            "hides its compression artefacts; V3D takes 0.02.",
        ),
        io.Combo.Input(
            "vae_mode",
            options=list(VAE_MODES),
            default=defaults.vae_mode,
            advanced=True,
            tooltip="mode: the picture's most likely latent. sample: a random one around it, as "
            "the original V3D; the difference is hardly visible.",
        ),
    ]


def _seed_input(text: str) -> io.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=text,
    )


class V3DConditioning(io.ComfyNode):
    """V3D's conditioning for the host's own samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DConditioning",
            display_name="V3D Conditioning",
            category="3d/V3D",
            description="What V3D's model is told about a picture, for core's KSampler: sampler "
            "euler, scheduler karras, cfg 3.5, 25 steps (V3D-nano: cfg 1, 6 steps), denoise 1. V3D "
            "Sample Orbit does all of it in one node.",
            search_aliases=["svd conditioning", "img2vid", "orbit conditioning", "image to 3d"],
            inputs=[
                *_picture_inputs(),
                _seed_input(
                    "Of the noise on the picture's latent (cond_aug). With the same seed here and "
                    "in KSampler the orbit is that of V3D Sample Orbit."
                ),
                *_number_inputs(),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The picture."),
                io.Conditioning.Output("negative", tooltip="No picture, the same numbers."),
                io.Latent.Output("latent", tooltip="An empty latent for each frame."),
            ],
        )

    @classmethod
    @named_errors
    def execute(cls, clip_vision, vae, image, seed, **numbers) -> io.NodeOutput:
        config = config_from_widgets(**numbers)
        condition = condition_picture(clip_vision, vae, image, config, seed)
        positive, negative = host_conditioning(condition)
        samples = condition.latent.new_zeros(config.num_frames, *condition.latent.shape[1:])
        return io.NodeOutput(positive, negative, {"samples": samples})


class V3DSampleOrbit(io.ComfyNode):
    """Conditioning, sampling, decoding and cameras in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        guidance = Guidance()
        return io.Schema(
            node_id="V3DSampleOrbit",
            display_name=NAME,
            category="3d/V3D",
            has_intermediate_output=True,
            description="Turns a camera around the object of one picture: 18 frames with their "
            "cameras, ready for V3D Fit Splat. Shows the orbit while it samples.",
            search_aliases=["image to 3d", "multiview", "orbit", "turntable", "novel views", "svd"],
            inputs=[
                io.Model.Input("model", tooltip="From V3D Load Model, LoRAs and patches included."),
                *_picture_inputs(),
                _seed_input(
                    "Another seed gives another back of the object. The same seed gives the same "
                    "orbit on the same device."
                ),
                io.Int.Input(
                    "steps",
                    default=OF_THE_MODEL,
                    min=OF_THE_MODEL,
                    max=200,
                    tooltip="Evaluations of the network; time grows in proportion, fewer make a "
                    "coarser orbit. 0 = the model's own: 25 for V3D, 6 for V3D-nano.",
                ),
                io.Combo.Input(
                    "guidance",
                    options=list(GUIDANCE_KINDS),
                    default=guidance.kind,
                    tooltip="constant: scale in every frame, as V3D. linear: from min_scale in "
                    "frame 0 to scale in the last, as SVD. triangle: from min_scale up to scale at "
                    "the back and down again, as SV3D.",
                ),
                io.Float.Input(
                    "scale",
                    default=float(OF_THE_MODEL),
                    min=float(OF_THE_MODEL),
                    max=100.0,
                    step=0.1,
                    tooltip="How strictly frames follow the picture; far too high oversaturates. "
                    "0 = the model's own: 3.5 for V3D, 1 for V3D-nano. V3D takes up to 4.5.",
                ),
                io.Float.Input(
                    "min_scale",
                    default=guidance.min_scale,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="The lowest guidance of linear and triangle; constant ignores it.",
                ),
                io.Int.Input(
                    "decode_frames",
                    default=0,
                    min=0,
                    max=128,
                    advanced=True,
                    tooltip="Frames the decoder works on at a time. Fewer takes less memory and a "
                    "little longer; the frames are the same. 0 = as many as fit.",
                ),
                *_number_inputs(),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The frames; frame 0 shows the picture's side."),
                V3DViews.Output("views", tooltip="The frames with masks and cameras."),
                io.String.Output("report", tooltip="Seconds, memory and settings as JSON."),
            ],
        )

    @classmethod
    @named_errors
    def execute(
        cls,
        model,
        clip_vision,
        vae,
        image,
        seed,
        steps,
        guidance,
        scale,
        min_scale,
        decode_frames,
        **numbers,
    ) -> io.NodeOutput:
        config = config_from_widgets(**numbers)
        check_model(model)
        trained = trained_for(vae)
        steps, scale, own = chosen_numbers(trained, _given(steps), _given(scale))
        sampler, guide = SamplerConfig(steps=steps), Guidance(guidance, scale, min_scale)
        if own:
            tell(NAME, " ".join(own))
        progress = OrbitProgress(model, sampler, guide)
        condition = condition_picture(clip_vision, vae, image, config, seed)
        latents = sample_latents(model, condition, sampler, guide, seed, progress.sampled)
        progress.decoding(config.num_frames)
        frames, decoded = decode_latents(vae, latents, decode_frames)
        advice = [] if trained is None else trained.advice(frames.shape[1], guide)
        report = progress.finish(frames, decoded, [*own, *advice])
        return io.NodeOutput(
            to_host(frames),
            views_or_reason(frames),
            json.dumps(report, indent=2),
            ui=turn_frames(frames, cameras_of(frames)),
        )


def _given(number: float) -> float | None:
    """A widget's number, or None where the model's own is asked for."""
    return None if number == OF_THE_MODEL else number


def config_from_widgets(frames: int, **numbers) -> ConditioningConfig:
    """The conditioning's settings from the widgets of `_number_inputs`."""
    return ConditioningConfig(num_frames=frames, **numbers)


def views_or_reason(frames: Tensor) -> Views | ExecutionBlocker:  # [T, H, W, 3]
    """Posed views of an orbit; where no object can be cut out, what says so to the nodes behind.

    The frames themselves took long and are handed on in any case.
    """
    try:
        posed = pose_views(frames, cameras_of(frames))
    except ValueError as error:
        reason = f"{NAME}: the frames have no views: {error}"
        log.warning(reason)
        return ExecutionBlocker(reason)
    for warning in posed.warnings:
        log.info("%s: %s", NAME, warning)
    return posed.views


def cameras_of(frames: Tensor) -> Cameras:  # [T, H, W, 3]
    """The cameras of a V3D orbit with so many frames."""
    count, height, width, _ = frames.shape
    return orbit_cameras(Orbit(num_views=count), width, height)


class OrbitProgress:
    """The node's bar, its picture of the orbit so far, and the figures at the end."""

    def __init__(self, model, sampler: SamplerConfig, guidance: Guidance) -> None:
        self._bar = NodeProgress(True, PREVIEW_INTERVAL_S)
        self._steps, self._scale = sampler.steps, guidance.scale
        self._device = model.load_device
        self._factors = getattr(model.model.latent_format, "latent_rgb_factors", None)
        self._started = self._sampled = time.monotonic()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def sampled(self, step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        """Show one step; called by the sampler."""
        self._bar(step + 1, self._steps + 1, lambda: self._sheet(denoised), "sampling the orbit")

    def decoding(self, frames: int) -> None:
        """Say that the steps are done."""
        self._sampled = time.monotonic()
        tell(NAME, f"decoding {frames} frames")

    def finish(self, frames: Tensor, decoded: str, notes: list[str]) -> dict:
        """Fill the bar, print the figures, and return them."""
        done = time.monotonic()
        self._bar(self._steps + 1, self._steps + 1, lambda: self._finished_sheet(frames))
        report = {
            "frames": len(frames),
            "width": frames.shape[2],
            "height": frames.shape[1],
            "steps": self._steps,
            "scale": self._scale,
            "seconds_sampling": round(self._sampled - self._started, 2),
            "seconds_decoding": round(done - self._sampled, 2),
            "decoded": decoded,
            "device": str(self._device),
            "notes": notes,
        }
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / 2**20
            report["peak_cuda_mib"] = round(peak)
        else:
            report["peak_resident_mib"] = round(peak_memory_mib())
        peak = report.get("peak_cuda_mib", report.get("peak_resident_mib"))
        tell(
            NAME,
            f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]} in "
            f"{done - self._started:.1f} s, decoded {decoded}, peak memory {peak} MiB"
            + "".join(f". {note}" for note in notes),
        )
        return report

    def _sheet(self, denoised: Tensor) -> Tensor:
        """All frames of latents in false colours, the host's own approximation of the decoder."""
        if self._factors is None:
            return contact_sheet(denoised[:, :3].float().cpu().movedim(1, -1), SHEET_COLUMNS)
        factors = torch.tensor(self._factors)
        colours = denoised.float().cpu().movedim(1, -1) @ factors
        return contact_sheet(((colours + 1) / 2).clamp(0, 1), SHEET_COLUMNS, gap=1)

    def _finished_sheet(self, frames: Tensor) -> Tensor:
        step = max(1, math.ceil(frames.shape[2] / 128))
        return contact_sheet(frames[:, ::step, ::step].cpu(), SHEET_COLUMNS, gap=1)
