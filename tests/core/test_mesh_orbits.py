"""Orbits of meshes: closed forms of what each camera sees, and a second renderer in numpy."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from v3d_core import mesh_queries
from v3d_core.cameras import Orbit, orbit_cameras, project_points
from v3d_core.demo_object import sphere_object
from v3d_core.formats.mesh_files import write_mesh
from v3d_core.formats.mesh_materials import Material, MaterialPart, read_material_parts
from v3d_core.formats.mesh_seams import shared_normals
from v3d_core.images import linear_to_srgb, srgb_to_linear, to_uint8
from v3d_core.procedural import render_object
from v3d_core.structures import Mesh
from v3d_core.training.mesh_orbits import MeshOrbitConfig, random_azimuth, render_mesh_orbit

samples = sys.modules["mesh_samples"]
SIDES = ("-X", "+X", "-Y", "+Y", "-Z", "+Z")
FOCAL = 0.5 / np.tan(np.radians(30))  # of a frame of side 1


def orbit_of(parts, **settings):
    settings = {"size": 64, "supersample": 2, **settings}
    return render_mesh_orbit(parts, MeshOrbitConfig(**settings))


def part(vertices, faces, colours=None, uvs=None, **material):
    vertices, faces = torch.as_tensor(vertices).float(), torch.as_tensor(faces)
    normals = shared_normals(vertices, faces)
    return MaterialPart(Mesh(vertices, faces, normals, uvs, colours), Material(**material))


def quad(z=0.0, half=0.5, **kwargs):
    """A square that looks along +Z; its texture's first row is above."""
    corners = [[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]]
    uvs = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]]) if "picture" in kwargs else None
    return part(corners, [[0, 1, 2], [0, 2, 3]], uvs=uvs, **kwargs)


def seen_area(frames, colour):
    """Pixels of each frame that show a colour, coverage counted."""
    same = (frames[..., :3].int() - torch.tensor(colour)).abs().amax(-1) <= 1
    return (same * frames[..., 3] / 255).sum(dim=(1, 2))


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    """The cube of six colours, through a .glb file, in 18 frames of 96 px."""
    file = tmp_path_factory.mktemp("cube") / "cube.glb"
    write_mesh(file, samples.seamed_cube())
    return orbit_of(read_material_parts(file), size=96, supersample=4)


def test_a_cube_shows_its_sides_with_the_areas_of_their_projections(cube):
    # the scale at which the widest silhouette takes 0.7 of the frame: its widest view's corners
    corners = torch.tensor(
        [[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]
    )
    cameras = orbit_cameras(Orbit(), 96, 96)

    def longest(scale):
        pixels, _ = project_points(corners * scale, cameras)
        return float((pixels.amax(1) - pixels.amin(1)).max()) / 96

    low, high = 0.1, 1.5
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if longest(middle) < 0.7 else (low, middle)
    half = low / 2
    for number, name in enumerate(SIDES):
        axis, sign = number // 2, -1.0 if name[0] == "-" else 1.0
        normal = torch.zeros(3)
        normal[axis] = sign
        across, up = torch.eye(3)[(axis + 1) % 3], torch.eye(3)[(axis + 2) % 3]
        ring = [
            half * (normal + a * across + b * up) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        ]
        pixels, _ = project_points(torch.stack(ring), cameras)
        x, y = pixels.unbind(-1)
        area = 0.5 * (x * y.roll(-1, 1) - x.roll(-1, 1) * y).sum(1).abs()
        towards = (cameras.centres - half * normal) @ normal > 0
        seen = seen_area(cube, samples.CUBE_COLOURS[number])
        # an upright edge is wrong by half a ray's spacing all along; pixels on the border between
        # two sides have a colour of their own
        perimeter = (pixels - pixels.roll(-1, 1)).norm(dim=-1).sum(1)
        assert bool((seen[~towards] == 0).all()), name
        assert bool((seen[towards] <= (area + perimeter / 8)[towards]).all()), name
        assert bool((seen[towards] >= (area - 0.75 * perimeter)[towards]).all()), name
        if towards.any():
            assert float(seen[towards].max()) > 1000


def test_the_side_that_looks_along_x_comes_in_frames_4_and_5_from_the_right(cube):
    plus_x = torch.tensor(samples.CUBE_COLOURS[SIDES.index("+X")])
    shows = (cube[..., :3].int() - plus_x).abs().amax(-1) <= 1
    assert int(shows.sum(dim=(1, 2)).argmax()) in (4, 5)
    columns = torch.arange(96) + 0.5
    middle = (shows.sum(1) * columns).sum(-1) / shows.sum(dim=(1, 2)).clamp_min(1)
    assert middle[1] > middle[2] > middle[3] > middle[4] > 48 > middle[5] > middle[6]
    assert middle[4] + middle[5] == pytest.approx(96, abs=0.2)
    assert not shows[0].any() and not shows[9].any()


def test_the_longest_silhouette_takes_the_asked_share_of_the_frame():
    for fill in (0.4, 0.7):
        generator = torch.Generator().manual_seed(int(fill * 10))
        points = torch.randn(40, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.5]) + 5
        faces = torch.tensor(trimesh.convex.convex_hull(points.numpy()).faces)
        hull = trimesh.convex.convex_hull(points.numpy())
        frames = orbit_of([part(hull.vertices, faces)], size=200, supersample=1, fill=fill)
        there = frames[..., 3] > 0
        width, height = (there.any(d).sum(-1).max() for d in (1, 2))
        assert max(int(width), int(height)) / 200 == pytest.approx(fill, abs=2 / 200)
        assert not frames[:, 0, :, 3].any() and not frames[:, :, -1, 3].any()


