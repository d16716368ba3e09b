"""The public protocol as a command: closed forms, perfect scores, resuming, failures, consistency."""

import base64
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from scipy import ndimage, special

from v3d_core import cli, cli_evaluate, evaluation, evaluation_units
from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.demo_object import sphere_object
from v3d_core.evaluation import evaluate, failures, find_objects
from v3d_core.evaluation_methods import EvaluationConfig, Pipeline, consistency, render_mesh
from v3d_core.evaluation_report import html_page, markdown_tables
from v3d_core.evaluation_surface import (
    SurfaceSamples,
    TrueSurface,
    load_true_surface,
    surface_scores,
    topology,
)
from v3d_core.evaluation_units import input_hash
from v3d_core.formats.mesh_files import write_mesh
from v3d_core.formats.transforms import transforms_document
from v3d_core.formats.views import load_views, save_views
from v3d_core.mesh.asset import AssetConfig
from v3d_core.mesh.config import SplatMeshConfig
from v3d_core.metrics import mask_iou, psnr
from v3d_core.neus.config import NeusFitConfig
from v3d_core.procedural import render_object
from v3d_core.reconstruct import save_and_score, straight_renders
from v3d_core.report import source_line
from v3d_core.splats.config import SplatFitConfig
from v3d_core.splats.fit import fit_splats
from v3d_core.structures import Mesh, Views

CPU = torch.device("cpu")
SIZE = 48  # px
FIT = SplatFitConfig(
    steps=40,
    resolution=SIZE,
    initial_splats=800,
    max_splats=1000,
    hull_resolution=32,
    coarse_until=0.0,
    align="off",
)
CONFIG = EvaluationConfig(
    methods=("hull", "splat", "splat-mesh", "consistency"),
    splat=FIT,
    mesh=SplatMeshConfig(resolution=40, extra_elevations_deg=()),
    neus=NeusFitConfig(steps=10, rays=64, start_resolution=32, levels=4),
    asset=AssetConfig(faces=600, texture_size=64, align="off"),
    resolution=24,
    hull_resolution=20,
    samples=3000,
    rays=1,
)


def ball(radius, subdivisions=5):
    """A sphere of triangles whose vertices lie on it."""
    import trimesh

    sphere = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    vertices = torch.from_numpy(np.array(sphere.vertices)).float()
    return Mesh(vertices, torch.from_numpy(np.array(sphere.faces, np.int64)))


@pytest.fixture(scope="module")
def orbit():
    """18 exact views of a painted ball."""
    return render_object(orbit_cameras(Orbit(num_views=18), SIZE, SIZE), sphere_object(0.6))


@pytest.fixture(scope="module")
def data(orbit, tmp_path_factory):
    """Two objects: one with truth and held-out views, one orbit with neither."""
    root = tmp_path_factory.mktemp("data")
    full = root / "a <ball> & |more|"
    test = orbit_cameras(Orbit(num_views=4, elevation_deg=10.0, azimuth_start_deg=10.0), SIZE, SIZE)
    for split, views in (("train", orbit), ("test", render_object(test, sphere_object(0.6)))):
        save_views(full / f"orbit_{split}", views)
        names = [f"./orbit_{split}/view_{k:03d}.png" for k in range(len(views))]
        document = transforms_document(views.cameras, names)
        (full / f"transforms_{split}.json").write_text(json.dumps(document))
    truth = ball(0.6)
    write_mesh(full / "gt_mesh.ply", truth)
    points = truth.vertices.numpy()
    np.savez(
        full / "gt_points.npz",
        points=points,
        normals=(points / 0.6).astype(np.float16),
        visible_train=np.abs(points[:, 1]) < 0.55,
    )
    save_views(root / "sampled", orbit[list(range(0, 18, 2))])
    return root


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    units = []
    record = evaluate(
        data, out, CONFIG, CPU, preset="tiny", command="v3d evaluate x", tell=units.append
    )
    return out, record, units


