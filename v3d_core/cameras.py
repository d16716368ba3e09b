"""Orbits, rays, projection and the conversions between frames (see `docs/conventions.md`)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .structures import Cameras, GaussianSplats


@dataclass(frozen=True)
class Orbit:
    """Cameras on a circle about +Y that look at the origin."""

    num_views: int = 18  # V3D scripts/pub/V3D_512.py: 18 frames
    radius: float = 2.0  # scene units; V3D recon/arguments: radius 2.0
    elevation_deg: float = 0.0  # positive above; V3D: 0
    azimuth_start_deg: float = 0.0  # azimuth of view 0; 0 is on +Z
    azimuth_step_deg: float | None = None  # None: 360 / num_views, counter-clockwise from above
    fov_y_deg: float = 60.0  # vertical; V3D recon/arguments: fov 60

    def __post_init__(self) -> None:
        if self.num_views < 1:
            raise ValueError(f"Orbit: num_views must be at least 1, got {self.num_views}")
        if not self.radius > 0:
            raise ValueError(f"Orbit: radius must be positive, got {self.radius}")
        if not 0 < self.fov_y_deg < 180:
            raise ValueError(f"Orbit: fov_y_deg must lie between 0 and 180, got {self.fov_y_deg}")
        if not -90 < self.elevation_deg < 90:
            raise ValueError(
                f"Orbit: elevation_deg must lie between -90 and 90, got {self.elevation_deg}"
            )

    @property
    def azimuths_deg(self) -> list[float]:
        """Azimuth of every view; the first view is not repeated at the end."""
        step = 360.0 / self.num_views if self.azimuth_step_deg is None else self.azimuth_step_deg
        return [self.azimuth_start_deg + step * k for k in range(self.num_views)]


V3D_ORBIT = Orbit()


def radius_of_equal_size(fov_y_deg: float) -> float:
    """Distance at which the frame's half height at the origin is V3D's, 2 tan(30 deg).

    Scale is free when only the field of view is known; this way scenes of all presets have the
    same size.
    """
    v3d = V3D_ORBIT.radius * math.tan(math.radians(V3D_ORBIT.fov_y_deg / 2))
    return v3d / math.tan(math.radians(fov_y_deg / 2))


# SV3D (arXiv 2403.12008, generative-models simple_video_sample.py): 21 frames of fov 33.8 degrees,
# the input picture is the LAST frame, so frame k stands at (k + 1) * 360 / 21.
SV3D_FOV_DEG = 33.8
SV3D_ORBIT = Orbit(
    num_views=21,
    radius=radius_of_equal_size(SV3D_FOV_DEG),
    azimuth_start_deg=360.0 / 21,
    fov_y_deg=SV3D_FOV_DEG,
)

ORBIT_PRESETS: dict[str, Orbit] = {"v3d": V3D_ORBIT, "sv3d": SV3D_ORBIT}


def arc_orbit(
    num_views: int, arc_deg: float, fov_y_deg: float, elevation_deg: float = 0.0
) -> Orbit:
    """Views from azimuth 0 to `arc_deg`, both ends included: at 360 the last repeats the first.

    ComfyUI's SV3D_Conditioning asks SV3D_p for such views, azimuth k * 360 / (n - 1), though the
    model was trained on the steps of `SV3D_ORBIT`. A video whose cameras nobody states (SVD) is
    described by how far its last frame has come.

    Args:
        num_views: At least 2.
        arc_deg: From the first view to the last; negative is clockwise seen from above.
        fov_y_deg: Vertical field of view, degrees.
        elevation_deg: Of all views, positive above.
    """
    if num_views < 2:
        raise ValueError(f"an arc has at least 2 views, got {num_views}")
    if not 0 < abs(arc_deg) <= 360:
        raise ValueError(
            f"the arc is {arc_deg:g} degrees; it must lie between -360 and 360 and not be 0, "
            "because cameras at one place see no depth"
        )
    return Orbit(
        num_views=num_views,
        radius=radius_of_equal_size(fov_y_deg),
        elevation_deg=elevation_deg,
        azimuth_step_deg=arc_deg / (num_views - 1),
        fov_y_deg=fov_y_deg,
    )


def orbit_cameras(orbit: Orbit, width: int, height: int) -> Cameras:
    """Cameras of an orbit: `position = r (cos el sin az, sin el, cos el cos az)`, target origin."""
    azimuth = torch.tensor(orbit.azimuths_deg, dtype=torch.float64).deg2rad()
    elevation = torch.full_like(azimuth, orbit.elevation_deg).deg2rad()
    sin_az, cos_az, sin_el, cos_el = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    zero = torch.zeros_like(azimuth)
    right = torch.stack([cos_az, zero, -sin_az], dim=-1)
    down = torch.stack([sin_el * sin_az, -cos_el, sin_el * cos_az], dim=-1)
    forward = torch.stack([-cos_el * sin_az, -sin_el, -cos_el * cos_az], dim=-1)
    camera_to_world = torch.eye(4, dtype=torch.float64).repeat(len(azimuth), 1, 1)
    camera_to_world[:, :3, :3] = torch.stack([right, down, forward], dim=-1)
    camera_to_world[:, :3, 3] = -orbit.radius * forward
    K = intrinsics_from_fov(math.radians(orbit.fov_y_deg), width, height)
    return Cameras(
        camera_to_world.float(), K.expand(len(azimuth), 3, 3).contiguous(), width, height
    )


def intrinsics_from_fov(fov_y: float, width: int, height: int) -> Tensor:  # [3, 3]
    """Intrinsics of square pixels and a centred principal point; `fov_y` in radians."""
    focal = 0.5 * height / math.tan(0.5 * fov_y)
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def look_at(
    position: Tensor,  # [V, 3]
    target: Tensor,  # [V, 3] or [3]
    up: Tensor | None = None,  # [3]
) -> Tensor:  # [V, 4, 4]
    """OpenCV camera-to-world poses at `position` that look at `target`, head towards `up` (+Y)."""
    up = position.new_tensor([0.0, 1.0, 0.0]) if up is None else up.to(position)
    forward = torch.nn.functional.normalize(target - position, dim=-1)
    right = torch.linalg.cross(forward, up.expand_as(forward))
    length = right.norm(dim=-1, keepdim=True)
    if bool((length < 1e-6).any()):
        raise ValueError("look_at: a viewing direction is parallel to `up`; pass another `up`")
    right = right / length
    down = torch.linalg.cross(forward, right)
    poses = torch.eye(4, dtype=position.dtype, device=position.device).repeat(len(position), 1, 1)
    poses[:, :3, :3] = torch.stack([right, down, forward], dim=-1)
    poses[:, :3, 3] = position
    return poses


def flip_camera_yz(camera_to_world: Tensor) -> Tensor:  # [..., 4, 4] -> [..., 4, 4]
    """OpenCV camera axes to OpenGL axes (x right, y up, -z forward), and back."""
    return camera_to_world * camera_to_world.new_tensor([1.0, -1.0, -1.0, 1.0])


def resize_cameras(cameras: Cameras, width: int, height: int) -> Cameras:
    """The same cameras for pictures resampled to another size (pixel centres stay at +0.5)."""
    scale = cameras.K.new_tensor([width / cameras.width, height / cameras.height, 1.0])
    return dataclasses.replace(cameras, K=cameras.K * scale[:, None], width=width, height=height)


def camera_rays(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Rays through all pixel centres.

    Returns:
        Origins in world units and directions with unit z in camera axes, so that
        `origin + depth * direction` is the point at that depth. [V, H, W, 3] each
    """
    device, dtype = cameras.device, cameras.K.dtype
    y, x = torch.meshgrid(
        torch.arange(cameras.height, device=device, dtype=dtype) + 0.5,
        torch.arange(cameras.width, device=device, dtype=dtype) + 0.5,
        indexing="ij",
    )
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # [H, W, 3]
    pixel_to_world = cameras.camera_to_world[:, :3, :3] @ torch.linalg.inv(cameras.K)
    directions = torch.einsum("vij,hwj->vhwi", pixel_to_world, pixels)
    origins = cameras.centres[:, None, None].expand_as(directions)
    return origins, directions