def test_a_textured_square_is_what_numpy_sees_of_it():
    # twin: every ray against one plane, bilinear in linear light, then the mean and the sRGB curve
    size, rays, texels = 80, 3, 5
    picture = np.random.default_rng(1).integers(0, 256, (texels, texels, 3), dtype=np.uint8)
    frames = orbit_of([quad(picture=Image.fromarray(picture))], size=size, supersample=rays)
    linear = srgb_to_linear(torch.from_numpy(picture) / 255).numpy()
    half = 0.7 / FOCAL  # frame 0 looks straight: side * focal / 2 = 0.7; nearer sides are lower
    cameras = orbit_cameras(Orbit(), size, size)

    def tallest(side):  # the upright edges come nearest where they are seen from the side
        corners = torch.tensor([[s, t, 0.0] for s in (-1, 1) for t in (-1, 1)]) * side / 2
        pixels, _ = project_points(corners, cameras)
        return float((pixels.amax(1) - pixels.amin(1)).max()) / size

    low, high = 0.1, 2 * half
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if tallest(middle) < 0.7 else (low, middle)
    for view in (0, 2, 16, 9):
        azimuth = np.radians(20 * view)
        places = (np.arange(size * rays) + 0.5) / rays - size / 2
        x, y = np.meshgrid(places, places)
        to_world = np.array(
            [
                [np.cos(azimuth), 0, -np.sin(azimuth)],
                [0, -1, 0],
                [-np.sin(azimuth), 0, -np.cos(azimuth)],
            ]
        ).T
        directions = np.stack([x, y, np.full_like(x, FOCAL * size)], -1) @ to_world.T
        origin = 2 * np.array([np.sin(azimuth), 0, np.cos(azimuth)])
        points = origin - directions * (origin[2] / directions[..., 2])[..., None]
        hit = (np.abs(points[..., :2]) < low / 2).all(-1)
        u, v = points[..., 0] / low + 0.5, 0.5 - points[..., 1] / low
        weights = [np.maximum(1 - np.abs(_texel(c, texels)), 0) for c in (u, v)]  # [..., texels]
        colour = np.einsum("hwr,hws,rsc->hwc", weights[1], weights[0], linear) * hit[..., None]

        def blocks(values):
            return values.reshape(size, rays, size, rays, -1).sum((1, 3))

        count = blocks(hit[..., None])
        mean = torch.from_numpy(blocks(colour) / np.maximum(count, 1))
        expected = torch.cat(
            [to_uint8(linear_to_srgb(mean)), to_uint8(torch.tensor(count) / 9)], -1
        )
        off = (frames[view].int() - expected.int()).abs().amax(-1)
        assert float((off <= 1).float().mean()) > 0.995  # rays on the outline may go either way
        assert float((off[8:-8] * (expected[8:-8, :, 3] == 255)).float().mean()) < 0.5


