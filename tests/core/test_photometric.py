"""The loss of a fit: its definition in closed form, its gradient, and the fused kernels."""

import pytest
import torch

from v3d_core.losses import SSIM_RADIUS, ssim_map
from v3d_core.splats import engines
from v3d_core.splats.photometric import LossWeights, photometric_loss, photometric_loss_torch

C1 = 0.01**2  # SSIM's constant of the luminance for values in [0, 1]


def scene(views=4, batch=(2, 0), height=23, width=37, seed=0, dtype=torch.float64):
    """Arguments of the loss but its weights: smooth pictures, a soft mask, uneven confidences."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def premultiplied(*shape):
        alpha = uniform(*shape, 1)
        return torch.cat([uniform(*shape, 3) * alpha, alpha], dim=-1)

    return (
        premultiplied(len(batch), height, width),
        premultiplied(views, height, width),
        uniform(views, height, width),
        torch.tensor(batch),
        uniform(len(batch), 3),
    )


def over(picture, background):
    return picture[..., :3] + (1 - picture[..., 3:]) * background[:, None, None]


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.2, 0.0), (0.0, 0.3), (0.2, 0.2), (1.0, 1.0)])
def test_loss_is_the_sum_of_its_parts(weights):
    pictures, targets, confidences, batch, backgrounds = arguments = scene()
    ssim, mask = weights
    wanted, confidence = targets[batch], confidences[batch]
    image, target = over(pictures, backgrounds), over(wanted, backgrounds)
    l1 = ((image - target).abs().mean(-1) * confidence).mean()
    similarity = ssim_map(image, target, padding=SSIM_RADIUS).mean(-1)
    dissimilarity = ((1 - similarity) * confidence).mean()
    coverage = ((pictures[..., 3] - wanted[..., 3]).abs() * confidence).mean()
    expected = (1 - ssim) * l1 + ssim * dissimilarity + mask * coverage
    loss = photometric_loss_torch(*arguments, LossWeights(ssim, mask))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_equal_pictures_cost_nothing_whatever_the_background():
    _, targets, confidences, batch, backgrounds = scene()
    for background in (backgrounds, backgrounds * 0, torch.ones_like(backgrounds)):
        loss = photometric_loss_torch(
            targets[batch], targets, confidences, batch, background, LossWeights(0.2, 0.2)
        )
        assert abs(float(loss)) < 1e-12


def test_flat_pictures_have_the_closed_form():
    """Opaque grey a against opaque grey b: L1 is |a - b|, SSIM its luminance term."""
    a, b, size = 0.3, 0.7, 11
    pictures = torch.tensor([a, a, a, 1.0], dtype=torch.float64).expand(1, size, size, 4)
    targets = torch.tensor([b, b, b, 1.0], dtype=torch.float64).expand(1, size, size, 4)
    # only the middle pixel counts: its window lies inside the picture
    confidences = torch.zeros(1, size, size, dtype=torch.float64)
    confidences[0, size // 2, size // 2] = 1
    background = torch.rand(1, 3, generator=torch.Generator().manual_seed(0)).double()
    similarity = (2 * a * b + C1) / (a * a + b * b + C1)
    loss = photometric_loss_torch(
        pictures, targets, confidences, torch.tensor([0]), background, LossWeights(0.2, 5.0)
    )
    expected = (0.8 * abs(a - b) + 0.2 * (1 - similarity)) / size**2
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_a_hole_shows_the_background_and_misses_coverage():
    """Nothing rendered where opaque black is wanted: L1 is the background, coverage is off by 1."""
    pictures = torch.zeros(1, 5, 5, 4, dtype=torch.float64)
    targets = pictures.clone()
    targets[..., 3] = 1
    background = torch.tensor([[0.2, 0.4, 0.9]], dtype=torch.float64)
    ones = torch.ones(1, 5, 5, dtype=torch.float64)
    loss = photometric_loss_torch(
        pictures, targets, ones, torch.tensor([0]), background, LossWeights(0.0, 0.25)
    )
    assert float(loss) == pytest.approx(0.5 + 0.25)


def test_pixels_without_confidence_cost_nothing_and_pull_at_nothing():
    pictures, targets, confidences, batch, backgrounds = scene(height=30, width=30)
    confidences = torch.ones_like(confidences)
    confidences[:, :, 10:] = 0
    pictures.requires_grad_()
    weights = LossWeights(0.2, 0.2)
    loss = photometric_loss_torch(pictures, targets, confidences, batch, backgrounds, weights)
    (grad,) = torch.autograd.grad(loss, pictures)
    # SSIM's windows of confident pixels reach a radius into the rest
    assert not grad[:, :, 10 + SSIM_RADIUS :].any() and bool(grad[:, :, :10].any())
    changed = pictures.detach().clone()
    changed[:, :, 10 + SSIM_RADIUS :] = 0.5
    again = photometric_loss_torch(changed, targets, confidences, batch, backgrounds, weights)
    torch.testing.assert_close(again, loss.detach(), rtol=1e-12, atol=0)


def test_loss_is_linear_in_the_confidences():
    pictures, targets, first, batch, backgrounds = scene()
    second = scene(seed=1)[2]
    weights = LossWeights(0.3, 0.4)

    def loss(confidences):
        return photometric_loss_torch(pictures, targets, confidences, batch, backgrounds, weights)

    torch.testing.assert_close(loss(2 * first + second), 2 * loss(first) + loss(second))


def test_a_batch_is_the_mean_of_its_pictures_and_takes_its_own_views():
    pictures, targets, confidences, batch, backgrounds = scene(batch=(3, 1, 2))
    weights = LossWeights(0.2, 0.2)
    alone = [
        photometric_loss_torch(
            pictures[i : i + 1], targets, confidences, batch[i : i + 1], backgrounds[i : i + 1],
            weights,
        )
        for i in range(3)
    ]  # fmt: skip
    together = photometric_loss_torch(pictures, targets, confidences, batch, backgrounds, weights)
    torch.testing.assert_close(together, torch.stack(alone).mean())
    order = torch.tensor([2, 0, 3, 1])  # views renumbered: the same pictures, the same loss
    renumbered = torch.argsort(order)[batch]
    again = photometric_loss_torch(
        pictures, targets[order], confidences[order], renumbered, backgrounds, weights
    )
    torch.testing.assert_close(again, together)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.2, 0.2), (1.0, 0.5)])
def test_gradient_is_that_of_finite_differences(weights):
    pictures, *rest = scene(batch=(1,), views=2, height=4, width=6)
    pictures.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: photometric_loss_torch(p, *rest, LossWeights(*weights)), (pictures,)
    )


def test_where_the_torch_engine_is_forced_the_loss_is_its_definition(monkeypatch):
    monkeypatch.setenv(engines.ENGINE_VARIABLE, "torch")
    arguments = scene(dtype=torch.float32)
    weights = LossWeights(0.2, 0.2)
    assert torch.equal(
        photometric_loss(*arguments, weights), photometric_loss_torch(*arguments, weights)
    )


def lacks_kernel(device):
    """Why the kernels cannot run there, or nothing."""
    if device == "cuda" and not torch.cuda.is_available():
        return "needs CUDA and Warp"
    return "" if engines.find_engine("warp", torch.device(device))[0] else "needs Warp"


devices = [
    pytest.param(
        name, marks=pytest.mark.skipif(bool(lacks_kernel(name)), reason=lacks_kernel(name) or "-")
    )
    for name in ("cpu", "cuda")
]


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("size", [(16, 16), (1, 1), (5, 40), (33, 50), (130, 97), (64, 64)])
@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.2, 0.0), (0.0, 0.3), (0.2, 0.2), (1.0, 1.0)])
def test_fused_loss_and_gradient_are_those_of_the_definition(size, weights, device, monkeypatch):
    monkeypatch.setenv(engines.ENGINE_VARIABLE, "warp")
    height, width = size
    weights = LossWeights(*weights)
    double = scene(views=5, batch=(4, 1, 2), height=height, width=width, seed=3)
    pictures, *rest = (part if part.dtype == torch.int64 else part.float() for part in double)
    pictures = pictures.to(device).requires_grad_()
    loss = photometric_loss(pictures, *(part.to(device) for part in rest), weights)
    (3 * loss).backward()
    true_pictures = double[0].requires_grad_()
    true = photometric_loss_torch(true_pictures, *double[1:], weights)
    (3 * true).backward()
    assert loss.item() == pytest.approx(true.item(), rel=1e-4)
    difference = (pictures.grad.cpu().double() - true_pictures.grad).norm()
    assert float(difference) <= 1e-3 * float(true_pictures.grad.norm())


@pytest.mark.parametrize("device", devices)
def test_fused_loss_takes_pictures_that_are_not_contiguous(device, monkeypatch):
    monkeypatch.setenv(engines.ENGINE_VARIABLE, "warp")
    pictures, *rest = (part.to(device) for part in scene(dtype=torch.float32))
    strided = torch.stack([pictures, pictures], dim=-1)[..., 0]
    weights = LossWeights(0.2, 0.2)
    assert torch.equal(
        photometric_loss(strided, *rest, weights), photometric_loss(pictures, *rest, weights)
    )


def test_fused_loss_on_the_cpu_is_the_same_bits_twice(monkeypatch):
    monkeypatch.setenv(engines.ENGINE_VARIABLE, "warp")
    pictures, *rest = scene(height=130, width=97, dtype=torch.float32)
    found = []
    for _ in range(2):
        mine = pictures.clone().requires_grad_()
        loss = photometric_loss(mine, *rest, LossWeights(0.2, 0.2))
        loss.backward()
        found.append((loss.detach(), mine.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
