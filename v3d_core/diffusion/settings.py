"""The settings of an orbit: what was asked for, and for the rest what the model was made with."""

from __future__ import annotations

from .bundled import TrainedFor, chosen_numbers
from .conditioning import ConditioningConfig
from .edm import SamplerConfig
from .families import V3D, OrbitFamily
from .guidance import Guidance
from .orbit import OrbitConfig


def chosen_config(
    family: OrbitFamily = V3D,
    trained: TrainedFor | None = None,
    *,
    steps: int | None = None,
    guidance: str | None = None,
    scale: float | None = None,
    min_scale: float = Guidance.min_scale,
    frames: int | None = None,
    cond_aug: float | None = None,
    fps_id: float = ConditioningConfig.fps_id,
    motion_bucket_id: float = ConditioningConfig.motion_bucket_id,
    vae_mode: str = ConditioningConfig.vae_mode,
    elevation_deg: float = ConditioningConfig.elevation_deg,
    decode_frames: int = OrbitConfig.decode_frames,
) -> tuple[OrbitConfig, list[str]]:
    """Settings for a model of a kind; None stands for the model's own.

    Args:
        family: The kind of model.
        trained: What the model's file says about it, if it does.
        steps, guidance, scale, min_scale: Of the sampler, see `SamplerConfig` and `Guidance`.
        frames, cond_aug, fps_id, motion_bucket_id, vae_mode, elevation_deg: See
            `ConditioningConfig`.
        decode_frames: See `OrbitConfig`.

    Returns:
        The settings, and sentences that say which of them were the model's own.

    Raises:
        ValueError: A number is out of range, or the model has no orbit at this elevation.
    """
    steps, scale, said = chosen_numbers(trained, steps, scale, family)
    config = OrbitConfig(
        SamplerConfig(steps=steps),
        Guidance(guidance or family.guidance.kind, scale, min_scale),
        ConditioningConfig(
            num_frames=family.frames if frames is None else frames,
            fps_id=fps_id,
            motion_bucket_id=motion_bucket_id,
            cond_aug=family.cond_aug if cond_aug is None else cond_aug,
            vae_mode=vae_mode,
            elevation_deg=elevation_deg,
        ),
        decode_frames,
    )
    family.orbit(config.conditioning.num_frames, elevation_deg)
    return config, said


def advice(
    family: OrbitFamily, trained: TrainedFor | None, size: int, config: OrbitConfig
) -> list[str]:
    """A sentence for each setting that the model was not made for."""
    if trained is not None:
        return trained.advice(size, config.guidance)
    if family == V3D:  # models of this kind come in several sizes; some say theirs in their file
        return []
    said = []
    if size != family.size:
        said.append(f"{family.name} makes frames of {family.size} px, not of {size} px.")
    if config.conditioning.num_frames != family.frames:
        said.append(
            f"{family.name} makes orbits of {family.frames} frames, not of "
            f"{config.conditioning.num_frames}."
        )
    return said
