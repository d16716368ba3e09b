"""The NeuS fit on pictures whose truth is known: a painted ball with a dent that no outline shows."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
import trimesh
from live_tensors import live_tensor_bytes

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.demo_object import AnalyticObject
from v3d_core.neus.config import (
    GPU_NEUS_PRESETS,
    NEUS_PRESETS,
    NeusFitConfig,
    for_aligned_frames,
    neus_preset,
)
from v3d_core.neus.extract import extract_mesh
from v3d_core.neus.fit import CPU_STRIDE, fit_neus
from v3d_core.procedural import render_maps
from v3d_core.structures import Views

RADIUS, DENT, DENT_RADIUS = 0.6, (0.53, 0.0, 0.53), 0.27
QUICK = NeusFitConfig(  # learns within seconds on one core
    steps=180,
    rays=384,
    samples=16,
    start_resolution=32,
    refresh_steps=20,
    levels=6,
    coarsest=8,
    finest=64,
    log2_entries=13,
    hidden=16,
    active_levels=6,
    inv_s=40.0,
    table_rate=2e-2,
    network_rate=1e-2,
    rates_end=0.5,
)
TINY = dataclasses.replace(QUICK, steps=6, rays=64, samples=8, levels=3, finest=32, hidden=8)


def dented_ball():
    def sdf(points):
        dent = DENT_RADIUS - (points - points.new_tensor(DENT)).norm(dim=-1)
        return torch.maximum(points.norm(dim=-1) - RADIUS, dent)

    def albedo(points):
        x, y, z = (20 * points).unbind(-1)
        waves = [x + 0.5 * y, y - 0.4 * z + 1, z + 0.3 * x - 1]
        return 0.5 + 0.4 * torch.stack([wave.sin() for wave in waves], dim=-1)

    return AnalyticObject(sdf, albedo, 0.7)


def views_of(shape, orbit, size=64):
    """The object's pictures and true normals."""
    cameras = orbit_cameras(orbit, size, size)
    maps = render_maps(cameras, shape, supersample=1)
    rotation = cameras.camera_to_world[:, None, :3, :3]
    normals = maps.normals @ rotation  # world to camera
    return Views(maps.colours, maps.alphas, cameras, normals=normals)


@pytest.fixture(scope="module")
def guided():
    """With normals."""
    return views_of(dented_ball(), Orbit(num_views=12))


@pytest.fixture(scope="module")
def views(guided):
    """Without."""
    return dataclasses.replace(guided, normals=None)


@pytest.fixture(scope="module")
def few():
    """Five views of the object at 32 px, for what needs no quality."""
    return views_of(dented_ball(), Orbit(num_views=5), 32)


@pytest.fixture(scope="module")
def fitted(views):
    return fit_neus(views, QUICK)


def on_sphere(count, radius, centre, seed=0):
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    return directions * radius + torch.tensor(centre)


def in_dent():
    points = on_sphere(2000, DENT_RADIUS, DENT)
    return points[points.norm(dim=-1) < RADIUS]


def on_ball():
    """Away from the dent and from the poles, which no view sees well."""
    points = on_sphere(2000, RADIUS, (0.0, 0.0, 0.0))
    off = (points - torch.tensor(DENT)).norm(dim=-1)
    return points[(off > DENT_RADIUS + 0.05) & (points[:, 1].abs() < 0.35)]


def distance_to_truth(fit, points):
    """How far the fitted surface is from points of the true one, on average."""
    return float(fit.field.sdf(points).abs().mean())


def test_a_film_draws_tight_what_no_view_sees_and_leaves_what_is_seen(views, fitted):
    """The orbit sees neither pole of the ball: what stands there becomes a film, and no more."""
    loose = fit_neus(views, dataclasses.replace(QUICK, film_steps=0)).field
    tight = fitted.field
    seen = torch.cat([on_ball(), in_dent()])
    cell = 2 * tight.half_size / QUICK.start_resolution
    assert float((tight.sdf(seen) - loose.sdf(seen)).abs().amax()) < 0.02 * cell
    up = torch.linspace(0.3, 0.9, 200)[:, None] * torch.tensor([0.0, 1.0, 0.0])
    assert (tight.sdf(up) - loose.sdf(up)).abs().amax() > 0.1 * cell  # it did something
    # gradients belong to the distances still
    points = torch.cat([up[::20], seen[::100]])
    _, gradient = tight.sdf_and_gradient(points)
    step = 1e-3 * torch.eye(3)
    slopes = [(tight.sdf(points + s) - tight.sdf(points - s)) / 2e-3 for s in step]
    torch.testing.assert_close(gradient, torch.stack(slopes, -1), atol=0.35, rtol=0)


