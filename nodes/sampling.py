"""V3D Conditioning and V3D Sample Orbit: one picture becomes the frames of an orbit."""

from __future__ import annotations

import json

from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..v3d_core.cameras import orbit_cameras
from ..v3d_core.diffusion.conditioning import VAE_MODES, ConditioningConfig
from ..v3d_core.diffusion.families import OrbitFamily
from ..v3d_core.diffusion.guidance import GUIDANCE_KINDS, Guidance
from ..v3d_core.diffusion.orbit import OrbitConfig, with_picture
from ..v3d_core.diffusion.settings import advice, chosen_config
from ..v3d_core.pose_views import pose_views
from ..v3d_core.structures import Cameras, Views
from .convert import to_host
from .host_diffusion import (
    condition_picture,
    decode_latents,
    family_of_model,
    family_of_vae,
    host_conditioning,
    picture_for,
    sample_latents,
    trained_for,
)
from .orbit_progress import NAME, OrbitProgress
from .runtime import log, named_errors, tell
from .sockets import V3DViews
from .turntable import turn_frames

MAX_SEED = 0xFFFFFFFFFFFFFFFF
OF_THE_MODEL = 0  # as steps, scale or frames: the number that the model was made for
NOISE_OF_THE_MODEL = -1  # as cond_aug, where 0 is a number of its own
AUTO = "auto"


def _picture_inputs() -> list[io.Input]:
    return [
        io.ClipVision.Input("clip_vision", tooltip="The image encoder, from V3D Load Model."),
        io.Vae.Input("vae", tooltip="The autoencoder with the temporal decoder."),
        io.Image.Input(
            "image",
            tooltip="One square picture of the object on white, as V3D Prepare Image makes it. V3D "
            "was trained on 512x512, SV3D on 576x576; for V3D-nano any size becomes 128x128. It "
            "becomes frame 0, SV3D's last one.",
        ),
    ]


