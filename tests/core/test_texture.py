"""Textures from views: round trips on a cube with a painted surface, exposure, and bad input."""

import dataclasses
import math

import pytest
import torch
from mesh_samples import cube

from v3d_core import backends
from v3d_core.cameras import Orbit, camera_rays, orbit_cameras
from v3d_core.images import composite
from v3d_core.mesh import texture_checks
from v3d_core.mesh.bake import LEAST_WEIGHT, SurfacePoints, blend_views, look_up, may_show
from v3d_core.mesh.harmonise import view_gains
from v3d_core.mesh.refine import blend_texture, chosen_views, refine_texture
from v3d_core.mesh.texels import find_texels
from v3d_core.mesh.texture_config import RefineConfig
from v3d_core.mesh.visibility import face_normals, look, render_texture
from v3d_core.mesh_queries import MeshQueries
from v3d_core.metrics import psnr
from v3d_core.structures import Cameras, Mesh, Views

SMALL = RefineConfig(resolution=128)


def painted(positions):  # [T, 3] -> [T, 3]
    """A smooth pattern in space."""
    waves = torch.stack(
        [positions @ torch.tensor(d) for d in ((9.0, 2, 4), (1.0, 8, 3), (5.0, 3, 7))]
    )
    return 0.5 + 0.35 * waves.sin().T


def painted_cube(resolution=128):
    mesh = cube()
    texels = find_texels(mesh, resolution, resolution)
    texture = torch.zeros(resolution**2, 3)
    texture[texels.index] = painted(texels.on_surface(mesh, mesh.vertices))
    return dataclasses.replace(mesh, texture=texture.view(resolution, resolution, 3))


def cameras_around(views=6, size=96, elevation=25.0, start=15.0):
    orbit = Orbit(num_views=views, elevation_deg=elevation, azimuth_start_deg=start)
    return orbit_cameras(orbit, size, size)


def both(first: Cameras, second: Cameras) -> Cameras:
    poses = torch.cat([first.camera_to_world, second.camera_to_world])
    return dataclasses.replace(first, camera_to_world=poses, K=torch.cat([first.K, second.K]))


def views_of(mesh, cameras, samples=2) -> Views:
    images, masks = render_texture(mesh, cameras, samples=samples)
    names = tuple(f"view_{v}" for v in range(len(cameras)))
    return Views(images, masks, cameras, names)


@pytest.fixture(scope="module")
def scene():
    """A cube seen from above and below, and what it looks like."""
    cameras = both(cameras_around(), cameras_around(elevation=-25.0, start=45.0))
    return cube(), views_of(painted_cube(), cameras)


def test_rendering_shows_the_colour_of_the_place(scene):
    mesh, _ = scene
    queries = MeshQueries(mesh.vertices, mesh.faces)
    one = cameras_around(1)
    images, masks = render_texture(painted_cube(512), one)
    maps = look(queries, face_normals(queries), one, masks[0], SMALL)
    hit = maps.face >= 0
    assert torch.equal(hit, masks[0] == 1)
    origins, directions = camera_rays(one)
    points = (origins + maps.depth.nan_to_num(posinf=0.0)[..., None] * directions)[0]
    assert psnr(images[0][hit], painted(points[hit])) > 45
    # confidence is 0 where nothing is, on the outline, and where the face looks away
    assert bool((maps.weight[~hit] == 0).all()) and float(maps.weight.max()) <= 1
    assert float(maps.weight[hit].min()) == 0


def test_the_texture_shows_the_views_again_and_held_out_ones(scene):
    mesh, views = scene
    result = refine_texture(mesh, views, SMALL)
    held_out = views_of(painted_cube(), cameras_around(3, elevation=10.0, start=40.0))
    images, _ = render_texture(result.mesh, held_out.cameras, samples=2)
    inside = held_out.masks == 1
    assert psnr(images, held_out.images, inside) > 36
    plain = blend_texture(mesh, views, SMALL)
    blurred, _ = render_texture(plain.mesh, held_out.cameras, samples=2)
    assert psnr(images, held_out.images, inside) > psnr(blurred, held_out.images, inside)
    assert result.report["db"] > result.report["db_blend"] + 3
    assert result.report["seen_share"] > 0.99 and not bool(result.unseen[10, 10])