def _texel(share, count):
    """Distance of places in 0..1 to texel centres, the border continued. [..., count]"""
    place = np.clip(share * count - 0.5, 0, count - 1)
    return place[..., None] - np.arange(count)


def test_the_back_of_a_surface_is_its_front_mirrored():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8))
    frames = orbit_of([quad(picture=picture)])
    assert int((frames[0].flip(1).int() - frames[9].int()).abs().max()) <= 1


def test_turning_the_object_by_two_frames_shifts_the_orbit_by_two():
    mesh = samples.coloured_mesh()
    parts = [MaterialPart(mesh, Material())]
    config = MeshOrbitConfig(size=64, supersample=2)
    still, turned = (render_mesh_orbit(parts, config, azimuth_deg=a) for a in (0.0, 40.0))
    off = (turned.int() - still.roll(2, 0).int()).abs().amax(-1)
    assert float((off > 1).float().mean()) < 1e-3
    assert float((turned != still).float().mean()) > 0.1


def test_place_and_size_in_the_file_do_not_matter():
    mesh = samples.coloured_mesh()
    elsewhere = dataclasses.replace(mesh, vertices=mesh.vertices * 37 + torch.tensor([5.0, -80, 9]))
    first, second = (orbit_of([MaterialPart(m, Material())]) for m in (mesh, elsewhere))
    assert float(((first.int() - second.int()).abs() > 1).float().mean()) < 1e-3


def test_rays_by_warp_and_by_torch_make_the_same_pictures(monkeypatch):
    parts = [MaterialPart(samples.coloured_mesh(), Material())]
    config = {"size": 24, "supersample": 2, "shading": "lit"}
    default = orbit_of(parts, **config)
    monkeypatch.setattr(mesh_queries, "choose_engine", lambda device: ("torch", ""))
    by_torch = orbit_of(parts, **config)
    assert float(((default.int() - by_torch.int()).abs() > 1).float().mean()) < 2e-3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_makes_the_pictures_of_the_cpu():
    mesh = samples.seamed_cube()
    picture = Image.fromarray(to_uint8(mesh.texture).numpy())
    mesh = dataclasses.replace(
        mesh, normals=shared_normals(mesh.vertices, mesh.faces), texture=None
    )
    parts = [MaterialPart(mesh, Material(picture=picture))]
    config = MeshOrbitConfig(size=128, shading="lit")
    here, there = (render_mesh_orbit(parts, config, 30.0, device) for device in ("cpu", "cuda"))
    assert float(((here.int() - there.int()).abs() > 1).float().mean()) < 1e-3


def test_a_lit_ball_is_the_one_of_the_exact_renderer():
    radius, size = 0.7, 64
    shape = sphere_object(radius)
    ball = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    vertices = torch.tensor(np.asarray(ball.vertices)).float()
    colours = shape.albedo(vertices)
    mesh = Mesh(vertices, torch.tensor(ball.faces), vertices / radius, vertex_colours=colours)
    # a ball of radius r at distance d is seen as wide as 2 f r / sqrt(d^2 - r^2)
    fill = 2 * FOCAL * radius / np.sqrt(4 - radius**2)
    frames = orbit_of(
        [MaterialPart(mesh, Material())], size=size, supersample=3, shading="lit", fill=fill
    )
    views = render_object(orbit_cameras(Orbit(), size, size), shape, supersample=3)
    inside = views.masks > 0.999
    off = (frames[..., :3] / 255 - views.images)[inside].abs()
    assert float(off.mean()) < 0.004 and float(off.quantile(0.99)) < 0.03
    assert float((frames[..., 3] / 255 - views.masks).abs().mean()) < 0.002