def _number_inputs() -> list[io.Input]:
    """The numbers V3D was tuned with; their order is part of saved workflows."""
    defaults = ConditioningConfig()
    return [
        io.Int.Input(
            "frames",
            default=OF_THE_MODEL,
            min=OF_THE_MODEL,
            max=128,
            advanced=True,
            tooltip="Frames of the full turn. 0 = the model's own: V3D was trained on 18, SV3D on "
            "21; others drift. Time and memory grow in proportion.",
        ),
        io.Float.Input(
            "fps_id",
            default=defaults.fps_id,
            min=0.0,
            max=1000.0,
            step=1.0,
            advanced=True,
            tooltip="V3D's number for frames per second; core's fps is this plus 1. Leave at 1. "
            "SV3D has none.",
        ),
        io.Float.Input(
            "motion_bucket_id",
            default=defaults.motion_bucket_id,
            min=0.0,
            max=1023.0,
            step=1.0,
            advanced=True,
            tooltip="V3D was tuned with 300. It is no speed control here. SV3D has none.",
        ),
        io.Float.Input(
            "cond_aug",
            default=float(NOISE_OF_THE_MODEL),
            min=float(NOISE_OF_THE_MODEL),
            max=10.0,
            step=0.01,
            advanced=True,
            tooltip="Noise on the picture's latent. More lets frame 0 drift from the picture and "
            "hides its compression artefacts. -1 = the model's own: 0.02 for V3D, next to none "
            "for SV3D.",
        ),
        io.Combo.Input(
            "vae_mode",
            options=list(VAE_MODES),
            default=defaults.vae_mode,
            advanced=True,
            tooltip="mode: the picture's most likely latent. sample: a random one around it, as "
            "the original V3D; the difference is hardly visible.",
        ),
        io.Float.Input(
            "elevation",
            default=defaults.elevation_deg,
            min=-89.0,
            max=89.0,
            step=0.5,
            optional=True,  # prompts of before have none
            advanced=True,
            tooltip="SV3D only: the height in degrees that the picture was taken from, positive = "
            "looking down on the object. The orbit stays there. V3D's are at 0.",
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
            "euler, scheduler karras, cfg 3.5, 25 steps (V3D-nano: cfg 1, 6 steps; SV3D: cfg 2.5 "
            "behind core's Video Triangle CFG Guidance, 50 steps), denoise 1. V3D Sample Orbit "
            "does all of it in one node.",
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
        family = family_of_vae(vae)
        config = config_from_widgets(family, vae, **numbers)[0].conditioning
        condition = condition_picture(clip_vision, vae, image, config, seed)
        positive, negative = host_conditioning(condition, family)
        samples = condition.latent.new_zeros(config.num_frames, *condition.latent.shape[1:])
        return io.NodeOutput(positive, negative, {"samples": samples})


class V3DSampleOrbit(io.ComfyNode):
    """Conditioning, sampling, decoding and cameras in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DSampleOrbit",
            display_name=NAME,
            category="3d/V3D",
            has_intermediate_output=True,
            description="Turns a camera around the object of one picture: 18 frames (SV3D: 21) "
            "with their cameras, ready for V3D Fit Splat. Shows the orbit while it samples.",
            search_aliases=[
                "image to 3d",
                "multiview",
                "orbit",
                "turntable",
                "novel views",
                "svd",
                "sv3d",
            ],
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
                    "coarser orbit. 0 = the model's own: 25 for V3D, 50 for SV3D, 6 for V3D-nano.",
                ),
                io.Combo.Input(
                    "guidance",
                    options=[*GUIDANCE_KINDS, AUTO],
                    default=AUTO,
                    tooltip="constant: scale in every frame, as V3D. linear: from min_scale in "
                    "frame 0 to scale in the last, as SVD. triangle: from min_scale up to scale at "
                    "the back and down again, as SV3D. auto: the model's own.",
                ),
                io.Float.Input(
                    "scale",
                    default=float(OF_THE_MODEL),
                    min=float(OF_THE_MODEL),
                    max=100.0,
                    step=0.1,
                    tooltip="How strictly frames follow the picture; far too high oversaturates. "
                    "0 = the model's own: 3.5 for V3D, 2.5 for SV3D, 1 for V3D-nano. V3D takes up "
                    "to 4.5.",
                ),
                io.Float.Input(
                    "min_scale",
                    default=Guidance.min_scale,
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
                io.Image.Output(
                    "images", tooltip="The frames; frame 0, SV3D's last, shows the picture's side."
                ),
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
        family = family_of_model(model)
        config, own = config_from_widgets(
            family,
            vae,
            **numbers,
            steps=_given(steps),
            guidance=None if guidance == AUTO else guidance,
            scale=_given(scale),
            min_scale=min_scale,
            decode_frames=decode_frames,
        )
        if own:
            tell(NAME, " ".join(own))
        progress = OrbitProgress(model, config.sampler, config.guidance)
        condition = condition_picture(clip_vision, vae, image, config.conditioning, seed)
        latents = sample_latents(
            model, condition, config.sampler, config.guidance, seed, progress.sampled
        )
        progress.decoding(config.conditioning.num_frames)
        frames, decoded = decode_latents(vae, latents, config.decode_frames)
        frames = with_picture(frames, picture_for(vae, image), family)
        notes = advice(family, trained_for(vae), frames.shape[1], config)
        report = progress.finish(frames, decoded, [*own, *notes])
        cameras = cameras_of(frames, family, config.conditioning.elevation_deg)
        return io.NodeOutput(
            to_host(frames),
            views_or_reason(frames, cameras),
            json.dumps(report, indent=2),
            ui=turn_frames(frames, cameras),
        )


def _given(number: float) -> float | None:
    """A widget's number, or None where the model's own is asked for."""
    return None if number == OF_THE_MODEL else number


def config_from_widgets(
    family: OrbitFamily,
    vae,
    frames: int,
    cond_aug: float,
    elevation: float = ConditioningConfig.elevation_deg,
    **settings,
) -> tuple[OrbitConfig, list[str]]:
    """An orbit's settings from the widgets, and a word on those that were left to the model."""
    return chosen_config(
        family,
        trained_for(vae),
        frames=_given(frames),
        cond_aug=None if cond_aug == NOISE_OF_THE_MODEL else cond_aug,
        elevation_deg=elevation,
        **settings,
    )


def views_or_reason(
    frames: Tensor,  # [T, H, W, 3]
    cameras: Cameras,
) -> Views | ExecutionBlocker:
    """Posed views of an orbit; where no object can be cut out, what says so to the nodes behind.

    The frames themselves took long and are handed on in any case.
    """
    try:
        posed = pose_views(frames, cameras)
    except ValueError as error:
        reason = f"{NAME}: the frames have no views: {error}"
        log.warning(reason)
        return ExecutionBlocker(reason)
    for warning in posed.warnings:
        log.info("%s: %s", NAME, warning)
    return posed.views


def cameras_of(
    frames: Tensor,  # [T, H, W, 3]
    family: OrbitFamily,
    elevation_deg: float,
) -> Cameras:
    """The cameras that a kind of model turns with."""
    count, height, width, _ = frames.shape
    return orbit_cameras(family.orbit(count, elevation_deg), width, height)