def test_views_that_agree_keep_their_exposure_and_others_are_evened_out(scene):
    mesh, views = scene
    truth = 1 + 0.2 * torch.sin(torch.arange(12.0)[:, None] * torch.tensor([1.0, 2, 3]))
    truth = truth / truth.mean(dim=0)
    queries = MeshQueries(mesh.vertices, mesh.faces)
    normals = face_normals(queries)
    points = SurfacePoints.of(mesh, find_texels(mesh, 64, 64), normals)
    maps = [look(queries, normals, views.cameras[v], views.masks[v], SMALL) for v in range(12)]
    generator = torch.Generator().manual_seed(0)
    assert float((view_gains(points, views, maps, generator) - 1).abs().max()) < 0.01
    dimmed = dataclasses.replace(views, images=(views.images * truth[:, None, None]).clamp(0, 1))
    gains = view_gains(points, dimmed, maps, generator)
    torch.testing.assert_close(gains.mean(dim=0), torch.ones(3), atol=1e-4, rtol=0)
    product = gains * truth
    assert float((product / product.mean(dim=0) - 1).abs().max()) < 0.03


@pytest.mark.parametrize("radius", [0.4, 2.0])  # among the faces, and far from them
def test_faces_that_are_left_out_of_the_blend_show_nothing(radius):
    generator = torch.Generator().manual_seed(int(10 * radius))
    corners = torch.rand(400, 1, 3, generator=generator) - 0.5
    corners = corners + 0.2 * torch.rand(400, 3, 3, generator=generator)
    queries = MeshQueries(corners.reshape(-1, 3), torch.arange(1200).view(-1, 3))
    normals = face_normals(queries)
    share = torch.rand(4000, 3, generator=generator)
    face = torch.arange(4000) % 400
    share = (share / share.sum(-1, keepdim=True))[..., None]
    points = SurfacePoints((share * corners[face]).sum(1), normals[face])
    cameras = orbit_cameras(Orbit(num_views=5, radius=radius, elevation_deg=20.0), 40, 40)
    masks = (torch.rand(5, 40, 40, generator=generator) < 0.5).float()
    views = Views(torch.rand(5, 40, 40, 3, generator=generator), masks, cameras)
    maps = [look(queries, normals, cameras[v], masks[v], SMALL) for v in range(5)]
    colours, weights = torch.zeros(4000, 3), torch.zeros(4000)
    for v in range(5):
        coloured, weight = look_up(points, cameras[v], views.images[v], maps[v])
        shown = may_show(corners, cameras[v], maps[v])
        assert not bool(weight[~shown[face]].any()) and 0 < int(shown.sum()) < 300
        colours += coloured
        weights += weight
    assert int((weights > LEAST_WEIGHT).sum()) > 100
    found = blend_views(points, face, corners, views, maps)
    assert torch.equal(found[1], weights)
    assert torch.equal(found[0], colours / weights.clamp_min(1e-12)[:, None])