# --- surfaces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.03])
def test_a_sphere_in_a_sphere_scores_what_the_radii_say(gap):
    # N random points of a sphere leave a cap of chord r empty with probability exp(-N r^2 / 4), and
    # from radius 1 + gap the point at chord r is at distance sqrt(gap^2 + (1 + gap) r^2)
    count, truth = 20_000, ball(1.0)
    scores = surface_scores(ball(1.0 + gap), TrueSurface(truth), samples=count)
    rate = count / 4 / (1 + gap)
    mean = gap + np.sqrt(np.pi / rate) / 2 * special.erfcx(gap * np.sqrt(rate))
    for key in ("accuracy", "completeness", "chamfer_l1"):
        assert scores[key] == pytest.approx(mean, rel=0.015), key
    for threshold in (0.005, 0.01):
        squared = (threshold * 2 * np.sqrt(3)) ** 2 - gap**2  # of the true box's diagonal
        found = -np.expm1(-rate * squared) if squared > 0 else 0.0
        assert scores[f"fscore_{threshold * 100:g}pct"] == pytest.approx(found, abs=0.01)
    assert scores["normal_consistency"] > 0.998


def test_half_a_sphere_has_precision_one_and_recall_one_half():
    truth = ball(1.0)
    upper = truth.vertices[truth.faces].mean(dim=1)[:, 1] > 0
    half = Mesh(truth.vertices, truth.faces[upper])
    near = 0.03464  # 1 % of the diagonal: so wide a strip beyond the cut is still found
    scores = surface_scores(half, TrueSurface(truth), samples=30_000)
    recall = (1 + near) / 2
    assert scores["fscore_1pct"] == pytest.approx(2 * recall / (1 + recall), abs=0.01)
    north = truth.vertices[truth.vertices[:, 1] > 0.1].double().numpy()
    known = TrueSurface(truth, SurfaceSamples(north, north))
    seen = surface_scores(half, known, samples=30_000)
    assert seen["fscore_1pct_seen"] > 0.9999 and seen["fscore_1pct"] == scores["fscore_1pct"]


def test_scores_are_those_of_brute_force():
    truth, mesh = ball(1.0, 2), ball(0.93, 1)
    scores = surface_scores(mesh, TrueSurface(truth), samples=400)
    from v3d_core.evaluation_surface import sample_surface

    own = sample_surface(mesh, 400, np.random.default_rng([0, 1]))
    true = sample_surface(truth, 400, np.random.default_rng([0, 2]))
    table = np.linalg.norm(own.points[:, None] - true.points[None], axis=-1)
    assert scores["accuracy"] == pytest.approx(table.min(1).mean(), abs=1e-12)
    assert scores["completeness"] == pytest.approx(table.min(0).mean(), abs=1e-12)
    cosines = np.abs(own.normals @ true.normals.T)
    there = cosines[np.arange(400), table.argmin(1)].mean()
    back = cosines[table.argmin(0), np.arange(400)].mean()
    assert scores["normal_consistency"] == pytest.approx((there + back) / 2, abs=1e-12)
    limit = 0.01 * np.linalg.norm(np.ptp(truth.vertices.double().numpy(), axis=0))
    p, r = (table.min(1) < limit).mean(), (table.min(0) < limit).mean()
    assert scores["fscore_1pct"] == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)


def test_samples_lie_on_the_faces_in_shares_of_their_area():
    from v3d_core.evaluation_surface import sample_surface

    corners = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 5], [1, 0, 5], [0, 1, 5]])
    mesh = Mesh(corners, torch.tensor([[0, 1, 2], [3, 4, 5]]))
    found = sample_surface(mesh, 20_000, np.random.default_rng(0))
    large = found.points[:, 2] == 0
    assert large.mean() == pytest.approx(0.75, abs=0.01)
    assert (found.normals == [0, 0, 1]).all()
    x, y = found.points[large, 0] / 3, found.points[large, 1]
    assert (x + y <= 1).all() and x.mean() == pytest.approx(1 / 3, abs=0.01)


def test_topology_of_closed_open_turned_and_several_parts():
    sphere = ball(1.0, 1)
    assert topology(sphere) == {"watertight": 1.0, "parts": 1.0, "faces": 80.0}
    assert topology(Mesh(sphere.vertices, sphere.faces[1:]))["watertight"] == 0.0
    assert topology(Mesh(sphere.vertices, sphere.faces.flip(1)))["watertight"] == 0.0
    two = Mesh(
        torch.cat([sphere.vertices, sphere.vertices + 3]),
        torch.cat([sphere.faces, sphere.faces + 42]),
    )
    assert topology(two)["parts"] == 2.0
    assert topology(Mesh(sphere.vertices, sphere.faces[:0]))["faces"] == 0.0


