"""Keying of flat backgrounds against pictures whose true coverage is known."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from v3d_core.images import composite, premultiply
from v3d_core.keying import key_uniform_background

SIZE = 96


def disc(radius: float, centre: tuple[float, float] = (48, 48)) -> torch.Tensor:
    """Antialiased coverage of a disc. [SIZE, SIZE]"""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    distance = torch.hypot(x - centre[0], y - centre[1])
    return (radius + 0.5 - distance).clamp(0, 1)


def object_views() -> tuple[torch.Tensor, torch.Tensor]:
    """Two pictures of a dark red disc with a blue dot, straight colours and coverage."""
    masks = torch.stack([disc(30), disc(25, (40, 52))])
    dot = disc(8)[None, ..., None]
    red, blue = torch.tensor([0.55, 0.12, 0.10]), torch.tensor([0.1, 0.2, 0.7])
    images = (red * (1 - dot) + blue * dot).expand(2, SIZE, SIZE, 3)
    return images, masks


def jpeg(images: torch.Tensor) -> torch.Tensor:
    decoded = []
    for image in images:
        buffer = io.BytesIO()
        pixels = (image.numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
        decoded.append(np.asarray(Image.open(buffer)).astype(np.float32) / 255)
    return torch.from_numpy(np.stack(decoded))


@pytest.mark.parametrize("background", [(1.0, 1, 1), (0.0, 0, 0), (0.2, 0.8, 0.3), (0.5, 0.5, 0.5)])
def test_any_flat_colour_is_keyed_with_soft_edges_and_no_rim(background):
    images, masks = object_views()
    straight, keyed, _ = key_uniform_background(composite(images, masks, background))
    assert float((keyed - masks).abs().max()) < 0.1
    rim = (keyed > 0.1) & (masks < 1)
    assert float((straight - images).abs()[rim].max()) < 0.05
    error = premultiply(straight, keyed) - premultiply(images, masks)
    assert float((error**2).mean()) < 1e-4  # 40 dB over black, where a bright rim would glow


def test_jpeg_noise_around_the_object_is_not_object():
    images, masks = object_views()
    _, keyed, _ = key_uniform_background(jpeg(composite(images, masks)))
    hard, truth = keyed > 0.5, masks > 0.5
    assert float((hard & truth).sum() / (hard | truth).sum()) > 0.97
    assert float(keyed[:, :8].max()) == 0  # far from the object nothing is left


def test_a_noisy_background_is_still_one_colour():
    images, masks = object_views()
    generator = torch.Generator().manual_seed(0)
    noisy = composite(images, masks, (0.8, 0.8, 0.8))
    noisy = noisy + 0.01 * torch.randn(noisy.shape, generator=generator)
    _, keyed, _ = key_uniform_background(noisy)
    assert float(((keyed > 0.5) == (masks > 0.5)).float().mean()) > 0.995


def test_each_view_may_have_its_own_exposure():
    images, masks = object_views()
    exposure = torch.tensor([1.0, 0.9])[:, None, None, None]
    _, keyed, text = key_uniform_background(composite(images, masks) * exposure)
    assert float((keyed - masks).abs().max()) < 0.15
    assert "drifts by up to 13/255" in text


def test_a_white_patch_inside_stays_object_and_a_hole_does_not():
    images, masks = object_views()
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    glow = (1.6 - torch.hypot(x - 48, y - 48) / 16).clamp(0, 1)[..., None]  # a clipped highlight
    highlight = images[0] * (1 - glow) + glow
    picture = composite(highlight[None], masks[:1])
    _, keyed, text = key_uniform_background(picture)
    assert float(keyed[0, 44:52, 44:52].min()) == 1 and "see-through" not in text

    ring = (masks[:1] - disc(12)).clamp(0, 1)
    _, keyed, text = key_uniform_background(composite(images[:1], ring))
    assert float(keyed[0, 44:52, 44:52].max()) == 0
    assert "1 enclosed region of that colour counted as see-through" in text
    _, kept, _ = key_uniform_background(composite(images[:1], ring), holes=False)
    assert float(kept[0, 44:52, 44:52].min()) == 1


def test_a_thin_bar_keeps_its_colour():
    masks = torch.zeros(1, SIZE, SIZE)
    masks[0, 20:80, 47:49] = 1
    masks[0, 20:80, 49] = 0.4
    images = torch.tensor([0.1, 0.1, 0.3]).expand(1, SIZE, SIZE, 3)
    straight, keyed, _ = key_uniform_background(composite(images, masks))
    assert float((keyed - masks).abs().max()) < 0.05
    assert float((straight - images).abs()[keyed > 0.1].max()) < 0.05


def test_the_report_names_the_colour_and_the_share():
    images, masks = object_views()
    background = (26 / 255, 179 / 255, 51 / 255)
    _, keyed, text = key_uniform_background(composite(images, masks, background))
    assert "#1ab333" in text and f"{1 - float(keyed.mean()):.1%}" in text


def test_a_photo_background_is_refused_with_the_remedy():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"view 0 has no flat background: only .*alpha channel"):
        key_uniform_background(torch.rand(2, SIZE, SIZE, 3, generator=generator))


def test_an_empty_picture_is_refused_by_view():
    images, masks = object_views()
    masks[1] = 0
    with pytest.raises(ValueError, match=r"100\.00% of view 1 .* nothing would be left"):
        key_uniform_background(composite(images, masks))


def test_a_frame_around_a_photo_is_refused():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, SIZE, SIZE, 3, generator=generator) * 0.8
    images[:, [0, -1]] = 1
    images[:, :, [0, -1]] = 1
    with pytest.raises(ValueError, match="hardly more than the border"):
        key_uniform_background(images)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        key_uniform_background(torch.full((1, 8, 8, 3), float("nan")))
