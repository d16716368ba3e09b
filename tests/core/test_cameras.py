"""Orbits, projection and frame conversions against worked-out numbers and invariances."""

import dataclasses
import math

import pytest
import torch

from v3d_core.cameras import (
    SV3D_ORBIT,
    V3D_ORBIT,
    Orbit,
    arc_orbit,
    camera_rays,
    flip_camera_yz,
    flip_splat_frame,
    look_at,
    orbit_cameras,
    project_points,
    resize_cameras,
    world_from_v3d,
)
from v3d_core.sh import eval_sh
from v3d_core.splats.projection import quats_to_rotations
from v3d_core.structures import Cameras, GaussianSplats, Mesh, Views


def test_v3d_orbit_has_the_published_poses_and_intrinsics():
    cameras = orbit_cameras(V3D_ORBIT, 512, 512)
    sin, cos = 0.34202014, 0.93969262  # of 20 degrees
    first = torch.tensor([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2], [0, 0, 0, 1.0]])
    second = torch.tensor(
        [[cos, 0, -sin, 2 * sin], [0, -1, 0, 0], [-sin, 0, -cos, 2 * cos], [0, 0, 0, 1.0]]
    )
    torch.testing.assert_close(cameras.camera_to_world[:2], torch.stack([first, second]))
    assert len(cameras) == 18
    focal = 443.40500674  # 256 / tan(30 degrees)
    expected = torch.tensor([[focal, 0, 256], [0, focal, 256], [0, 0, 1]])
    torch.testing.assert_close(cameras.K[5], expected)


def test_known_point_projects_to_the_published_pixels():
    cameras = orbit_cameras(V3D_ORBIT, 512, 512)
    pixels, depths = project_points(torch.tensor([[0.0, 0.2, 0.5]]), cameras)
    expected = torch.tensor([[256.00, 196.88], [206.45, 198.04], [167.87, 201.16]])
    torch.testing.assert_close(pixels[:3, 0], expected, rtol=0, atol=0.006)
    expected_depths = torch.tensor([1.5, 1.53015, 1.61698])
    torch.testing.assert_close(depths[:3, 0], expected_depths, rtol=0, atol=6e-6)


def test_v3d_z_up_points_enter_by_y_z_x():
    point = torch.tensor([0.5, 0.0, 0.2])
    torch.testing.assert_close(world_from_v3d(point), torch.tensor([0.0, 0.2, 0.5]))


def test_surface_on_the_right_of_the_first_view_faces_views_four_and_five():
    cameras = orbit_cameras(V3D_ORBIT, 512, 512)
    right = torch.tensor([[0.8, 0.0, 0.0]])
    pixels, depths = project_points(right, cameras)
    assert pixels[0, 0, 0] > 256 + 100
    assert set(depths[:, 0].topk(2, largest=False).indices.tolist()) == {4, 5}


def test_opengl_poses_are_rotations_about_y_at_elevation_zero():
    cameras = orbit_cameras(V3D_ORBIT, 64, 64)
    angle = math.radians(20)
    turn = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    )
    torch.testing.assert_close(flip_camera_yz(cameras.camera_to_world)[1, :3, :3], turn)
    twice = flip_camera_yz(flip_camera_yz(cameras.camera_to_world))
    assert torch.equal(twice, cameras.camera_to_world)


