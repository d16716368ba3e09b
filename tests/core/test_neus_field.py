"""The fitted field: its start, its written-out gradient, its colours, and how it is made again."""

import json

import pytest
import torch
import torch.nn.functional as F

from v3d_core.neus.field import RESIDUAL_STD, SDFField, start_from_distance
from v3d_core.neus.grid import HashGrid
from v3d_core.neus.start import sphere_distance

GRID = HashGrid(levels=4, base=3, finest=12, log2_entries=8)  # two dense levels, two hashed
CENTRE, HALF_SIZE = torch.tensor([0.2, -0.1, 0.4]), 0.8
SLOPE = torch.tensor([0.6, -0.3, 0.5])


def plane(resolution=8):
    """A start shape whose interpolation is exact: distance a linear function."""
    along = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    points = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), dim=-1)
    return start_from_distance(points @ SLOPE + 0.1)


def make(start=None, seed=0, randomised=True, **settings):
    generator = torch.Generator().manual_seed(seed)
    start = plane() if start is None else start
    settings = {"hidden": 8} | settings
    field = SDFField(CENTRE, HALF_SIZE, start, GRID, generator=generator, **settings)
    if randomised:
        with torch.no_grad():
            for parameter in field.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return field


def in_cube(count, seed=1, share=0.85, dtype=torch.float32):
    """Points between the outermost cell centres of the start shape."""
    unit = 2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 1
    return (CENTRE + unit * share * HALF_SIZE).to(dtype)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 0, 0, 0), (0, 1, 0.4, 0), (0, 0, 0, 0)])
def test_gradient_is_that_of_the_distance_by_finite_differences(weights):
    field = make().double()
    field.level_weights.copy_(torch.tensor(weights).repeat_interleave(2))
    points, step = in_cube(200, dtype=torch.float64), 1e-6
    sdf, gradients = field.sdf_and_gradient(points)
    torch.testing.assert_close(sdf, field.sdf(points), rtol=0, atol=1e-14)
    shifts = step * torch.eye(3, dtype=torch.float64)
    numeric = torch.stack(
        [(field.sdf(points + s) - field.sdf(points - s)) / (2 * step) for s in shifts], dim=-1
    )
    torch.testing.assert_close(gradients, numeric, rtol=1e-6, atol=1e-6)
    assert float((gradients - SLOPE).norm(dim=-1).min()) > 0.01  # the network has its say


def test_levels_that_have_not_joined_change_nothing_and_learn_nothing():
    field, points = make(), in_cube(50)
    field.level_weights[2:] = 0
    before = field.sdf_and_gradient(points)
    sampled = field.evaluate(points)
    (sampled.sdf.sum() + sampled.gradients.square().sum() + sampled.codes.outputs.sum()).backward()
    split = GRID.offsets[1]
    assert bool(field.table.grad[:split].any()) and not field.table.grad[split:].any()
    with torch.no_grad():
        field.table[split:] += 1
    assert all(torch.equal(a, b) for a, b in zip(before, field.sdf_and_gradient(points)))


def test_loss_on_gradients_reaches_every_parameter_of_the_distance_rightly():
    field, points = make().double(), in_cube(20, dtype=torch.float64)
    wanted = F.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(2)), dim=-1)

    def loss():
        sampled = field.evaluate(points)
        return (sampled.gradients - wanted).square().sum() + sampled.sdf.sum()

    loss().backward()
    for name in ("table", "weight1", "bias1", "weight2", "bias2"):
        parameter = getattr(field, name)
        along = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).double()
        step = 1e-6
        with torch.no_grad():
            parameter += step * along
            up = loss()
            parameter -= 2 * step * along
            down = loss()
            parameter += step * along
        numeric = float(up - down) / (2 * step)
        assert float((parameter.grad * along).sum()) == pytest.approx(numeric, rel=1e-5), name


def test_at_the_start_the_field_is_its_start_shape():
    points, radius = in_cube(500), 0.5
    field = make(start_from_distance(sphere_distance(48, radius)), randomised=False, hidden=48)
    sdf, gradients = field.sdf_and_gradient(points)
    offset = points - CENTRE
    assert float((sdf - (offset.norm(dim=-1) - radius * HALF_SIZE)).abs().max()) < 0.02
    away = offset.norm(dim=-1) > 0.2
    directions = F.normalize(offset, dim=-1)
    assert float((gradients - directions)[away].norm(dim=-1).max()) < 0.05
    exact = make(randomised=False, hidden=48)
    # what remains is the network's 48 units at RESIDUAL_STD
    off = exact.sdf(points) - ((points - CENTRE) @ SLOPE + 0.1 * HALF_SIZE)
    assert 0 < float(off.abs().max()) < 10 * RESIDUAL_STD * HALF_SIZE


