"""The kinds of orbit models: V3D's, which is SVD's network, and SV3D's two.

All share one architecture. They differ in the numbers that the network is told beside the picture,
and in the orbits they make (generative-models: simple_video_sample.py, sv3d_u.yaml, sv3d_p.yaml).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import SV3D_ORBIT, V3D_ORBIT, Orbit
from .conditioning import ConditioningConfig
from .edm import SamplerConfig
from .guidance import Guidance
from .layout import UNetShape

MAX_PERIOD = 10_000.0  # of the sinusoids; Ho et al. 2020, generative-models timestep_embedding
# Sinusoids of each number a network may be told; generative-models svd.yaml and sv3d_p.yaml.
CHANNELS = {"fps_id": 256, "motion_bucket_id": 256, "cond_aug": 256, "polar": 512, "azimuth": 512}


@dataclass(frozen=True)
class OrbitFamily:
    """What models of one kind are told, and what they make.

    Attributes:
        name: What they are called in messages.
        told: The numbers in the vector that the network is told, in their order.
        size: Side of the frames they were trained on, px.
        steps: Of the sampler.
        guidance: Of the sampler.
        frames: Of an orbit.
        cond_aug: Noise on the picture.
        cameras: Their orbit.
        ends_with_picture: The last frame stands at azimuth 0 and is the picture itself, not what
            the network drew; else the first frame stands there.
        any_height: They make orbits at other elevations than 0.
    """

    name: str
    told: tuple[str, ...]
    size: int
    steps: int
    guidance: Guidance
    frames: int
    cond_aug: float
    cameras: Orbit
    ends_with_picture: bool
    any_height: bool

    @property
    def vector_channels(self) -> int:
        """Values of the vector that the network is told."""
        return sum(CHANNELS[name] for name in self.told)

    def orbit(self, num_frames: int, elevation_deg: float = 0.0) -> Orbit:
        """The cameras of an orbit of so many frames.

        Raises:
            ValueError: These models make no orbit at this elevation.
        """
        if elevation_deg != 0 and not self.any_height:
            raise ValueError(
                f"elevation is {elevation_deg:g} degrees, but {self.name} turns around an object at "
                "elevation 0 only; set it to 0, or load sv3d_p.safetensors, which is told of it"
            )
        return dataclasses.replace(
            self.cameras,
            num_views=num_frames,
            elevation_deg=elevation_deg,
            azimuth_start_deg=360.0 / num_frames if self.ends_with_picture else 0.0,
        )

    def angles_deg(self, config: ConditioningConfig) -> tuple[list[float], list[float]]:
        """Elevation and azimuth, in [0, 360), of every frame."""
        orbit = self.orbit(config.num_frames, config.elevation_deg)
        # not the orbit's own sums: 360 less a rounding has other sinusoids than 0
        azimuths = [
            (k + self.ends_with_picture) * 360.0 / orbit.num_views % 360.0
            for k in range(orbit.num_views)
        ]
        return [orbit.elevation_deg] * orbit.num_views, azimuths

    def vectors(self, config: ConditioningConfig) -> Tensor:  # [T, vector_channels]
        """What the network is told of every frame."""
        elevations, azimuths = self.angles_deg(config)
        numbers = {
            "polar": [math.radians(90.0 - elevation) for elevation in elevations],
            "azimuth": [math.radians(azimuth) for azimuth in azimuths],
        }
        for name in ("fps_id", "motion_bucket_id", "cond_aug"):
            numbers[name] = [getattr(config, name)] * config.num_frames
        return torch.cat(
            [sinusoids(torch.tensor(numbers[name]), CHANNELS[name]) for name in self.told], dim=1
        )


def sinusoids(numbers: Tensor, channels: int) -> Tensor:  # [N] -> [N, channels]
    """Cosines, then sines, of a number at falling frequencies (Ho et al. 2020)."""
    half = channels // 2
    rates = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32) / half)
    phases = numbers.float()[:, None] * rates
    return torch.cat([phases.cos(), phases.sin()], dim=1)


V3D = OrbitFamily(
    name="V3D",
    told=("fps_id", "motion_bucket_id", "cond_aug"),
    size=512,  # V3D_512.yaml
    steps=SamplerConfig.steps,
    guidance=Guidance(),
    frames=ConditioningConfig.num_frames,
    cond_aug=ConditioningConfig.cond_aug,
    cameras=V3D_ORBIT,
    ends_with_picture=False,
    any_height=False,
)
SV3D_U = OrbitFamily(  # generative-models: sv3d_u.yaml; sizes and numbers simple_video_sample.py
    name="SV3D_u",
    told=("cond_aug",),
    size=576,
    steps=50,
    guidance=Guidance("triangle", scale=2.5, min_scale=1.0),
    frames=SV3D_ORBIT.num_views,
    cond_aug=1e-5,  # there on the pixels; this little does not matter on either side
    cameras=SV3D_ORBIT,
    ends_with_picture=True,
    any_height=True,  # that of the picture, whatever it is: it is not told
)
SV3D_P = dataclasses.replace(SV3D_U, name="SV3D_p", told=("cond_aug", "polar", "azimuth"))
FAMILIES = (V3D, SV3D_U, SV3D_P)


def family_of(shape: UNetShape) -> OrbitFamily:
    """The kind of model that a network is, by the length of the vector it takes.

    Raises:
        KeyError: None of them.
    """
    return {family.vector_channels: family for family in FAMILIES}[shape.vector_channels]