def test_light_falls_on_the_side_that_the_camera_sees():
    front = quad(colours=torch.full((4, 3), 0.5))
    reverse = dataclasses.replace(
        front.surface, faces=front.surface.faces.flip(1), normals=-front.surface.normals
    )
    back = MaterialPart(reverse, Material())
    inverted = MaterialPart(dataclasses.replace(front.surface, normals=reverse.normals), Material())
    expected = orbit_of([front], shading="lit")
    assert torch.equal(orbit_of([back], shading="lit"), expected)
    assert torch.equal(orbit_of([inverted], shading="lit"), expected)
    assert expected[0, 32, 32, 0] != expected[9, 32, 32, 0]  # the lamps stand still


def test_half_transparent_surfaces_show_what_is_behind_them_in_linear_light():
    red = quad(z=0.2, colour=(1.0, 0.0, 0.0), opacity=0.5, alpha="blend")
    green = quad(z=-0.2, colour=(0.0, 1.0, 0.0))
    half = int(to_uint8(linear_to_srgb(torch.tensor(0.5))))  # 188
    together = orbit_of([red, green])
    assert together[0, 32, 32].tolist() == [half, half, 0, 255]
    assert together[9, 32, 32].tolist() == [0, 255, 0, 255]
    assert orbit_of([red])[0, 32, 32].tolist() == [255, 0, 0, 128]
    solid = quad(z=0.2, colour=(1.0, 0.0, 0.0), opacity=0.5, alpha="opaque")
    assert orbit_of([solid, green])[0, 32, 32].tolist() == [255, 0, 0, 255]


def test_a_mask_cuts_holes_and_hides_the_rest():
    pixels = np.full((2, 2, 4), (0, 0, 255, 160), np.uint8)
    pixels[0, 0, 3] = 90  # upper left, below the cutoff of one half
    leaf = quad(z=0.01, picture=Image.fromarray(pixels), alpha="mask")
    behind = quad(z=-0.01, colour=(1.0, 0.0, 0.0))
    frame = orbit_of([leaf, behind])[0]
    assert frame[20, 20].tolist() == [255, 0, 0, 255]
    assert frame[44, 44].tolist() == [0, 0, 255, 255]


def test_fine_textures_are_averaged_not_aliased():
    checks = (np.indices((1024, 1024)).sum(0) % 2 * 255).astype(np.uint8)
    frames = orbit_of([quad(picture=Image.fromarray(checks))], size=32, supersample=1)
    grey = frames[0][frames[0, ..., 3] == 255][:, 0].int()
    assert len(grey) > 200 and int((grey - 188).abs().max()) <= 1  # sRGB of linear 0.5


def test_plain_colours_of_every_format_are_kept(tmp_path):
    box = trimesh.creation.box()
    pbr = trimesh.visual.material.PBRMaterial(baseColorFactor=[0.5, 0.25, 1.0, 1.0])
    box.visual = trimesh.visual.TextureVisuals(material=pbr)
    box.export(tmp_path / "factor.glb")
    linear = torch.tensor([128, 64, 255]) / 255  # trimesh keeps 8 bits, linear
    (tmp_path / "two.mtl").write_text("newmtl a\nKd 1 0 0.5\nnewmtl b\nKd 0 0.25 1\n")
    box_obj = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 2 0 0\nv 2 1 0\n"
    faces = "usemtl a\nf 1 2 3\nf 1 3 4\nusemtl b\nf 2 5 6\nf 2 6 3\n"
    (tmp_path / "two.obj").write_text("mtllib two.mtl\n" + box_obj + faces)
    painted = trimesh.creation.box()
    painted.visual.face_colors = [[9, 90, 200, 255]] * 12
    painted.export(tmp_path / "faces.ply")
    trimesh.creation.box().export(tmp_path / "bare.stl")

    def colours_of(name):
        frame = orbit_of(read_material_parts(tmp_path / name))[0]
        inner = frame[frame[..., 3] == 255][:, :3]
        return {tuple(colour) for colour in inner.unique(dim=0).tolist()}

    assert colours_of("factor.glb") == {tuple(to_uint8(linear_to_srgb(linear)).tolist())}
    assert colours_of("two.obj") >= {(255, 0, 128), (0, 64, 255)}
    assert colours_of("faces.ply") == {(9, 90, 200)}
    assert colours_of("bare.stl") == {(178, 178, 178)}