def test_orbit_equals_look_at_at_any_elevation():
    orbit = Orbit(num_views=7, radius=3.0, elevation_deg=35.0, azimuth_start_deg=13.0)
    cameras = orbit_cameras(orbit, 32, 48)
    torch.testing.assert_close(
        look_at(cameras.centres, torch.zeros(3)), cameras.camera_to_world, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(cameras.centres.norm(dim=-1), torch.full((7,), 3.0))


def test_orbits_step_from_the_first_view_and_never_repeat_it():
    assert V3D_ORBIT.azimuths_deg == [20.0 * k for k in range(18)]
    clockwise = dataclasses.replace(V3D_ORBIT, azimuth_step_deg=-20.0)
    assert clockwise.azimuths_deg[1] == -20.0
    # SV3D: the input picture is the last frame
    assert len(SV3D_ORBIT.azimuths_deg) == 21
    assert SV3D_ORBIT.azimuths_deg[-1] == pytest.approx(360.0)
    # scenes of both presets have the same size in the picture
    half = SV3D_ORBIT.radius * math.tan(math.radians(SV3D_ORBIT.fov_y_deg / 2))
    assert half == pytest.approx(2 * math.tan(math.radians(30)))


def test_an_arc_has_both_its_ends_and_a_full_one_repeats_the_first_view():
    quarter = arc_orbit(4, -90.0, 40.0, elevation_deg=12.0)
    assert quarter.azimuths_deg == [0.0, -30.0, -60.0, -90.0]
    assert (quarter.elevation_deg, quarter.fov_y_deg) == (12.0, 40.0)
    assert quarter.radius * math.tan(math.radians(20)) == pytest.approx(2 * math.tan(math.pi / 6))
    whole = orbit_cameras(arc_orbit(21, 360.0, 33.8), 64, 64)
    first, last = whole.camera_to_world[0], whole.camera_to_world[20]
    torch.testing.assert_close(first, last, rtol=0, atol=1e-6)
    # the node of ComfyUI adds 360 / (frames - 1) per frame
    assert arc_orbit(21, 360.0, 33.8).azimuths_deg == [18.0 * k for k in range(21)]


@pytest.mark.parametrize(
    ("views", "arc", "message"),
    [
        (1, 90.0, "at least 2 views, got 1"),
        (5, 0.0, "the arc is 0 degrees"),
        (5, 361.0, "the arc is 361 degrees"),
        (5, math.nan, "the arc is nan degrees"),
    ],
)
def test_impossible_arcs_are_refused(views, arc, message):
    with pytest.raises(ValueError, match=message):
        arc_orbit(views, arc, 60.0)


def test_rays_hit_what_projects_to_their_pixel():
    cameras = orbit_cameras(Orbit(num_views=3, elevation_deg=20), 20, 14)
    origins, directions = camera_rays(cameras)
    generator = torch.Generator().manual_seed(0)
    depth = 1 + torch.rand(3, 14, 20, 1, generator=generator)
    points = origins + depth * directions
    for v in range(3):
        pixels, depths = project_points(points[v].reshape(-1, 3), cameras[v])
        y, x = torch.meshgrid(torch.arange(14) + 0.5, torch.arange(20) + 0.5, indexing="ij")
        expected = torch.stack([x, y], dim=-1).reshape(1, -1, 2)
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(depths, depth[v].reshape(1, -1), rtol=0, atol=1e-5)


def test_resized_cameras_see_the_same_at_scaled_pixels():
    cameras = orbit_cameras(V3D_ORBIT, 512, 512)
    small = resize_cameras(cameras, 128, 128)
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    torch.testing.assert_close(
        project_points(points, small)[0] * 4, project_points(points, cameras)[0]
    )


def random_splats(count=30, degree=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1)
    return GaussianSplats(
        torch.randn(count, 3, generator=generator) * 0.3,
        torch.rand(count, 3, generator=generator) * 0.1 + 0.01,
        quats,
        torch.rand(count, generator=generator),
        torch.randn(count, (degree + 1) ** 2, 3, generator=generator) * 0.3,
    )


def test_splat_frame_flip_is_its_own_inverse():
    splats = random_splats()
    twice = flip_splat_frame(flip_splat_frame(splats))
    for name in ("means", "scales", "quats", "opacities", "sh"):
        assert torch.equal(getattr(twice, name), getattr(splats, name))


def test_splat_frame_flip_turns_shape_and_colour_together():
    """Covariance becomes F S F^T, and colour along (x, -y, -z) after is that along d before."""
    splats = random_splats(degree=3)
    flipped = flip_splat_frame(splats)
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))

    def covariances(s):
        axes = quats_to_rotations(s.quats) * s.scales[:, None]
        return axes @ axes.transpose(1, 2)

    torch.testing.assert_close(covariances(flipped), flip @ covariances(splats) @ flip)
    torch.testing.assert_close(flipped.means, splats.means @ flip)
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(4, 30, 3, generator=generator), dim=-1)
    torch.testing.assert_close(
        eval_sh(flipped.sh, directions @ flip), eval_sh(splats.sh, directions)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_views": 0}, "num_views must be at least 1, got 0"),
        ({"radius": -1.0}, "radius must be positive, got -1"),
        ({"fov_y_deg": 180.0}, "between 0 and 180, got 180"),
        ({"elevation_deg": 90.0}, "between -90 and 90, got 90"),
    ],
)
def test_impossible_orbits_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Orbit(**change)


def test_look_at_along_up_is_refused():
    with pytest.raises(ValueError, match="parallel to `up`"):
        look_at(torch.tensor([[0.0, 3.0, 0.0]]), torch.zeros(3))


def views_of(images, masks=None, cameras=None):
    count, height, width = images.shape[:3]
    cameras = cameras or orbit_cameras(Orbit(num_views=count), width, height)
    return Views(images, torch.ones(images.shape[:3]) if masks is None else masks, cameras)


def test_values_that_do_not_fit_together_name_both_numbers():
    cameras = orbit_cameras(Orbit(num_views=18), 8, 8)
    with pytest.raises(ValueError, match="16 images but 18 cameras"):
        views_of(torch.zeros(16, 8, 8, 3), cameras=cameras)
    with pytest.raises(ValueError, match="images are 8x6 but the cameras are made for 8x8"):
        views_of(torch.zeros(18, 6, 8, 3), cameras=cameras)
    bad = torch.zeros(2, 8, 8, 3)
    bad[1, 2, 3, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 384 values are NaN"):
        views_of(bad)
    with pytest.raises(ValueError, match=r"\[0, 1\], got 0 to 255"):
        views_of(torch.zeros(2, 8, 8, 3), masks=torch.eye(8).expand(2, 8, 8) * 255)
    with pytest.raises(ValueError, match="mirrored"):
        Cameras(torch.diag(torch.tensor([1.0, 1, -1, 1]))[None], torch.eye(3)[None], 4, 4)
    with pytest.raises(ValueError, match="vertices 0 to 3, but there are 3 vertices"):
        Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 3]]))
    splats = random_splats(2)
    with pytest.raises(ValueError, match="scales must be positive"):
        dataclasses.replace(splats, scales=-splats.scales)


def test_moving_keeps_integers_integer_and_reaches_the_cameras():
    mesh = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])).to(torch.float64)
    assert mesh.vertices.dtype == torch.float64 and mesh.faces.dtype == torch.int64
    views = views_of(torch.zeros(2, 4, 4, 3)).to(torch.float64)
    assert views.images.dtype == views.cameras.K.dtype == torch.float64
    assert len(views[1:]) == 1 and torch.equal(views[1].cameras.K, views.cameras.K[1:])
