"""Pictures of a field whose surface is known."""

import pytest
import torch
import torch.nn.functional as F

from v3d_core.cameras import Orbit, camera_rays, orbit_cameras
from v3d_core.neus import render
from v3d_core.neus.field import SDFField, start_from_distance
from v3d_core.neus.grid import HashGrid
from v3d_core.neus.render import normal_picture, render_field
from v3d_core.neus.start import sphere_distance


def sphere():
    """A ball of radius 0.4 beside the origin, its field without a residual, and one camera."""
    half_size, centre = 0.8, torch.tensor([0.1, -0.05, 0.0])
    field = SDFField(
        centre,
        half_size,
        start_from_distance(sphere_distance(64, 0.5)),
        HashGrid(levels=2, base=4, finest=8, log2_entries=9),
        hidden=4,
        inv_s=800.0,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        field.weight2.zero_()
    camera = orbit_cameras(Orbit(num_views=1, azimuth_start_deg=30.0, elevation_deg=20), 60, 40)
    known = field.start[0].repeat(2, 1, 1, 1) * half_size
    return field, known, 0.06, camera


@pytest.fixture(scope="module")
def sphere_picture():
    field, known, band, camera = sphere()
    centre = field.centre
    origins, directions = camera_rays(camera)
    offset, directions = (origins - centre)[0], F.normalize(directions, dim=-1)[0]
    along = (offset * directions).sum(-1)
    off_axis = (offset - along[..., None] * directions).norm(dim=-1)
    reach = -along - (0.4**2 - off_axis.square()).clamp(min=0).sqrt()
    hits = F.normalize(offset + reach[..., None] * directions, dim=-1)
    return render_field(field, known, band, camera), camera, off_axis, hits


def test_a_picture_is_cancelled_between_its_parts(monkeypatch, sphere_picture):
    monkeypatch.setattr(render, "RAYS_AT_ONCE", 500)
    ticks = []
    picture = render_field(*sphere(), tick=lambda: ticks.append(len(ticks)))
    assert len(ticks) == 5  # of 60 x 40 rays; the first part sees nothing
    torch.testing.assert_close(picture.colours, sphere_picture[0].colours)
    torch.testing.assert_close(picture.normals, sphere_picture[0].normals)

    def cancel() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_field(*sphere(), tick=cancel)


def test_a_sphere_is_seen_as_an_opaque_disc_on_white(sphere_picture):
    picture, _, off_axis, _ = sphere_picture
    assert picture.opacities.shape == (40, 60) and picture.colours.shape == (40, 60, 3)
    inside, outside = off_axis < 0.39, off_axis > 0.41
    assert 100 < int(inside.sum()) < 1500
    assert float(picture.opacities[inside].min()) > 0.98
    assert float(picture.opacities[outside].max()) < 0.01
    assert float(picture.colours[outside].min()) > 0.99
    assert not picture.normals[off_axis > 0.45].any()


def test_normals_of_a_sphere_are_radial_where_it_is_hit(sphere_picture):
    picture, _, off_axis, hits = sphere_picture
    inside = off_axis < 0.37
    cosines = (picture.normals * hits)[inside].sum(-1)
    assert float(cosines.min()) > 0.99
    torch.testing.assert_close(picture.normals[inside].norm(dim=-1), torch.ones(int(inside.sum())))


def test_normal_picture_is_as_people_know_it(sphere_picture):
    """Blue towards the camera, red to the right, green up, white around."""
    picture, camera, off_axis, _ = sphere_picture
    shown = normal_picture(picture, camera)
    assert shown.shape == (40, 60, 3) and 0 <= float(shown.min()) and float(shown.max()) <= 1
    middle = torch.argmin(off_axis).item()
    torch.testing.assert_close(
        shown.view(-1, 3)[middle], torch.tensor([0.5, 0.5, 1.0]), rtol=0, atol=0.08
    )
    disc = torch.nonzero(off_axis < 0.39)
    rightmost, topmost = disc[disc[:, 1].argmax()], disc[disc[:, 0].argmin()]
    assert float(shown[tuple(rightmost)][0]) > 0.85 and float(shown[tuple(topmost)][1]) > 0.85
    assert float(shown[off_axis > 0.42].min()) > 0.98
