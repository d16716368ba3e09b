"""V3D Render Splat and V3D Score Views: exact pictures, and figures that say what differs."""

import json

import pytest
import torch
from comfy_api.v0_0_2 import Types
from scenes import asymmetric_splats, orbit_frames, pack


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes always run in it."""
    with torch.inference_mode():
        yield


def render(splat, cameras, **widgets):
    chosen = {"background": "#ffffff", "resolution": 0, "depth_is": "near is white", **widgets}
    node = pack("nodes.splats").V3DRenderSplat
    return node.execute(splat=splat, cameras=cameras, **chosen).args


def score(images, truth, masks=None, **widgets):
    chosen = {"gain": 4.0, "truth_is": "opaque", **widgets}
    node = pack("nodes.scores").V3DScoreViews
    report, comparison = node.execute(images=images, truth=truth, masks=masks, **chosen).args
    return json.loads(report), comparison


def orbit(views=3, width=48, height=40):
    cameras = pack("v3d_core.cameras")
    return cameras.orbit_cameras(cameras.Orbit(num_views=views), width, height)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_splat_that_went_through_the_host_renders_exactly_as_before(degree):
    splats, cameras = asymmetric_splats(degree), orbit()
    truth = pack("v3d_core.splats.raster").render_splats(splats, cameras, (0.0, 0.5, 1.0))
    image, mask, depth = render(
        pack("nodes.convert").splats_to_host(splats),
        cameras,
        background="#0080ff",
        depth_is="scene units",
    )
    assert image.shape == (3, 40, 48, 3) and mask.shape == (3, 40, 48)
    torch.testing.assert_close(image, truth.colours, atol=2.1e-3, rtol=0)  # 0x80 is not one half
    torch.testing.assert_close(mask, truth.alphas, atol=1e-4, rtol=0)
    assert depth.shape == image.shape
    assert float((depth[..., 0] - truth.depths).abs().mean()) < 1e-3


def test_depth_as_a_picture_is_white_near_and_black_behind():
    splat = pack("nodes.convert").splats_to_host(asymmetric_splats())
    _, mask, grey = render(splat, orbit())
    _, _, depth = render(splat, orbit(), depth_is="scene units")
    assert float(grey.max()) == 1.0 and float(grey[mask == 0].max()) == 0.0
    known = depth > 0
    nearer = depth < depth[known].median()
    assert float(grey[known & nearer].min()) > float(grey[known & ~nearer].max())


def test_resolution_scales_the_same_picture():
    splat = pack("nodes.convert").splats_to_host(asymmetric_splats())
    small, large = render(splat, orbit())[0], render(splat, orbit(), resolution=96)[0]
    assert large.shape == (3, 80, 96, 3)
    halved = torch.nn.functional.avg_pool2d(large.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert float((halved - small).abs().mean()) < 0.02


def test_padding_is_ignored_and_batches_empty_splats_and_false_colours_are_refused():
    whole = pack("nodes.convert").splats_to_host(asymmetric_splats())
    names = ("positions", "scales", "rotations", "opacities", "sh")
    parts = {name: getattr(whole, name) for name in names}
    count = whole.positions.shape[1]

    def padded(part):
        return torch.cat([part, torch.zeros_like(part[:, :50])], 1)

    longer = {name: padded(part) for name, part in parts.items()}
    longer = Types.SPLAT(**longer, counts=torch.tensor([count]))
    assert torch.equal(render(longer, orbit())[0], render(whole, orbit())[0])
    two = Types.SPLAT(**{name: part.repeat_interleave(2, 0) for name, part in parts.items()})
    with pytest.raises(ValueError, match=r"^V3D Render Splat: 2 splats came in one batch but 1"):
        render(two, orbit())
    empty = Types.SPLAT(**{name: part[:, :0] for name, part in parts.items()})
    with pytest.raises(ValueError, match=r"^V3D Render Splat: the splat is empty: it has 0"):
        render(empty, orbit())
    with pytest.raises(ValueError, match=r"^V3D Render Splat: 'white' is no colour.*#ffffff"):
        render(whole, orbit(), background="white")


def test_scores_are_those_of_the_library_for_each_picture_and_their_mean():
    colours, alphas, _ = orbit_frames(3, 64)
    other = (colours + 0.1 * alphas[..., None]).clamp(0, 1)
    report, comparison = score(other, colours, alphas)
    truth = pack("v3d_core.metrics").score_pictures(other, colours, alphas)
    for key in ("psnr", "psnr_object", "ssim"):
        assert report[key] == pytest.approx(truth[key], abs=1e-4)
        assert [row[key] for row in report["per_view"]] == pytest.approx(
            [row[key] for row in truth["per_view"]], abs=1e-4
        )
    assert report["psnr_object"] < report["psnr"]
    assert comparison.shape == (3, 64, 192, 3)
    assert torch.equal(comparison[:, :, :64], other)
    assert torch.equal(comparison[:, :, 64:128], colours)
    difference = comparison[:, :, 128:]
    torch.testing.assert_close(difference, ((other - colours).abs() * 4).clamp(0, 1))


def test_lpips_is_there_or_the_report_says_what_is_missing():
    colours, _, _ = orbit_frames(2, 64)
    report, _ = score(colours, colours)
    distance, reason = pack("v3d_core.backends").load_lpips()
    assert report["lpips_backend"] == reason
    assert (report["lpips"] is None) == (distance is None)
    assert report["psnr"] == 100 and report["ssim"] == 1 and report["psnr_object"] is None


def test_pictures_with_alpha_are_laid_on_white():
    colours, alphas, _ = orbit_frames(2, 64)
    hidden = torch.where(alphas[..., None] > 0, colours, torch.rand_like(colours))
    with_alpha = torch.cat([hidden, alphas[..., None]], -1)
    on_white = colours * alphas[..., None] + 1 - alphas[..., None]
    report, _ = score(with_alpha, on_white)
    assert report["psnr"] == 100


def test_straight_truth_is_laid_on_white_by_its_masks():
    colours, _, cameras = orbit_frames(2, 64)
    black = pack("v3d_core.splats.raster").render_splats(asymmetric_splats(), cameras, (0, 0, 0))
    straight = pack("v3d_core.images").unpremultiply(black.colours, black.alphas)
    assert score(colours, straight, black.alphas, truth_is="straight")[0]["psnr"] > 60
    assert score(colours, straight, black.alphas)[0]["psnr"] < 30
    with pytest.raises(ValueError, match=r"^V3D Score Views: truth is straight, but .* no masks"):
        score(colours, straight, truth_is="straight")
    with pytest.raises(ValueError, match=r"^V3D Score Views: truth: 2 frames, but masks: 1"):
        score(colours, straight, black.alphas[:1], truth_is="straight")


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda x: x[:2], "first pictures: 3 frames, but second pictures: 2"),
        (lambda x: x[:, :50], "first pictures: 64x64 px, but second pictures: 64x50 px; scale"),
    ],
)
def test_batches_that_do_not_pair_up_are_refused_with_both_numbers(cut, message):
    colours, alphas, _ = orbit_frames(3, 64)
    with pytest.raises(ValueError, match=rf"^V3D Score Views: {message}"):
        score(colours, cut(colours))
    with pytest.raises(ValueError, match=r"^V3D Score Views: pictures: 3 frames, but masks: 2"):
        score(colours, colours, alphas[:2])
