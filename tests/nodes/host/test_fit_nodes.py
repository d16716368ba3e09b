"""V3D Fit Splat and V3D Mesh from Splat work inside inference mode and say what they were given."""

import json

import pytest
import torch
from scenes import PACK, REPOSITORY, orbit_frames, pack

TINY = {"preset": "draft", "seed": 3, "resolution": 48, "max_splats": 1500, "steps": 60}
TINY |= {"views_per_step": 0, "sh_degree": -1}


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes always run in it."""
    with torch.inference_mode():
        yield


def tiny_views():
    colours, alphas, cameras = orbit_frames(8, 64)
    return pack("v3d_core.structures").Views(images=colours, masks=alphas, cameras=cameras)


def fit(views=None, **widgets):
    node = pack("nodes.splats").V3DFitSplat
    return node.execute(views=tiny_views() if views is None else views, **{**TINY, **widgets}).args


def test_a_fit_from_inference_tensors_looks_like_the_frames_in_cores_renderer():
    from comfy_extras.nodes_gaussian_splat import RenderSplat

    views = tiny_views()
    assert views.images.is_inference()
    splat, report, _ = fit(views)
    info = pack("nodes.convert").camera_info_from_cameras(views.cameras, 0)
    rendered = RenderSplat.execute(
        splat, 64, 64, 1, 1.0, 1.0, 0.0, 0.0, "#ffffff", "color", camera_info=info
    ).args[0][0]
    frame = views.images[0] * views.masks[0, ..., None] + 1 - views.masks[0, ..., None]

    def error(picture):
        return float(((picture - frame) ** 2).mean())

    assert error(rendered) < 0.01
    assert error(rendered.flip(1)) > 2 * error(rendered)
    assert error(rendered.flip(0)) > 2 * error(rendered)
    figures = json.loads(report)
    assert figures["steps"] == 60
    assert figures["splats"] == splat.positions.shape[1] <= 1500


def test_the_same_seed_gives_the_same_splat_and_the_views_stay_as_they_were():
    views = tiny_views()
    before = views.images.clone()
    first, second = fit(views)[0], fit(views)[0]
    assert torch.equal(first.positions, second.positions)
    assert torch.equal(first.sh, second.sh)
    assert not torch.equal(first.positions, fit(views, seed=4)[0].positions)
    assert torch.equal(views.images, before)


def test_zero_widgets_mean_the_presets_own_values():
    splats = pack("nodes.splats")
    presets = pack("v3d_core.splats.config").SPLAT_PRESETS
    untouched = {"resolution": 0, "max_splats": 0, "steps": 0, "views_per_step": 0}
    for name, preset in presets.items():
        config = splats.config_from_widgets(name, "cpu", seed=0, sh_degree=-1, **untouched)
        assert config == preset
    changed = splats.config_from_widgets(
        "draft", "cpu", seed=9, sh_degree=2, **{**untouched, "steps": 7}
    )
    assert (changed.seed, changed.sh_degree, changed.steps) == (9, 2, 7)
    later = splats.config_from_widgets(
        "draft", "cpu", seed=0, sh_degree=-1, frames="disagree", time_budget=2.5, lpips_weight=0.1
    )
    assert (later.align, later.seconds, later.lpips_weight) == ("on", 2.5, 0.1)
    assert (
        splats.config_from_widgets("draft", "cpu", seed=0, sh_degree=-1, frames="agree").align
        == "off"
    )


def test_held_out_views_are_scored_and_not_fitted():
    views = tiny_views()
    _, report, fitted = fit(views, hold_out=4)
    assert torch.equal(fitted.images, views.images[[0, 1, 2, 4, 5, 6]])
    figures = json.loads(report)
    assert 10 < figures["psnr_test"] < figures["psnr_train"]
    with pytest.raises(ValueError, match=r"^V3D Fit Splat: there is no 9. view .* among 8"):
        fit(views, hold_out=9)


def test_the_line_under_the_node_has_size_quality_time_and_why_it_ended():
    summary = pack("nodes.splats").summary
    report = {"splats": 12000, "psnr_train": 31.25, "seconds": 7.04, "stopped": "all steps"}
    assert summary(report) == "12,000 splats, 31.25 dB, 7.0 s"
    ended = summary(report | {"psnr_test": 28.5, "stopped": "finish now"})
    assert ended == "12,000 splats, 31.25 dB (28.50 dB held out), 7.0 s, stopped: finish now"


def test_a_single_view_is_refused_under_the_nodes_name():
    with pytest.raises(ValueError, match=r"^V3D Fit Splat: .*at least 2 views.* got 1"):
        fit(tiny_views()[0:1])


def test_the_largest_seed_works():
    assert fit(seed=2**64 - 1, steps=2)[0].positions.shape[1] > 0


def test_the_compiled_engine_runs_under_the_name_the_host_imports_us_by():
    pytest.importorskip("warp")
    assert "/" in PACK  # a name that compilers must not make file names of
    engines = pack("v3d_core.splats.engines")
    assert engines.choose_engine(torch.device("cpu"), torch.float32).name == "warp"


def test_the_help_page_has_the_presets_own_numbers():
    page = (REPOSITORY / "web" / "docs" / "V3DFitSplat.md").read_text(encoding="utf-8")
    config = pack("v3d_core.splats.config")
    for presets in (config.SPLAT_PRESETS, config.GPU_SPLAT_PRESETS):
        for name, preset in presets.items():
            splats = f"{preset.max_splats:,}".replace(",", " ")
            assert f"| {name} | {preset.steps} | {preset.resolution} px | {splats} |" in page
