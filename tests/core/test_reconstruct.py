"""The pictures that show a result."""

import dataclasses

import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.reconstruct import turntable_cameras


def test_turntable_of_an_orbit_passes_through_its_views():
    views = orbit_cameras(Orbit(num_views=9, elevation_deg=12.0, azimuth_start_deg=30.0), 64, 64)
    turn = turntable_cameras(views, 18, 64)
    torch.testing.assert_close(turn.camera_to_world[::2], views.camera_to_world, rtol=0, atol=1e-4)
    torch.testing.assert_close(turn.K[::2], views.K, rtol=1e-5, atol=1e-4)


def test_turntable_turns_about_the_object_wherever_it_is():
    views = orbit_cameras(Orbit(num_views=9, elevation_deg=12.0), 64, 64)
    shift = torch.tensor([3.0, -1.0, 2.0])
    poses = views.camera_to_world.clone()
    poses[:, :3, 3] += shift
    moved = turntable_cameras(dataclasses.replace(views, camera_to_world=poses), 12, 64)
    expected = turntable_cameras(views, 12, 64).centres + shift
    torch.testing.assert_close(moved.centres, expected, rtol=0, atol=1e-4)


def test_turntable_size_is_even_and_at_most_the_wanted_one():
    odd = turntable_cameras(orbit_cameras(Orbit(num_views=4), 75, 51), 6, 384)
    assert (odd.width, odd.height) == (76, 52)
    large = turntable_cameras(orbit_cameras(Orbit(num_views=4), 800, 400), 6, 384)
    assert (large.width, large.height) == (384, 192)