def test_a_mesh_without_area_and_damaged_points_are_refused(tmp_path):
    flat = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="no area"):
        surface_scores(flat, TrueSurface(ball(1.0, 1)))
    assert load_true_surface(tmp_path) is None
    write_mesh(tmp_path / "gt_mesh.ply", ball(1.0, 1))
    assert load_true_surface(tmp_path).seen is None
    path = tmp_path / "gt_points.npz"
    np.savez(path, points=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="normals"):
        load_true_surface(tmp_path)
    np.savez(path, points=np.array([object()]), normals=np.zeros(1), visible_train=np.ones(1, bool))
    with pytest.raises(ValueError, match="cannot be read"):
        load_true_surface(tmp_path)
    bad = np.full((4, 3), np.nan)
    np.savez(path, points=bad, normals=bad, visible_train=np.ones(4, bool))
    with pytest.raises(ValueError, match="NaN"):
        load_true_surface(tmp_path)


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_perfect_render_gives_perfect_scores(orbit, tmp_path):
    eighths = dataclasses.replace(
        orbit, images=(orbit.images * 255).round() / 255, masks=(orbit.masks * 255).round() / 255
    )
    scores = save_and_score(tmp_path, eighths.images, eighths.masks, eighths)
    assert scores["psnr"] == scores["psnr_object"] == 100.0
    assert scores["ssim"] == pytest.approx(1.0, abs=1e-6) and scores["alpha_iou"] == 1.0