def test_fit_finds_the_dent_that_its_start_has_not(views, fitted):
    start = fit_neus(views, dataclasses.replace(QUICK, steps=1))
    assert distance_to_truth(fitted, in_dent()) < 0.6 * distance_to_truth(start, in_dent())
    assert distance_to_truth(fitted, on_ball()) < 0.008
    assert fitted.report["psnr_train"] > start.report["psnr_train"] + 4


@pytest.mark.parametrize("mirror", [(-1, 1, 1), (1, 1, -1)])
def test_fit_is_not_the_mirror_image(fitted, mirror):
    wrong = in_dent() * torch.tensor(mirror)
    assert distance_to_truth(fitted, wrong) > 2 * distance_to_truth(fitted, in_dent())


def test_mesh_of_the_fit_is_closed_and_near_the_truth_with_its_colours(fitted):
    mesh = extract_mesh(fitted.field, 64)
    solid = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    assert solid.is_watertight and solid.volume > 0
    seen = mesh.vertices[:, 1].abs() < 0.35
    off = dented_ball().sdf(mesh.vertices[seen]).abs()
    assert float(off.mean()) < 0.008 and float(off.quantile(0.99)) < 0.06
    truth = dented_ball().albedo(mesh.vertices[seen])
    colours = mesh.vertex_colours[seen]
    # light and shade are on top of the paint
    together = torch.corrcoef(torch.stack([truth.flatten(), colours.flatten()]))[0, 1]
    assert float(together) > 0.9


def test_report_says_how_the_fit_went(views, fitted):
    assert fitted.views is views
    report = fitted.report
    assert report["steps"] == QUICK.steps and report["stopped"] == "all steps"
    assert report["resolution"] == 64 and report["seed"] == 0 and report["device"] == "cpu"
    assert report["inv_s"] > QUICK.inv_s and 0 < report["loss"] < 1 and report["seconds"] > 0
    assert not any(p.requires_grad for p in fitted.field.parameters())


def test_true_normals_are_followed(guided):
    """A quarter as far off in as many steps, in the dent, which masks say nothing about."""
    config = dataclasses.replace(QUICK, steps=40, normal_weight=1.0)
    points = in_dent()
    truth = F.normalize(torch.tensor(DENT) - points, dim=-1)

    def error(views):
        gradients = fit_neus(views, config).field.sdf_and_gradient(points)[1]
        return float((1 - F.cosine_similarity(gradients, truth, dim=-1)).mean())

    without = error(dataclasses.replace(guided, normals=None))
    assert error(guided) < 0.25 * without
    opposite = dataclasses.replace(guided, normals=guided.normals * torch.tensor([-1.0, -1, 1]))
    assert error(opposite) > without


def bits(fit):
    return [*fit.field.state_dict().values()]


def same_bits(first, second):
    return all(torch.equal(a, b) for a, b in zip(bits(first), bits(second), strict=True))


def test_same_seed_same_bits_and_another_seed_other_bits(few):
    first, again = fit_neus(few, TINY), fit_neus(few, TINY)
    assert same_bits(first, again) and first.report["loss"] == again.report["loss"]
    assert not same_bits(first, fit_neus(few, dataclasses.replace(TINY, seed=1)))


def test_global_random_state_is_neither_used_nor_changed(few):
    torch.manual_seed(1)
    first = fit_neus(few, TINY)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    again = fit_neus(few, TINY)
    assert torch.equal(torch.random.get_rng_state(), before) and same_bits(first, again)


def test_inputs_are_not_changed(few):
    tensors = few.images, few.masks, few.normals, few.cameras.camera_to_world, few.cameras.K
    copies = [t.clone() for t in tensors]
    fit_neus(few, TINY)
    assert all(torch.equal(a, b) for a, b in zip(copies, tensors, strict=True))


