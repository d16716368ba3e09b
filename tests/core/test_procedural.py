"""The analytic renderer, its objects and the demo orbit shipped with the project."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from v3d_core import procedural
from v3d_core.cameras import Orbit, camera_rays, flip_camera_yz, orbit_cameras
from v3d_core.demo_object import AnalyticObject, demo_robot, sphere_object

SHIPPED = Path(procedural.__file__).parent / "data" / "demo_orbit"


def shipped(name: str) -> np.ndarray:
    return np.asarray(Image.open(SHIPPED / f"{name}.png"))


def redness(rgba: np.ndarray) -> np.ndarray:
    r, g, b, a = (rgba[..., i].astype(float) / 255 for i in range(4))
    return a * (r > 2.5 * g) * (r > 2.5 * b) * (r > 0.3)


def test_sphere_depth_is_the_ray_sphere_intersection():
    cameras = orbit_cameras(Orbit(num_views=3, elevation_deg=20), 48, 40)
    maps = procedural.render_maps(cameras, sphere_object(0.6), supersample=1)
    origins, directions = (rays.double() for rays in camera_rays(cameras))
    a = (directions**2).sum(-1)
    b = (origins * directions).sum(-1)
    discriminant = b**2 - a * ((origins**2).sum(-1) - 0.6**2)
    expected = torch.where(
        discriminant > 0, (-b - discriminant.clamp_min(0).sqrt()) / a, torch.zeros_like(a)
    )
    assert (maps.depths.double() - expected).abs().max() < 1e-4
    hit = maps.depths > 0
    points = (origins + maps.depths[..., None] * directions)[hit]
    assert (maps.normals[hit] - points / 0.6).abs().max() < 1e-3
    assert torch.equal(maps.alphas, hit.float())
    assert (maps.normals[~hit] == 0).all() and (maps.colours[~hit] == 0).all()


def test_alpha_of_a_sphere_sums_to_the_area_of_its_outline():
    cameras = orbit_cameras(Orbit(num_views=1), 64, 64)
    alpha = procedural.render_maps(cameras, sphere_object(0.6), supersample=5).alphas
    focal = float(cameras.K[0, 0, 0])
    radius_px = focal * math.tan(math.asin(0.6 / 2.0))
    assert float(alpha.sum()) == pytest.approx(math.pi * radius_px**2, rel=2e-3)


def test_cones_never_lose_a_ray_that_plain_sphere_tracing_hits(monkeypatch):
    cameras = procedural.demo_cameras(53)[1][[2, 3]]
    with_cones = procedural.render_maps(cameras)
    monkeypatch.setattr(procedural, "CONE_BLOCKS_PX", ())
    monkeypatch.setattr(
        procedural, "_trace_cones", lambda o, m, K, w, h, s: K.new_full((len(K), h, w), 0.5)
    )
    plain = procedural.render_maps(cameras)
    assert torch.equal(with_cones.alphas, plain.alphas)
    assert (with_cones.depths - plain.depths).abs().max() < 1e-4
    assert (with_cones.colours - plain.colours).abs().max() < 1 / 255


def test_views_that_are_traced_together_are_those_traced_alone(monkeypatch):
    cameras = procedural.demo_cameras(24)[1]
    together = procedural.render_maps(cameras)
    monkeypatch.setattr(procedural, "RAYS_AT_ONCE", 1)
    alone = procedural.render_maps(cameras)
    for name in ("colours", "alphas", "depths", "normals"):
        assert torch.equal(getattr(together, name), getattr(alone, name)), name


def test_turning_object_and_cameras_together_turns_nothing_but_the_light():
    cameras = orbit_cameras(Orbit(num_views=4), 40, 40)
    robot = demo_robot()
    quarter = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]], dtype=torch.float64)  # +Z -> +X
    turned = AnalyticObject(
        lambda p: robot.sdf(p @ quarter), lambda p: robot.albedo(p @ quarter), robot.bound
    )
    first = procedural.render_maps(cameras[0], robot)
    second = procedural.render_maps(cameras[1], turned)  # 90 degrees on, seen from +X
    assert (first.alphas - second.alphas).abs().max() < 1e-6
    assert (first.depths - second.depths).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [demo_robot(), sphere_object(0.5)])
def test_distances_change_by_at_most_one_per_unit_and_stay_in_the_bound(shape):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(4000, 3, generator=generator, dtype=torch.float64) * 2 - 1
    offsets = torch.randn(4000, 3, generator=generator, dtype=torch.float64) * 0.05
    change = (shape.sdf(points + offsets) - shape.sdf(points)).abs()
    assert (change <= offsets.norm(dim=-1) * (1 + 1e-9)).all()
    outside = torch.nn.functional.normalize(points, dim=-1) * shape.bound
    assert (shape.sdf(outside) >= -1e-12).all()


def test_object_mesh_of_a_sphere_has_its_area_and_outward_normals():
    mesh = procedural.object_mesh(sphere_object(0.6), resolution=48)
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    cross = torch.linalg.cross(b - a, c - a)
    assert float(cross.norm(dim=-1).sum() / 2) == pytest.approx(4 * math.pi * 0.36, rel=0.01)
    assert ((cross * (a + b + c)).sum(-1) > 0).all()
    assert ((mesh.normals * mesh.vertices).sum(-1) > 0.59).all()


def test_render_object_gives_views_of_the_cameras_it_was_given():
    cameras = orbit_cameras(Orbit(num_views=2), 32, 24)
    views = procedural.render_object(cameras, names=("front", "back"))
    assert views.images.shape == (2, 24, 32, 3) and views.images.dtype == torch.float32
    assert views.names == ("front", "back") and views.cameras is cameras


@pytest.mark.parametrize("supersample", [0, 2, -1])
def test_even_supersampling_is_refused_with_the_number(supersample):
    with pytest.raises(ValueError, match=f"got {supersample}"):
        procedural.render_maps(procedural.demo_cameras(8)[0], supersample=supersample)


@pytest.mark.slow
def test_shipped_frames_are_what_the_renderer_makes():
    train, test = procedural.demo_cameras()
    for name, cameras in (("r_004", train[4]), ("t_003", test[3])):
        made = procedural.rgba8(procedural.render_object(cameras), 0).astype(int)
        assert np.abs(made - shipped(name).astype(int)).max() <= 1, name


@pytest.mark.parametrize(("split", "which"), [("train", 0), ("test", 1)])
def test_shipped_transforms_are_the_demo_cameras(split, which):
    cameras = procedural.demo_cameras()[which]
    transforms = json.loads((SHIPPED / f"transforms_{split}.json").read_text())
    poses = torch.tensor([frame["transform_matrix"] for frame in transforms["frames"]])
    assert (flip_camera_yz(poses) - cameras.camera_to_world).abs().max() < 1e-6
    assert transforms["camera_angle_x"] == pytest.approx(math.pi / 3, abs=1e-6)
    for frame in transforms["frames"]:
        assert shipped(frame["file_path"][2:]).shape == (256, 256, 4)


def test_shipped_orbit_fills_70_percent_of_the_frame():
    alphas = np.stack([shipped(f"r_{i:03d}")[..., 3] > 127 for i in range(18)])
    longest = max(np.ptp(np.nonzero(a.any(axis))[0]) + 1 for a in alphas for axis in (0, 1))
    assert longest / 256 == pytest.approx(0.70, abs=0.01)


def test_shipped_folder_stays_small():
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 1.5e6


def test_red_ear_on_plus_x_is_on_the_viewers_right_then_comes_to_the_middle():
    red = [redness(shipped(f"r_{i:03d}")) for i in range(18)]
    middle = [
        float((r * np.arange(0.5, 256)).sum() / r.sum() - 128) if r.sum() > 20 else None
        for r in red
    ]
    assert middle[0] is not None and middle[0] > 20
    assert abs(middle[4]) < 20 and abs(middle[5]) < 20  # azimuths 80 and 100, on either side of +X
    assert middle[2] > middle[4] and middle[5] > middle[7]  # passes from right to left
    assert red[13].sum() < 20 and red[14].sum() < 20  # hidden from -X