def test_parts_of_a_scene_keep_their_places_and_textures(tmp_path):
    # the same square twice in one file, moved to either side, each with a picture of its own
    scene = trimesh.Scene()
    for name, x, colour in (("left", -1.0, (200, 0, 0)), ("right", 1.0, (0, 0, 200))):
        square = quad().surface
        material = trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.new("RGB", (4, 4), colour), baseColorFactor=[1.0, 1.0, 1.0, 1.0]
        )
        uvs = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
        visual = trimesh.visual.TextureVisuals(uv=uvs, material=material)
        mesh = trimesh.Trimesh(
            square.vertices.numpy(), square.faces.numpy(), visual=visual, process=False
        )
        place = trimesh.transformations.translation_matrix([x, 0, 0])
        scene.add_geometry(mesh, node_name=name, geom_name=name, transform=place)
    scene.export(tmp_path / "pair.glb")
    parts = read_material_parts(tmp_path / "pair.glb")
    assert len(parts) == 2 and len({id(p.material.picture) for p in parts}) == 2
    frames = orbit_of(parts, size=96)
    reds, blues = (seen_area(frames, c) for c in ([200, 0, 0], [0, 0, 200]))
    assert float(reds[0]) == pytest.approx(float(blues[0])) and float(reds[0]) > 400
    columns = [frames[0, 48, :, k].nonzero().flatten() for k in (0, 2)]
    assert int(columns[0].max()) < 48 < int(columns[1].min())  # +X is on the right
    columns = [frames[9, 48, :, k].nonzero().flatten() for k in (0, 2)]
    assert int(columns[1].max()) < 48 < int(columns[0].min())


def test_random_azimuths_belong_to_name_and_seed():
    angles = [random_azimuth(f"object {k}", 0) for k in range(4000)]
    assert all(0 <= a < 360 for a in angles)
    counts, _ = np.histogram(angles, bins=8, range=(0, 360))
    assert counts.min() > 400 and counts.max() < 600  # 500 expected, 4.8 deviations
    assert random_azimuth("a", 0) == random_azimuth("a", 0) != random_azimuth("a", 1)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"size": 4}, "8 x 8 px, got 4"),
        ({"supersample": 0}, "at least 1, got 0"),
        ({"shading": "toon"}, "flat, lit"),
        ({"fill": 1.0}, "got 1.0"),
    ],
)
def test_impossible_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        MeshOrbitConfig(**settings)


def test_objects_that_cannot_be_seen_are_refused():
    point = part(torch.ones(3, 3), [[0, 1, 2]])
    with pytest.raises(ValueError, match="single point"):
        orbit_of([point])
    line = part([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]])
    with pytest.raises(ValueError, match="no area or are transparent"):
        orbit_of([line])
    with pytest.raises(ValueError, match="no area or are transparent"):
        orbit_of([quad(opacity=0.0, alpha="blend")])


def test_cancelling_inside_a_view_stops_there(monkeypatch):
    from v3d_core.training import mesh_orbits

    monkeypatch.setattr(mesh_orbits, "RAYS_AT_ONCE", 512)
    calls = []

    class Stopped(Exception):
        pass

    def progress(step, total, preview=None, text=""):
        calls.append((step, total))
        if len(calls) == 3:
            raise Stopped

    parts = [MaterialPart(samples.coloured_mesh(), Material())]
    with pytest.raises(Stopped):
        render_mesh_orbit(parts, MeshOrbitConfig(size=64, supersample=2), progress=progress)
    assert calls == [(0, 18)] * 3
