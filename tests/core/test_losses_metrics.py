"""Losses and scores against other people's software, closed forms and numerical gradients."""

import math

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y
from skimage.metrics import structural_similarity

from v3d_core.losses import SSIM_RADIUS, ssim
from v3d_core.metrics import PERFECT_PSNR, mask_iou, psnr, score_pictures, score_views
from v3d_core.schedules import exponential
from v3d_core.sh import colours_from_dc, dc_from_colours, sh_basis


def pictures(count=2, height=24, width=31, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(count, height, width, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, height, width, 3, generator=generator, dtype=torch.float64)
    return first, (first + 0.1 * noise).clamp(0, 1)


def test_ssim_equals_scikit_image():
    first, second = pictures()
    expected = [
        structural_similarity(
            a.numpy(), b.numpy(), channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(first, second, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(ssim(first, second).numpy(), expected, atol=1e-9)


def test_ssim_is_one_for_equal_pictures_and_its_gradient_is_right():
    first, second = pictures(1, 6, 7)
    ones = ssim(first, first, padding=SSIM_RADIUS)
    torch.testing.assert_close(ones, torch.ones_like(ones))
    second.requires_grad_()
    torch.autograd.gradcheck(lambda x: ssim(x, first, padding=SSIM_RADIUS), second)


def test_ssim_of_a_picture_smaller_than_its_window_names_both_sizes():
    first, second = pictures(1, 6, 40)
    with pytest.raises(ValueError, match="40x6 are smaller than its 11x11 window"):
        ssim(first, second)


def test_psnr_of_a_known_error():
    target = torch.zeros(2, 5, 5, 3)
    assert psnr(target + 0.1, target) == pytest.approx(20.0, abs=1e-5)
    assert psnr(target, target) == PERFECT_PSNR
    pixels = torch.zeros(2, 5, 5, dtype=torch.bool)
    pixels[0, 0, 0] = True
    wrong_there = target.clone()
    wrong_there[0, 0, 0] = 0.5
    assert psnr(wrong_there, target, pixels) == pytest.approx(-20 * math.log10(0.5), abs=1e-5)
    assert psnr(wrong_there, target, ~pixels) == PERFECT_PSNR


def test_mask_iou_of_overlapping_squares_and_of_nothing():
    first, second = torch.zeros(10, 10), torch.zeros(10, 10)
    first[:6, :6] = 1
    second[3:9, :6] = 0.6
    assert mask_iou(first, second) == pytest.approx(18 / 54)
    assert mask_iou(first * 0, second * 0) == 1.0


def test_scores_of_a_shift_on_the_object_count_the_object_alone():
    colours, masks = torch.full((1, 20, 20, 3), 0.5), torch.zeros(1, 20, 20)
    masks[:, 5:15, 5:15] = 1
    scores = score_views(colours + 0.1, masks, colours, masks)
    assert scores["psnr_object"] == pytest.approx(20.0, abs=1e-4)
    assert scores["psnr"] == pytest.approx(20.0 + 10 * math.log10(4), abs=1e-4)
    assert scores["alpha_iou"] == 1.0 and scores["lpips"] is None
    with_lpips = score_views(
        colours, masks, colours, masks, lpips=lambda a, b: (a - b).abs().mean((1, 2, 3)) + 0.25
    )
    assert with_lpips["lpips"] == pytest.approx(0.25)


def test_hidden_colours_do_not_change_the_scores():
    """Straight colours where coverage is zero are arbitrary."""
    colours, masks = torch.rand(1, 20, 20, 3), torch.zeros(1, 20, 20)
    masks[:, 5:15, 5:15] = 1
    other = torch.where(masks[..., None] > 0, colours, 1 - colours)
    scores = score_views(other, masks, colours, masks)
    assert scores["psnr"] == PERFECT_PSNR and scores["ssim"] == pytest.approx(1.0)


def test_scores_of_pictures_are_those_of_each_pair_and_their_means():
    first, second = pictures(3)
    masks = torch.zeros(3, 24, 31)
    masks[:, 4:9, 5:20] = 0.2
    steps = []
    scores = score_pictures(
        first, second, masks, progress=lambda step, total, **_: steps.append((step, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert [row["psnr"] for row in scores["per_view"]] == [
        psnr(a, b) for a, b in zip(first, second, strict=True)
    ]
    assert scores["psnr_object"] == pytest.approx(
        sum(psnr(first[v], second[v], masks[v] > 0) for v in range(3)) / 3
    )
    assert scores["ssim"] == pytest.approx(float(ssim(first, second).mean()), abs=1e-5)
    plain = score_pictures(first, second, lpips=lambda a, b: (a - b).abs().mean((1, 2, 3)))
    assert plain["psnr_object"] is None and "psnr_object" not in plain["per_view"][0]
    assert plain["lpips"] == pytest.approx(float((first - second).abs().mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("second", "masks", "message"),
    [
        ((2, 24, 31, 3), None, "first pictures: 3 frames, but second pictures: 2"),
        ((3, 24, 30, 3), None, "first pictures: 31x24 px, but second pictures: 30x24"),
        ((3, 24, 31, 3), (1, 24, 31), "pictures: 3 frames, but masks: 1"),
        ((3, 24, 31, 3), (3, 64, 64), "pictures: 31x24 px, but masks: 64x64"),
    ],
)
def test_pictures_that_do_not_pair_up_are_refused_with_both_numbers(second, masks, message):
    masks = None if masks is None else torch.zeros(masks)
    with pytest.raises(ValueError, match=message):
        score_pictures(torch.zeros(3, 24, 31, 3), torch.zeros(second), masks)


def test_sh_basis_equals_scipy_in_3dgs_order_and_sign():
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    d = torch.nn.functional.normalize(d, dim=-1)
    theta, phi = torch.arccos(d[:, 2]).numpy(), torch.atan2(d[:, 1], d[:, 0]).numpy()
    basis = sh_basis(d, 3).numpy()
    index = 0
    for degree in range(4):
        for order in range(-degree, degree + 1):
            # scipy's complex harmonics carry the Condon-Shortley phase, and so does 3DGS
            value = sph_harm_y(degree, abs(order), theta, phi)
            if order < 0:
                expected = math.sqrt(2) * value.imag
            elif order == 0:
                expected = value.real
            else:
                expected = math.sqrt(2) * value.real
            np.testing.assert_allclose(basis[:, index], expected, atol=1e-12)
            index += 1


def test_dc_round_trip_and_schedules():
    colours = torch.rand(10, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(colours_from_dc(dc_from_colours(colours)), colours)
    assert exponential(1.0, 0.01, 0.5) == pytest.approx(0.1)
    assert exponential(1.0, 0.01, 7.0) == pytest.approx(0.01)
