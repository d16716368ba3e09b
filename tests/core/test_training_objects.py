"""Random training objects: repeatable, framed, varied, unlike their mirror images."""

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from v3d_core.procedural import object_mesh
from v3d_core.training import objects, objects_table
from v3d_core.training.objects import FRAME_SHARE, random_objects
from v3d_core.training.objects_build import Build, Draw, draw_palette
from v3d_core.training.objects_framing import framed
from v3d_core.training.objects_sdf import analytic_object, object_albedo, object_sdf, part_sdf
from v3d_core.training.objects_table import MAX_PARTS, Join, Kind, ObjectTable, Pattern, joined
from v3d_core.training.tracing import render_orbits


def tensors(table: ObjectTable) -> dict[str, torch.Tensor]:
    return {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}


def equal(a: ObjectTable, b: ObjectTable) -> bool:
    return all(torch.equal(value, tensors(b)[name]) for name, value in tensors(a).items())


def digest(table: ObjectTable) -> str:
    data = b"".join(value.numpy().tobytes() for value in tensors(table).values())
    return hashlib.sha256(data).hexdigest()


def test_a_seed_gives_the_same_object_alone_and_in_any_company():
    company = random_objects([5, 901, 3, 2**40 + 7, 12, 3])
    for place, seed in enumerate([5, 901, 3, 2**40 + 7, 12, 3]):
        assert equal(company[place], random_objects([seed]))


def test_objects_over_several_batches_are_those_of_one(monkeypatch):
    whole = random_objects(range(7))
    monkeypatch.setattr(objects, "FRAMED_AT_ONCE", 3)
    assert equal(random_objects(range(7)), whole)


