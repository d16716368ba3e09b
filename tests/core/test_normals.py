"""Normal maps against a sphere whose normals are known."""

import pytest
import torch

from v3d_core.cameras import Orbit, camera_rays, orbit_cameras
from v3d_core.normals import decode_normals, encode_normals


def sphere_seen_from_an_orbit(radius=0.7):
    """World normals of a sphere's pixels [V, H, W, 3], which pixels show it, and the cameras."""
    cameras = orbit_cameras(Orbit(num_views=4, elevation_deg=20.0), 40, 40)
    origins, directions = (x.double() for x in camera_rays(cameras))
    origins = origins.expand_as(directions)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    b = (origins * directions).sum(dim=-1)
    root = b.square() - origins.square().sum(dim=-1) + radius**2
    points = origins + (-b - root.clamp_min(0).sqrt())[..., None] * directions
    normals = torch.where((root > 0)[..., None], points / radius, 0.0)
    return normals, root > 0, cameras


def as_seen(normals, cameras, axes):
    """World normals in the axes of each camera, given as world directions of its x, y and z."""
    rotation = cameras.camera_to_world[:, :3, :3].double()
    right, down, forward = rotation.unbind(-1)
    own = {"opengl": (right, -down, -forward), "opencv": (right, down, forward)}[axes]
    parts = [(normals * axis[:, None, None]).sum(dim=-1) for axis in own]
    return torch.stack(parts, dim=-1)


@pytest.mark.parametrize("convention", ["opengl", "opencv"])
def test_a_spheres_normal_map_gives_its_normals_back(convention):
    normals, hit, cameras = sphere_seen_from_an_orbit()
    picture = as_seen(normals, cameras, convention) / 2 + 0.5
    decoded = decode_normals(picture, convention)
    rotation = cameras.camera_to_world[:, None, None, :3, :3].double()
    in_world = (rotation @ decoded[..., None])[..., 0]
    torch.testing.assert_close(in_world, normals, atol=1e-5, rtol=0)
    assert not bool(decoded[~hit].any())


def test_what_faces_the_viewer_is_blue_in_opengl_and_the_top_of_an_object_is_green():
    facing, top = decode_normals(torch.tensor([[0.5, 0.5, 1.0], [0.5, 1.0, 0.5]]), "opengl")
    torch.testing.assert_close(facing, torch.tensor([0.0, 0.0, -1.0]))
    torch.testing.assert_close(top, torch.tensor([0.0, -1.0, 0.0]))


@pytest.mark.parametrize("convention", ["opengl", "opencv"])
def test_eight_bit_maps_come_back_within_a_degree(convention):
    normals, hit, cameras = sphere_seen_from_an_orbit()
    own = as_seen(normals, cameras, "opencv")
    eight_bit = (encode_normals(own, convention) * 255).round() / 255
    decoded = decode_normals(eight_bit, convention)
    cosine = (decoded * own).sum(dim=-1)[hit]
    assert float(cosine.min()) > 0.9998  # 1.15 degrees
    torch.testing.assert_close(decoded[hit].norm(dim=-1), torch.ones(int(hit.sum())).double())


def test_blended_normals_are_unknown():
    decoded = decode_normals(torch.tensor([[0.5, 0.5, 0.7], [0.5, 0.5, 0.8]]))
    assert not bool(decoded[0].any())
    torch.testing.assert_close(decoded[1], torch.tensor([0.0, 0.0, -1.0]))


def test_wrong_conventions_and_channels_are_named():
    with pytest.raises(ValueError, match=r"'directx'.*opengl, opencv"):
        decode_normals(torch.zeros(1, 2, 2, 3), "directx")
    with pytest.raises(ValueError, match="3 channels, got 4"):
        decode_normals(torch.zeros(1, 2, 2, 4))