def test_start_goes_on_beyond_the_cubes_faces_as_at_them():
    field = make()
    with torch.no_grad():
        field.weight2.zero_()
        field.bias2.zero_()
    outside = CENTRE + HALF_SIZE * torch.tensor([[2.0, 0.1, -0.2], [0.3, -9.0, 0.0]])
    face = CENTRE + HALF_SIZE * torch.tensor([[1.0, 0.1, -0.2], [0.3, -1.0, 0.0]])
    for got, wanted in zip(field.sdf_and_gradient(outside), field.sdf_and_gradient(face)):
        torch.testing.assert_close(got, wanted)


def test_start_of_a_distance_has_its_gradient_per_unit_of_half_the_cube():
    start = plane(12)
    assert start.shape == (4, 12, 12, 12)
    along = (torch.arange(12) + 0.5) / 12 * 2 - 1
    torch.testing.assert_close(start[0, :, 0, 0] - start[0, 0, 0, 0], 0.6 * (along - along[0]))
    expected = SLOPE[:, None, None, None].expand(3, 12, 12, 12)
    torch.testing.assert_close(start[1:], expected, rtol=0, atol=1e-5)


def test_many_points_are_taken_in_chunks_that_do_not_show(monkeypatch):
    field, points = make(), in_cube(101)
    whole = (field.sdf(points), *field.sdf_and_gradient(points))
    colours = field.colours(points, whole[2])
    monkeypatch.setattr("v3d_core.neus.field.CHUNK", 25)
    parts = (field.sdf(points), *field.sdf_and_gradient(points))
    for a, b in zip((*whole, colours), (*parts, field.colours(points, parts[2])), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert not b.requires_grad


@pytest.mark.parametrize("view_direction", [False, True])
def test_colours_lie_in_0_to_1_and_follow_the_view_only_if_asked(view_direction):
    field, points = make(view_direction=view_direction), in_cube(300)
    with torch.no_grad():
        field.colour2 *= 100
    sampled = field.evaluate(points)
    normals = F.normalize(sampled.gradients, dim=-1)
    with torch.no_grad():
        seen = [field.shade(sampled.codes, normals, d.expand(300, 3)) for d in torch.eye(3)[:2]]
    for colours in seen:
        assert colours.shape == (300, 3)
        assert 0 <= float(colours.min()) and float(colours.max()) <= 1
    assert torch.equal(*seen) is not view_direction
    at = field.colours(points, sampled.gradients.detach())
    torch.testing.assert_close(at, field.shade(sampled.codes, normals, -normals).detach())


def test_sharpness_starts_as_told():
    assert make(randomised=False, inv_s=37.0).inv_s.item() == pytest.approx(37.0, rel=1e-5)


def test_same_generator_same_field_and_torchs_own_is_left_alone():
    before = torch.random.get_rng_state()
    first, again, other = make(), make(), make(seed=1)
    SDFField.from_settings(first.settings(), first.state_dict())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.table, again.table) and torch.equal(first.weight1, again.weight1)
    assert not torch.equal(first.table, other.table)


@pytest.mark.parametrize("view_direction", [False, True])
def test_field_of_its_settings_and_tensors_is_the_same(view_direction):
    field, points = make(view_direction=view_direction), in_cube(100)
    field.level_weights[4:] = 0.3
    settings = json.loads(json.dumps(field.settings()))
    again = SDFField.from_settings(settings, field.state_dict())
    assert again.settings() == field.settings() and again.device == field.device
    sdf, gradients = field.sdf_and_gradient(points)
    got = again.sdf_and_gradient(points)
    assert torch.equal(got[0], sdf) and torch.equal(got[1], gradients)
    assert torch.equal(again.colours(points, gradients), field.colours(points, gradients))
    assert torch.equal(again.inv_s, field.inv_s)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hidden": 9}, "do not fit its settings.*weight1"),
        ({"levels": 5}, "do not fit its settings.*table"),
        ({"log2_entries": 6}, "do not fit its settings.*table"),
        ({"view_direction": True}, "do not fit its settings.*colour1"),
    ],
)
def test_tensors_of_other_settings_are_refused_by_name(change, complaint):
    field = make()
    with pytest.raises(ValueError, match=f"(?s){complaint}"):
        SDFField.from_settings(field.settings() | change, field.state_dict())


@pytest.mark.parametrize("missing", ["hidden", "levels", "half_size"])
def test_missing_settings_are_named(missing):
    field = make()
    settings = {k: v for k, v in field.settings().items() if k != missing}
    with pytest.raises(ValueError, match=f"the field has no '{missing}'"):
        SDFField.from_settings(settings, field.state_dict())


@pytest.mark.parametrize("missing", ["centre", "start", "table"])
def test_missing_tensors_are_named(missing):
    field = make()
    state = {k: v for k, v in field.state_dict().items() if k != missing}
    with pytest.raises(ValueError, match=missing):
        SDFField.from_settings(field.settings(), state)