def test_what_no_view_sees_is_marked_and_filled(scene):
    _, views = scene
    mesh = painted_cube()
    # from above only: the side below (third axis of the cube is Y up: axis 1, sign -) is unseen
    few = views[range(6)]
    result = refine_texture(mesh, few, SMALL)
    texels = find_texels(mesh, 128, 128)
    below = torch.zeros(128 * 128, dtype=torch.bool)
    below[texels.index] = texels.face // 2 == 3
    unseen = result.unseen.flatten()
    assert bool(unseen[below].all())
    # but for the rims, which lie on outlines, everything else is seen
    inner = texels.on_surface(mesh, mesh.vertices).abs().sort(dim=-1).values[:, 1] < 0.42
    sides = torch.zeros(128 * 128, dtype=torch.bool)
    sides[texels.index] = inner & (texels.face // 2 != 3)
    assert int(sides.sum()) > 3000 and not bool(unseen[sides].any())
    assert 0.78 < result.report["seen_share"] < 0.84  # five sides of six, but for their lower rims
    texture = result.mesh.texture
    assert texture is not None and bool(torch.isfinite(texture).all())
    shown = texture.reshape(-1, 3)[below]
    assert float(shown.min()) > 0.05 and float(shown.std(dim=0).min()) > 0.001


def test_rounds_that_take_outliers_back_remove_a_wrong_patch():
    views = views_of(painted_cube(), cameras_around(12))  # every side in five views
    images = views.images.clone()
    images[2, 40:56, 40:56] = 1.0
    wrong = dataclasses.replace(views, images=images)
    scores = []
    for rounds in (0, 4):
        config = dataclasses.replace(SMALL, harmonise=False, robust_rounds=rounds)
        result = refine_texture(cube(), wrong, config)
        shown, _ = render_texture(result.mesh, views.cameras, samples=2)
        scores.append(psnr(shown, views.images, views.masks == 1))
    assert scores[1] > scores[0] + 4


@pytest.mark.slow
def test_adam_steps_come_nearer_to_the_views_with_and_without_a_perceptual_distance(
    scene, monkeypatch
):
    mesh, views = scene
    start = dataclasses.replace(SMALL, solver_steps=0, harmonise=False)
    asked = []

    class Distance(torch.nn.Module):
        def forward(self, first, second):
            asked.append(first.shape)
            return (first - second).abs().mean(dim=(1, 2, 3))

    monkeypatch.setattr(backends, "load_lpips_network", lambda: (Distance(), "fake"))
    inside = views.masks == 1
    shown, _ = render_texture(refine_texture(mesh, views, start).mesh, views.cameras, samples=2)
    before = psnr(shown, views.images, inside)
    for weight in (0.0, 1.0):
        config = dataclasses.replace(start, iterations=12, lpips_weight=weight)
        result = refine_texture(mesh, views, config)
        shown, _ = render_texture(result.mesh, views.cameras, samples=2)
        assert psnr(shown, views.images, inside) > before + 0.1
    assert asked == [(1, 3, 96, 96)] * 12


def test_a_missing_perceptual_network_is_said(scene, monkeypatch):
    mesh, views = scene
    monkeypatch.setattr(backends, "load_lpips_network", lambda: (None, "lpips is not installed"))
    config = dataclasses.replace(SMALL, iterations=1, lpips_weight=1.0)
    with pytest.raises(backends.MissingPackageError, match="lpips is not installed"):
        refine_texture(mesh, views, config)


def test_views_are_chosen_as_v3d_chooses_them(scene):
    mesh, views = scene
    many = views[[v % 12 for v in range(18)]]
    many = dataclasses.replace(many, names=tuple(str(v) for v in range(18)))
    # V3D's refine.py: floor(linspace(0, 18, n + 1)[:n])
    for count, expected in ((4, [0, 4, 9, 13]), (16, [*range(8), *range(9, 17)])):
        chosen = chosen_views(many, RefineConfig(num_views=count))
        assert [int(name) for name in chosen.names] == expected
    result = refine_texture(mesh, views, dataclasses.replace(SMALL, num_views=5, solver_steps=2))
    assert result.report["views"] == 5 and len(result.report["gains"]) == 5


def test_pictures_are_aligned_before_they_are_mixed(scene):
    mesh, views = scene
    wrong = dataclasses.replace(views, images=views.images.flip(-1))

    def align(mesh: Mesh, found: Views, progress) -> Views:
        progress(1, 2)
        assert found is wrong and mesh.uvs is not None
        return views

    config = dataclasses.replace(SMALL, solver_steps=3)
    aligned = refine_texture(mesh, wrong, config, align=align).mesh.texture
    assert aligned is not None
    torch.testing.assert_close(aligned, refine_texture(mesh, views, config).mesh.texture)


def test_progress_climbs_to_the_end_and_cancels(scene):
    mesh, views = scene
    steps = []
    refine_texture(mesh, views, SMALL, progress=lambda s, t, p=None, text="": steps.append((s, t)))
    assert [s for s, _ in steps] == sorted(s for s, _ in steps) and steps[-1] == (100, 100)
    assert len(steps) > 40

    def stop(step, total, preview=None, text=""):
        if step > 50:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        refine_texture(mesh, views, SMALL, progress=stop)


def test_pictures_of_the_work_show_the_first_view_and_get_no_worse(scene):
    mesh, views = scene
    config = dataclasses.replace(SMALL, iterations=12)
    pictures: list[torch.Tensor] = []

    def look(step, total, preview=None, text=""):
        if preview is not None and step % 5 == 0:
            pictures.append(preview())

    result = refine_texture(mesh, views, config, progress=look)
    shown, coverage = render_texture(result.mesh, views.cameras[0])
    target = composite(shown, coverage)[0]
    assert len(pictures) > 5 and {p.shape for p in pictures} == {target.shape}
    errors = [float((p - target).abs().mean()) for p in pictures]
    assert 2 * errors[-1] < errors[0] < 0.01


def test_old_textures_and_views_stay_as_they_were(scene):
    _, views = scene
    mesh = painted_cube()
    before = [t.clone() for t in (mesh.texture, mesh.uvs, views.images, views.masks)]
    refine_texture(mesh, views, SMALL)
    for tensor, old in zip(
        (mesh.texture, mesh.uvs, views.images, views.masks), before, strict=True
    ):
        assert torch.equal(tensor, old)


def test_views_that_see_nothing_are_named(scene):
    mesh, views = scene
    poses = views.cameras.camera_to_world.clone()
    poses[[1, 4], :3, :2] *= -1  # upside down is fine
    poses[[3, 5], :3, 0] *= -1
    poses[[3, 5], :3, 2] *= -1  # looks away
    cameras = dataclasses.replace(views.cameras, camera_to_world=poses)
    with pytest.raises(ValueError, match=r"2 of 12 views see nothing .* view_3, view_5"):
        refine_texture(mesh, dataclasses.replace(views, cameras=cameras), SMALL)


def test_an_empty_mask_is_a_view_that_sees_nothing(scene):
    mesh, views = scene
    masks = views.masks.clone()
    masks[7] = 0
    with pytest.raises(ValueError, match=r"1 of 12 views .* view_7"):
        refine_texture(mesh, dataclasses.replace(views, masks=masks), SMALL)


def test_bad_meshes_are_refused(scene):
    mesh, views = scene
    with pytest.raises(ValueError, match="24 vertices and 0 faces"):
        refine_texture(dataclasses.replace(mesh, faces=mesh.faces[:0]), views, SMALL)
    inside_out = dataclasses.replace(mesh, faces=mesh.faces.flip(1))
    with pytest.raises(ValueError, match=r"inside out: \d+ pixels see the backs .* and 0 their"):
        refine_texture(inside_out, views, SMALL)
    assert mesh.uvs is not None
    with pytest.raises(ValueError, match=r"from 0\.0\d+ to 1\.94.* unwrap the mesh again"):
        refine_texture(dataclasses.replace(mesh, uvs=mesh.uvs * 2), views, SMALL)


def test_faces_that_share_texels_are_reported(scene, caplog):
    mesh, views = scene
    assert mesh.uvs is not None
    halves = mesh.uvs * torch.tensor([1.0, 0.5])
    halves[12:, 1] -= halves[12:, 1].min() - halves[:12, 1].min()  # the lower row onto the upper
    result = refine_texture(
        dataclasses.replace(mesh, uvs=halves), views, dataclasses.replace(SMALL, solver_steps=1)
    )
    assert result.report["overlap_share"] > 0.9 and "lie in several faces" in caplog.text


def test_a_mesh_without_an_atlas_is_unwrapped(scene):
    mesh, views = scene
    bare = dataclasses.replace(mesh, uvs=None)
    result = refine_texture(bare, views, dataclasses.replace(SMALL, solver_steps=2))
    assert result.mesh.uvs is not None and result.mesh.texture is not None
    shown, _ = render_texture(result.mesh, views.cameras, samples=2)
    assert psnr(shown, views.images, views.masks == 1) > 25


def test_a_texture_larger_than_memory_is_refused_with_both_numbers(scene, monkeypatch):
    mesh, views = scene
    monkeypatch.setattr(texture_checks, "free_bytes", lambda device: 10**9)
    with pytest.raises(ValueError, match=r"4096x4096 .* about 4\.2 GB but 1\.0 GB are free"):
        refine_texture(mesh, views, RefineConfig(resolution=4096))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"resolution": 8192}, "64 to 4096, got 8192"),
        ({"samples": 0}, "1 to 4, got 0"),
        ({"num_views": 0}, "at least 1 is needed, got 0"),
        ({"lpips_weight": 1.0}, "lpips_weight is 1 but iterations is 0"),
        ({"smoothness": math.nan}, "got nan"),
    ],
)
def test_settings_out_of_range_are_named(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        RefineConfig(**changes)


def test_views_of_another_size_than_their_cameras_are_refused(scene):
    _, views = scene
    with pytest.raises(ValueError, match="images are 96x96 but the cameras are made for 64x64"):
        Views(views.images, views.masks, dataclasses.replace(views.cameras, width=64, height=64))