def test_a_coloured_mesh_renders_as_the_plane_it_is():
    camera = orbit_cameras(Orbit(num_views=1, radius=2.0), 9, 9)
    corners = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    colours = torch.cat([corners[:, :2] * 0.25 + 0.5, torch.full((4, 1), 0.2)], dim=1)
    square = Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]), vertex_colours=colours)
    images, masks = render_mesh(square, camera, rays=3)
    x = (torch.arange(9) + 0.5 - 4.5) / camera.K[0, 0, 0] * 2.0
    inside = x.abs() < 0.8
    assert bool((masks[0][inside][:, inside] == 1).all())
    expected = (x * 0.25 + 0.5)[inside]
    torch.testing.assert_close(images[0, 4, inside, 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(images[0, inside, 4, 1], expected.flip(0), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no vertex colours"):
        render_mesh(ball(1.0, 1), camera)


# --- consistency ----------------------------------------------------------------------------------


def perturbed(views, pixels, seed=0):
    """Each frame moved by a smooth warp of its own, rms `pixels`, and a little brighter or darker."""
    random = np.random.default_rng(seed)
    count, height, width = views.masks.shape
    rgba = torch.cat([views.images * views.masks[..., None], views.masks[..., None]], -1).numpy()
    rows, columns = np.mgrid[:height, :width].astype(float)
    frames = []
    for v in range(count):
        flow = [ndimage.gaussian_filter(random.standard_normal((height, width)), 8) for _ in "xy"]
        flow = [f / f.std() * pixels for f in flow]
        place = [rows + flow[0], columns + flow[1]]
        moved = [ndimage.map_coordinates(rgba[v, ..., c], place, order=1) for c in range(4)]
        moved = np.stack(moved, -1)
        moved[..., :3] *= 1 + 0.04 * random.standard_normal()
        frames.append(moved)
    planes = torch.from_numpy(np.stack(frames)).float().clamp(0, 1)
    alpha = planes[..., 3:]
    images = torch.where(alpha > 1e-3, planes[..., :3] / alpha.clamp_min(1e-3), 0.0).clamp(0, 1)
    return Views(images, alpha[..., 0], views.cameras)


def test_consistency_is_near_the_held_out_score_and_falls_where_frames_disagree(orbit):
    clean = consistency(orbit, FIT)
    fit = fit_splats(orbit[::2], FIT)
    colours, alphas = straight_renders(fit.splats, orbit[1::2].cameras)
    white = colours * alphas[..., None] + 1 - alphas[..., None]
    truth = orbit.images[1::2] * orbit.masks[1::2, ..., None] + 1 - orbit.masks[1::2, ..., None]
    held_out = float(-10 * (white - truth).square().mean(dim=(1, 2, 3)).log10().mean())
    assert abs(clean.scores["consistency"] - held_out) < 1.0
    assert clean.scores["agreement"] > clean.scores["consistency"]
    # fitting is deterministic: the unseen renders of odd views are those of this very fit
    torch.testing.assert_close(clean.unseen[1::2], white, atol=1e-5, rtol=0)
    low = consistency(perturbed(orbit, 1.0), FIT).scores
    lower = consistency(perturbed(orbit, 2.5), FIT).scores
    for key in clean.scores:
        assert clean.scores[key] > low[key] + 1.0 > lower[key] + 1.5, key


def test_consistency_never_aligns_and_needs_four_views(orbit, monkeypatch):
    seen = []

    def spy(views, config, progress):
        seen.append((config.align, len(views)))
        return fit_splats(views, config, progress=progress)

    monkeypatch.setattr("v3d_core.evaluation_methods.fit_splats", spy)
    consistency(orbit[:5], dataclasses.replace(FIT, align="on", steps=2))
    assert seen == [("off", 3), ("off", 2)]
    with pytest.raises(ValueError, match="3 views, but 4"):
        consistency(orbit[:3], FIT)


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_unit_has_its_figures_and_files(finished, data):
    out, record, units = finished
    full = record["results"]["objects"]["a <ball> & |more|"]
    kinds = {(u.object_name, u.method): u.kind for u in units}
    assert failures(record) == [], failures(record)
    assert kinds["sampled", "splat"] == kinds["sampled", "splat-mesh"] == "skipped"
    assert kinds["sampled", "consistency"] == "made"
    assert (full["views"], full["test_views"], full["size"]) == (18, 4, [SIZE, SIZE])
    means = {method: full["methods"][method]["means"] for method in CONFIG.methods}
    assert means["splat"]["psnr"] > 25 and means["splat"]["alpha_iou"] > 0.9
    assert means["splat-mesh"]["watertight"] == 1.0 and means["splat-mesh"]["psnr"] > 18
    assert means["hull"]["fscore_1pct_seen"] > 0.3 and "psnr" not in means["hull"]
    assert means["consistency"]["consistency"] > 25
    assert all(m["seconds"] > 0 and m["peak_mib"] > 0 for m in means.values())
    names = {path.name for path in (out / "a <ball> & |more|" / "splat").iterdir()}
    assert names == {"test", "splat.ply", "comparison.png", "result.json"}
    assert not list(out.rglob(".writing*")) and not list(out.rglob(".result*"))
    assert json.loads((out / "evaluation.json").read_text()) == record


def test_written_figures_can_be_found_again_from_the_written_files(finished, data):
    out, record, _ = finished
    name = "a <ball> & |more|"
    means = record["results"]["objects"][name]["methods"]["splat"]["means"]
    rendered = load_views(out / name / "splat" / "test", split="train").views
    truth = load_views(data / name, split="test").views
    white = [v.images * v.masks[..., None] + 1 - v.masks[..., None] for v in (rendered, truth)]
    error = (white[0] - white[1]).double().square().mean(dim=(1, 2, 3))
    assert means["psnr"] == pytest.approx(float((-10 * error.log10()).mean()), abs=1e-4)


def test_pages_escape_names_hold_their_pictures_and_load_nothing(finished):
    out, record, _ = finished
    page = (out / "evaluation.html").read_text(encoding="utf-8")
    assert "a &lt;ball&gt; &amp; |more|" in page and "<ball>" not in page
    assert not re.search(r"<script|https?://|<link|src=\"(?!data:)", page)
    shown = [base64.b64decode(x) for x in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    files = sorted(path.read_bytes() for path in out.glob("*/*/comparison.png"))
    assert sorted(shown) == files and len(files) == 4
    text = (out / "evaluation.md").read_text(encoding="utf-8")
    assert "v3d evaluate x" in text and "`tiny` preset" in text and source_line(record) in text
    line = next(x for x in text.splitlines() if r"\|more\|" in x)
    psnr = record["results"]["objects"]["a <ball> & |more|"]["methods"]["splat"]["means"]["psnr"]
    assert f" | splat | {psnr:.2f} | " in line and r"a \<ball\> & \|more\|" in line


def test_reports_name_hostile_reasons_without_markup(finished):
    record = json.loads(json.dumps(finished[1]))
    reason = "<script>alert(1)</script>\n| x |"
    record["results"]["objects"]["sampled"]["methods"]["splat"] = {
        "kind": "failed",
        "reason": reason,
    }
    page, text = html_page(record, {}), markdown_tables(record)
    assert "&lt;script&gt;" in page and "<script" not in page
    assert r"- sampled, splat: \<script\>alert(1)\</script\> \| x \|" in text.splitlines()


def test_what_is_there_is_kept_and_what_changed_is_done_again(
    finished, data, tmp_path, monkeypatch
):
    out, record, _ = finished
    copied, again = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data, copied)
    shutil.copytree(out, again)
    monkeypatch.setattr(evaluation, "warm_up", lambda *args: pytest.fail("nothing is to be done"))

    def kinds(config=CONFIG, **changes):
        units = []
        evaluate(copied, again, config, CPU, tell=units.append, **changes)
        return [(u.object_name[0], u.method) for u in units if u.kind == "made"]

    assert kinds() == []
    first = json.loads((again / "evaluation.json").read_text())["results"]["objects"]
    for name, entry in record["results"]["objects"].items():
        for method, unit in entry["methods"].items():
            assert first[name]["methods"][method].get("means") == unit.get("means")
    monkeypatch.setattr(evaluation, "warm_up", lambda *args: None)
    # other settings of one method, a lost file, a damaged result, other pictures
    hull = dataclasses.replace(CONFIG, methods=("hull",), samples=2000)
    assert kinds(hull) == [("a", "hull")]
    (again / "a <ball> & |more|" / "hull" / "mesh.ply").unlink()
    assert kinds(hull) == [("a", "hull")] and kinds(hull) == []
    path = again / "a <ball> & |more|" / "hull" / "result.json"
    for damaged in (
        "[]",
        "{",
        '{"means": 3}',
        path.read_text().replace('"seconds": ', '"seconds": "x'),
    ):
        path.write_text(damaged)
        assert kinds(hull) == [("a", "hull")], damaged
    before = input_hash(copied / "sampled")
    picture = copied / "sampled" / "view_000.png"
    picture.write_bytes((copied / "sampled" / "view_001.png").read_bytes())
    assert input_hash(copied / "sampled") != before
    assert kinds(dataclasses.replace(CONFIG, methods=("consistency",))) == [("s", "consistency")]
    assert kinds(hull, overwrite=True, only=["a <ball> & |more|"]) == [("a", "hull")]


def test_one_failure_is_named_and_stops_nothing(data, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    shutil.copytree(data / "sampled", broken / "broken")
    (broken / "broken" / "view_003.png").write_bytes(b"no picture")

    def fail(*args):
        raise RuntimeError("the hull went wrong")

    monkeypatch.setattr("v3d_core.evaluation_methods.hull_mesh", fail)
    monkeypatch.setattr(cli_evaluate, "splat_preset", lambda *args: FIT.with_changes(steps=5))
    monkeypatch.setattr(evaluation, "warm_up", lambda *args: None)
    out = tmp_path / "out"
    words = ["evaluate", str(broken), "--out", str(out), "--methods", "hull", "consistency"]
    assert cli.main([*words, "--device", "cpu"]) == 1
    record = json.loads((out / "evaluation.json").read_text())
    failed = {(name, method): reason for name, method, reason in failures(record)}
    assert failed["a <ball> & |more|", "hull"] == "RuntimeError: the hull went wrong"
    assert "view_003.png" in failed["broken", "hull"] and ("broken", "consistency") in failed
    assert len(failed) == 3 and (out / "sampled" / "consistency" / "result.json").is_file()
    assert not (out / "broken").exists()
    assert record["command"].startswith("v3d evaluate data --out out --methods hull consistency")
    said = capsys.readouterr()
    assert "3 failed" in said.err and "sampled consistency:" in said.out
    assert str(tmp_path) not in (out / "evaluation.json").read_text().replace(str(broken), "")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_cancelling_leaves_reports_and_no_half_unit(data, tmp_path, error, monkeypatch):
    from contextlib import contextmanager

    monkeypatch.setattr(evaluation, "warm_up", lambda *args: None)

    @contextmanager
    def stop_at_splat(stage):
        def progress(step, total, preview=None, text=""):
            if stage.endswith("splat"):
                raise error("stop")

        yield progress

    with pytest.raises(error, match="stop"):
        evaluate(
            data, tmp_path, CONFIG, CPU, only=["a <ball> & |more|"], stage_progress=stop_at_splat
        )
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert [*record["results"]["objects"]["a <ball> & |more|"]["methods"]] == ["hull"]
    assert [path.name for path in tmp_path.rglob("result.json")] == ["result.json"]
    assert not list(tmp_path.rglob(".writing*"))


@pytest.mark.parametrize(("surface", "stages"), [("splat-mesh", 2), ("neus", 3)])
def test_a_method_costs_all_its_stages_whoever_asked_first(orbit, surface, stages):
    config = dataclasses.replace(CONFIG, methods=(surface, "texture"))
    pipeline = Pipeline(orbit, config, run=3)
    fit, alone = pipeline.fit()
    assert pipeline.seed == 3 and pipeline.fit()[0] is fit
    textured, whole = pipeline.mesh("texture")
    mesh, part = pipeline.mesh(surface)
    done = [cost for _, cost in pipeline._done.values()]
    assert len(done) == stages + 1 and pipeline.mesh(surface)[0] is mesh
    assert part.seconds == pytest.approx(sum(cost.seconds for cost in done[:-1]))
    assert whole.seconds == pytest.approx(sum(cost.seconds for cost in done))
    assert 0 < alone.seconds < part.seconds < whole.seconds
    assert whole.peak_mib == max(cost.peak_mib for cost in done)
    assert mesh.vertex_colours is not None and topology(mesh)["watertight"] == 1.0
    assert textured.texture is not None and textured.texture.shape[:2] == (64, 64)
    images, masks = render_mesh(textured, orbit.cameras[:2], rays=1)
    assert mask_iou(masks, orbit.masks[:2]) > 0.7
    assert psnr(images, orbit.images[:2], (masks * orbit.masks[:2]) > 0.5) > 10


def test_a_surface_may_have_a_guide_of_its_own_and_pays_for_that_alone(orbit):
    longer = CONFIG.splat.with_changes(steps=CONFIG.splat.steps + 3)
    pipeline = Pipeline(orbit, dataclasses.replace(CONFIG, methods=("neus",), guide=longer), run=2)
    guide, cost = pipeline.guide()
    assert guide.report["steps"] == pipeline.config.splat.steps + 3
    _, whole = pipeline.mesh("neus")
    assert set(pipeline._done) == {"guide", "field", "neus"}  # no splat of the other recipe
    assert whole.seconds > cost.seconds
    assert pipeline.fit()[0].report["steps"] == pipeline.config.splat.steps
    settings = pipeline.config.settings("neus")
    assert settings["splat"]["steps"] == longer.steps
    assert pipeline.config.settings("splat")["splat"]["steps"] == CONFIG.splat.steps


def test_objects_are_found_and_wrong_names_are_told(data, tmp_path):
    assert [path.name for path in find_objects(data)] == ["a <ball> & |more|", "sampled"]
    assert find_objects(data / "sampled") == [data / "sampled"]
    with pytest.raises(ValueError, match="no object nobody; there are a <ball>"):
        find_objects(data, ["nobody"])
    with pytest.raises(ValueError, match=r"no transforms_train\.json"):
        find_objects(tmp_path)
    with pytest.raises(FileNotFoundError):
        find_objects(tmp_path / "lost")
    with pytest.raises(ValueError, match="there are hull, splat"):
        EvaluationConfig(methods=("nerf",))


def test_settings_of_a_method_name_all_it_depends_on():
    with_neus = dataclasses.replace(CONFIG, methods=("neus", "texture"))
    assert CONFIG.surface == "splat-mesh" and with_neus.surface == "neus"
    assert {"splat", "neus", "asset"} <= set(with_neus.settings("texture"))
    assert {"splat", "mesh", "asset"} <= set(CONFIG.settings("texture"))
    assert evaluation_units.plain({"a": (1, 2)}) == {"a": [1, 2]}