@pytest.mark.parametrize("resolution", [0, 24], ids=["as they are", "resampled"])
def test_colours_outside_the_masks_do_not_matter_at_all(few, resolution):
    config = dataclasses.replace(TINY, resolution=resolution)
    outside = (few.masks == 0)[..., None]
    assert bool(outside.any())
    results = []
    noise = torch.rand(few.images.shape, generator=torch.Generator().manual_seed(0))
    for colour in (0.0, 1.0, 1e6 * (noise - 0.5)):
        garbage = torch.where(outside, colour, few.images)
        results.append(fit_neus(dataclasses.replace(few, images=garbage), config))
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


def test_soft_masks_give_the_shape_whose_outline_is_half_covered(views):
    """Edges blurred over seven pixels: without their colours the ball is still as large."""
    soft = views.masks[:, None]
    for _ in range(2):
        soft = F.avg_pool2d(soft, 5, stride=1, padding=2, count_include_pad=False)
    soft = dataclasses.replace(views, masks=soft[:, 0], images=torch.full_like(views.images, 0.5))
    assert 0.1 < float(((soft.masks > 0.02) & (soft.masks < 0.98)).float().mean())
    fit = fit_neus(soft, dataclasses.replace(QUICK, steps=60))
    assert all(bool(t.isfinite().all()) for t in bits(fit))
    assert distance_to_truth(fit, on_ball()) < 0.025
    assert float(fit.field.sdf(on_ball()).mean()) == pytest.approx(0, abs=0.02)


def test_object_that_touches_the_frame_gives_a_closed_mesh(views):
    """Seen from so near that its left, right, top and bottom lie outside every picture."""
    near = views_of(dented_ball(), Orbit(num_views=8, fov_y_deg=28.0), 48)
    assert bool((near.masks[:, 0] > 0).any()) and bool((near.masks[:, :, -1] > 0).any())
    fit = fit_neus(near, dataclasses.replace(QUICK, steps=20, rays=128))
    mesh = extract_mesh(fit.field, 48)
    solid = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    assert solid.is_watertight and solid.is_winding_consistent and solid.volume > 0


def test_a_sphere_shrinks_to_the_object_in_it():
    """The start is 0.58 in radius, the object 0.45."""

    def sdf(points):
        return points.norm(dim=-1) - 0.45

    views = views_of(
        AnalyticObject(sdf, lambda p: torch.full_like(p, 0.6), 0.5), Orbit(num_views=8)
    )
    views = dataclasses.replace(views, normals=None)
    config = dataclasses.replace(QUICK, start="sphere", steps=40, mask_weight=1.0)
    points = on_sphere(500, 0.45, (0.0, 0.0, 0.0))
    points = points[points[:, 1].abs() < 0.3]
    start = fit_neus(views, dataclasses.replace(config, steps=1))
    assert distance_to_truth(start, points) > 0.11
    assert distance_to_truth(fit_neus(views, config), points) < 0.02


@pytest.mark.parametrize(
    "change",
    [
        {"sparsity_weight": 0.5},
        {"smoothness_weight": 0.5},
        {"curvature_weight": 0.5},
        {"sparsity_weight": 0.1, "smoothness_weight": 0.1, "curvature_weight": 0.1},
        {"eikonal_weight": 0.5},
        {"mask_weight": 1.0},
        {"colour_weight": 2.0},
        {"normal_weight": 1.0},
        {"normal_weight": 0.0},
        {"trimmed": 0.2},
        {"view_direction": True},
    ],
    ids=lambda change: ", ".join(change),
)
def test_every_term_of_the_loss_acts_and_stays_finite(few, change):
    fit, base = fit_neus(few, dataclasses.replace(TINY, **change)), fit_neus(few, TINY)
    assert all(bool(t.isfinite().all()) for t in bits(fit))
    assert not torch.equal(fit.field.weight2, base.field.weight2)


def test_progress_is_told_every_stride_with_a_picture_on_demand(few, monkeypatch):
    monkeypatch.setattr("v3d_core.neus.fit.PREVIEW_SIZE", 20)
    wide = dataclasses.replace(
        few,
        images=few.images[:, 8:],
        masks=few.masks[:, 8:],
        normals=None,
        cameras=dataclasses.replace(
            few.cameras,
            height=24,
            K=few.cameras.K - torch.tensor([[0.0, 0, 0], [0, 0, 8], [0, 0, 0]]),
        ),
    )
    seen, steps, pictures = [], [], []

    def progress(step, total, preview=None, text=""):
        seen.append((step, total, text))
        if preview is not None:
            steps.append(step)
            pictures.append(preview())

    fit_neus(wide, dataclasses.replace(TINY, steps=5), progress=progress)
    assert steps == [*range(CPU_STRIDE, 5, CPU_STRIDE), 5]
    assert {step for step, _, _ in seen} == {0, 1, 2, 3, 4, 5}  # Cancel waits for one step
    assert {total for _, total, _ in seen} == {5} and seen[0][0] == 0
    assert {text for step, _, text in seen if step == 0} == {"Carving the visual hull"}
    for picture in pictures:
        assert picture.shape == (15, 20, 3)
        assert 0 <= float(picture.min()) and float(picture.max()) <= 1
        assert 0.05 < float((picture != 1).any(-1).float().mean()) < 0.95