def test_another_process_makes_the_same_objects():
    program = (
        "import dataclasses, hashlib\n"
        "from v3d_core.training.objects import random_objects\n"
        "t = random_objects(range(40))\n"
        "data = b''.join(getattr(t, f.name).numpy().tobytes() for f in dataclasses.fields(t))\n"
        "print(hashlib.sha256(data).hexdigest())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == digest(random_objects(range(40)))


def test_different_seeds_give_different_objects():
    table = random_objects(range(300))
    shapes = torch.cat([table.centres, table.sizes], dim=-1).flatten(1)
    distances = torch.cdist(shapes, shapes) + 10 * torch.eye(300)
    assert distances.min() > 0.05
    assert len({tuple(c) for c in table.colours[:, 0, 0].tolist()}) > 200


def test_every_kind_join_and_pattern_is_used():
    table = random_objects(range(400))
    used = torch.arange(MAX_PARTS) < table.counts[:, None]
    assert set(table.kinds[used].tolist()) == {int(kind) for kind in Kind}
    assert set(table.joins[used].tolist()) == {int(join) for join in Join}
    assert set(table.patterns[used].tolist()) == {int(pattern) for pattern in Pattern}
    assert 5 <= int(table.counts.min()) and int(table.counts.max()) == MAX_PARTS
    assert bool((table.joins[:, 0] == Join.UNION).all())  # nothing is carved from nothing


def test_tables_can_be_sliced_picked_moved_and_joined_again():
    table = random_objects(range(6))
    assert len(table) == 6 and len(table[1:3]) == 2 and len(table[-1]) == 1
    assert equal(joined([table[:2], table[2:]]), table)
    order = torch.tensor([4, 0, 3])
    assert equal(table[order], joined([table[4], table[0], table[3]]))
    assert equal(table.to("cpu"), table) and table.to("meta").device.type == "meta"
    assert len(random_objects([])) == 0
    with pytest.raises(IndexError, match="object 6 of 6"):
        table[6]


def test_wrong_seeds_and_shapes_are_refused():
    with pytest.raises(ValueError, match="-3"):
        random_objects([1, -3])
    table = random_objects([1])
    with pytest.raises(ValueError, match="radii"):
        dataclasses.replace(table, radii=table.radii[:, :3])


@pytest.fixture(scope="module")
def orbits() -> torch.Tensor:  # [14, 18, 40, 40, 4]
    return render_orbits(random_objects(range(100, 114)), size=40, supersample=2)


def boxes(alphas: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Left, right, top, bottom of what is covered, subpixels by coverage. [..., H, W] -> [...]"""
    sides = []
    for axis in (-2, -1):
        line = alphas.amax(dim=axis)
        size = line.shape[-1]
        places = torch.arange(size).expand_as(line)
        first = torch.where(line > 0, places, size).amin(dim=-1)
        last = torch.where(line > 0, places, -1).amax(dim=-1)
        sides += [first, last + 1]
    return tuple(sides)


def test_outlines_fill_the_drawn_share_of_the_frame(orbits):
    left, right, top, bottom = boxes(orbits[..., 3].float())
    longest = torch.maximum(right - left, bottom - top).amax(dim=1) / 40
    # a covered border pixel counts whole: up to two pixels of 40 too much
    assert longest.min() > FRAME_SHARE[0] - 0.02 and longest.max() < FRAME_SHARE[1] + 0.06


def test_share_is_measured_exactly_on_a_larger_picture():
    table = random_objects(range(200, 204))
    shares = []
    for seed in range(200, 204):
        draw = Draw(seed)
        draw.choice(objects.FAMILIES)
        draw_palette(draw)
        shares.append(draw(*FRAME_SHARE))
    alphas = render_orbits(table, size=128, supersample=1)[..., 3].float()
    left, right, top, bottom = boxes(alphas)
    longest = torch.maximum(right - left, bottom - top).amax(dim=1) / 128
    assert (longest - torch.tensor(shares)).abs().max() < 0.02


def test_mirrored_orbits_are_visibly_wrong(orbits):
    colours = orbits.float() / 255
    white = colours[..., :3] * colours[..., 3:] + 1 - colours[..., 3:]
    covered = colours[..., 3].mean(dim=(1, 2, 3))
    mirrored = white.flip(-2)[:, [0, *range(17, 0, -1)]]  # azimuth and picture change sides
    least = torch.full((len(white),), torch.inf)
    for shift in range(18):  # nor is it the same object turned
        error = (white - mirrored.roll(shift, dims=1)).abs().mean(dim=(1, 2, 3, 4))
        least = torch.minimum(least, error)
    assert (least / covered).min() > 0.05


@pytest.mark.slow
def test_middles_of_height_and_ground_plan_are_at_the_origin():
    for seed in (0, 6, 11, 35):
        vertices = object_mesh(analytic_object(random_objects([seed]), 0), resolution=64).vertices
        middle = 0.5 * (vertices.amin(dim=0) + vertices.amax(dim=0))
        assert middle.abs().max() < 0.02


@pytest.mark.parametrize("seed", [3, 4, 14, 18, 23, 33])
def test_distances_never_exceed_those_to_the_surface(seed):
    table = random_objects([seed])
    shape = analytic_object(table, 0)
    surface = object_mesh(shape, resolution=72).vertices.double()
    generator = torch.Generator().manual_seed(seed)
    points = 2 * torch.rand(400, 3, generator=generator, dtype=torch.float64) - 1
    points = points[shape.sdf(points) > 0.01]
    nearest = torch.cdist(points, surface).amin(dim=1)
    # vertices of marching cubes lie up to a small share of a cell beside the surface
    assert bool((shape.sdf(points) <= nearest + 2e-3).all())


def test_slopes_of_distances_are_at_most_one_but_for_blends():
    table = random_objects(range(40))
    generator = torch.Generator().manual_seed(0)
    steepest = []
    for index in range(len(table)):
        points = 2.4 * torch.rand(500, 3, generator=generator, dtype=torch.float64) - 1.2
        points = points[object_sdf(table, index, points) > 1e-3].requires_grad_()
        object_sdf(table, index, points).sum().backward()
        steepest.append(points.grad.norm(dim=-1))
    slopes = torch.cat(steepest)
    assert float((slopes > 1.0 + 1e-6).double().mean()) < 0.02


def test_parts_lie_within_their_balls_and_objects_within_theirs():
    table = random_objects(range(30))
    generator = torch.Generator().manual_seed(1)
    way = torch.nn.functional.normalize(torch.randn(300, 3, generator=generator).double(), dim=-1)
    for index in range(len(table)):
        assert (object_sdf(table, index, way * float(table.bounds[index]) * 1.0001) > 0).all()
        for part in range(int(table.counts[index])):
            ball = table.centres[index, part] + way * table.radii[index, part] * 1.0001
            without = dataclasses.replace(table, radii=table.radii * 0.5)
            assert (part_sdf(without, index, part, ball) > -1e-6).all()


def test_paint_is_one_of_two_colours_or_between_them():
    table = random_objects(range(30))
    for index in range(len(table)):
        shape = analytic_object(table, index)
        points = torch.rand(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        colours = object_albedo(table, index, 1.6 * points - 0.8)
        assert bool(((colours >= -1e-6) & (colours <= 1 + 1e-6)).all())
        assert shape.bound == float(table.bounds[index])


def test_sheet_is_written_whole(tmp_path):
    from PIL import Image

    objects.draw_sheet(tmp_path / "sheet.png", first=0, count=4, size=24)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (52, 52, 3) and 100 < sheet.mean() < 254
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("family", sorted(set(objects.FAMILIES), key=lambda f: f.__name__))
def test_every_family_builds_solid_objects(family):
    for seed in range(15):
        draw = Draw(seed)
        build = Build(draw, draw_palette(draw))
        family(build)
        assert 5 <= len(build.parts) <= MAX_PARTS
        table = framed([build.parts], [0.7])
        for name, value in tensors(table).items():
            assert bool(torch.isfinite(value.double()).all()), name
        assert 0.4 < float(table.bounds[0]) < 1.6
        # what carves is bounded inside as well as outside
        carving = table.kinds[table.joins == Join.CARVE].tolist()
        assert Kind.SUPERQUADRIC not in carving
        for kind, sizes in zip(carving, table.sizes[table.joins == Join.CARVE]):
            assert kind != Kind.ELLIPSOID or sizes[:3].unique().numel() == 1
    assert objects_table.PROFILE_POINTS == table.profiles.shape[-1]