def project_points(
    points: Tensor,  # [N, 3]
    cameras: Cameras,
) -> tuple[Tensor, Tensor]:
    """Pixel coordinates and depths of world points in every camera.

    Returns:
        Pixels [V, N, 2] and depths along the optical axis [V, N]; pixels of points with depth
        <= 0 are meaningless, so look at the depth first.
    """
    world_to_camera = cameras.world_to_camera
    in_camera = torch.einsum("vij,nj->vni", world_to_camera[:, :3, :3], points)
    in_camera = in_camera + world_to_camera[:, None, :3, 3]
    depth = in_camera[..., 2]
    homogeneous = torch.einsum("vij,vnj->vni", cameras.K, in_camera)
    safe_depth = torch.where(depth.abs() < 1e-9, torch.full_like(depth, 1e-9), depth)
    return homogeneous[..., :2] / safe_depth[..., None], depth


# Signs that turn SH coefficients by 180 degrees about X, exact, standard 3DGS order:
# (-1)^(l+m) for m >= 0 and (-1)^(l+|m|+1) for m < 0.
SPLAT_FRAME_SH_SIGNS = (1, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1)


def flip_splat_frame(splats: GaussianSplats) -> GaussianSplats:
    """World frame to splat frame `(x, -y, -z)`, or back: the turn is its own inverse.

    Core's SPLAT socket and every 3DGS .ply are in the splat frame; nothing else is.
    """
    signs = splats.sh.new_tensor(SPLAT_FRAME_SH_SIGNS[: splats.sh.shape[1]])
    return GaussianSplats(
        means=splats.means * splats.means.new_tensor([1.0, -1.0, -1.0]),
        scales=splats.scales,
        # (0,1,0,0) * q * (0,1,0,0)^-1 names the same ellipsoid and keeps identity as identity
        quats=splats.quats * splats.quats.new_tensor([1.0, 1.0, -1.0, -1.0]),
        opacities=splats.opacities,
        sh=splats.sh * signs[:, None],
    )


def world_from_v3d(points: Tensor) -> Tensor:  # [..., 3] -> [..., 3]
    """World coordinates of points from the original V3D code, which has +Z up: (y, z, x)."""
    return points[..., [1, 2, 0]]