def test_a_preview_changes_nothing(few):
    def progress(step, total, preview=None, text=""):
        if preview is not None:
            preview()

    assert same_bits(fit_neus(few, TINY, progress=progress), fit_neus(few, TINY))


def test_finish_keeps_what_there_is(few):
    asked = itertools.count()
    fit = fit_neus(few, TINY, finish=lambda: next(asked) == 1)
    assert fit.report["steps"] == 2 * CPU_STRIDE and fit.report["stopped"] == "finish now"
    assert all(bool(t.isfinite().all()) for t in bits(fit)) and fit.report["loss"] > 0
    start, whole = fit_neus(few, dataclasses.replace(TINY, steps=1)), fit_neus(few, TINY)
    assert not same_bits(fit, start) and not same_bits(fit, whole)
    assert len(extract_mesh(fit.field, 16).faces)


@pytest.mark.parametrize("at", [0, 3, 4], ids=["while carving", "in a stride", "in a picture"])
def test_cancelling_frees_everything(few, at):
    class Cancelled(BaseException):
        pass

    def progress(step, total, preview=None, text=""):
        if preview is not None and step:
            preview()
        if step == at:
            raise Cancelled

    fit_neus(few, TINY)  # engines are chosen now
    before = live_tensor_bytes()
    with pytest.raises(Cancelled) as caught:
        fit_neus(few, TINY, progress=progress)
    del caught
    assert live_tensor_bytes() == before


def test_a_fit_leaves_no_more_than_its_field(few):
    fit_neus(few, TINY)
    before = live_tensor_bytes()
    fit = fit_neus(few, TINY)
    assert live_tensor_bytes() - before == sum(t.nbytes for t in bits(fit))


def test_one_view_is_refused(few):
    with pytest.raises(ValueError, match="at least 2 views to have depth, got 1"):
        fit_neus(few[0], TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"rays": 0}, "rays must be at least 1, got 0"),
        ({"resolution": 8}, "at least 16 px, got 8"),
        ({"start": "cube"}, r"one of \('hull', 'sphere'\), got 'cube'"),
        ({"membrane_level": 1.1}, r"membrane_level must lie in \[0, 1\], got 1.1"),
        ({"trimmed": 1.0}, r"trimmed must lie in \[0, 1\), got 1"),
        ({"surface_share": -0.1}, r"surface_share must lie in \[0, 1\), got -0.1"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NeusFitConfig(**change)


def test_presets_are_chosen_by_name_and_device():
    assert neus_preset("normal", "cpu") == NEUS_PRESETS["normal"] == NeusFitConfig()
    assert neus_preset("draft", "cuda") == GPU_NEUS_PRESETS["draft"]
    for presets in (NEUS_PRESETS, GPU_NEUS_PRESETS):
        assert presets["draft"].steps < presets["normal"].steps < presets["best"].steps
    with pytest.raises(ValueError, match="no preset 'fine'; there are draft, normal, best"):
        neus_preset("fine", "cpu")
    calmer = for_aligned_frames(NEUS_PRESETS["draft"])
    assert (calmer.mask_misses, calmer.smoothness_weight, calmer.steps) == (1, 0.03, 800)
    assert calmer.membrane_level == 0.3
    assert calmer.start_film_steps == 0  # a film would keep the webs of a hull that forgives
    bold = NeusFitConfig(
        mask_misses=2, smoothness_weight=0.1, membrane_level=0.4, start_film_steps=0
    )
    assert for_aligned_frames(bold) == bold  # what asks for more is kept
    changed = NEUS_PRESETS["draft"].with_changes(steps=7, rays=None)
    assert changed == dataclasses.replace(NEUS_PRESETS["draft"], steps=7)
