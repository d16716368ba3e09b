"""The fast CPU rasteriser against the torch oracle."""

import pytest
import torch

pytest.importorskip("warp", reason="the warp rasteriser needs warp-lang")

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.splats import raster
from v3d_core.splats.projection import project_gaussians
from v3d_core.splats.warp_raster import rasterize_warp


def scene(count, spread, size, seed=0, opacity_bias=0.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    opacities = torch.sigmoid(1.5 * normal(count) + opacity_bias)
    scales = torch.exp(0.5 * normal(count, 3)) * size
    colours = torch.rand(count, 3, generator=generator)
    return normal(count, 3) * spread, normal(count, 4), scales, opacities, colours


def run(engine, inputs, cameras, weights):
    means, quats, scales, opacities, colours = inputs = [t.clone().requires_grad_() for t in inputs]
    projected = project_gaussians(means, quats, scales, opacities, cameras)
    per_view = colours.expand(len(cameras), -1, -1)
    picture = engine(projected, per_view, opacities, cameras.width, cameras.height)
    (picture * weights).sum().backward()
    return picture.detach(), [t.grad for t in inputs]


@pytest.mark.parametrize(
    ("width", "height", "count", "spread", "size", "bias"),
    [
        (64, 64, 800, 0.4, 0.03, 0.0),
        (50, 37, 800, 0.4, 0.03, 0.0),  # no multiple of a tile
        (33, 70, 200, 0.4, 0.002, 0.0),  # smaller than a pixel
        (40, 40, 50, 0.4, 2.0, 0.0),  # larger than the picture
        (16, 16, 500, 0.005, 0.05, 3.0),  # hundreds on one pixel, opaque: the early exit
        (48, 48, 300, 2.5, 0.2, 0.0),  # behind the camera and off the picture
        (3, 2, 20, 0.3, 0.1, 0.0),
    ],
)
def test_agrees_with_the_oracle(width, height, count, spread, size, bias):
    cameras = orbit_cameras(Orbit(num_views=3, elevation_deg=10), width, height)
    inputs = scene(count, spread, size, seed=count, opacity_bias=bias)
    weights = torch.rand(3, height, width, 4, generator=torch.Generator().manual_seed(1))
    picture, gradients = run(rasterize_warp, inputs, cameras, weights)
    oracle, oracle_gradients = run(raster.composite_torch, inputs, cameras, weights)
    error = (picture - oracle).abs()
    # single precision can drop or keep a pair at the 1/255 cut: rare and at most 1/255 per pair
    assert error.max() < 1.5 / 255
    assert error.mean() < 2e-5
    for mine, true in zip(gradients, oracle_gradients, strict=True):
        assert (mine - true).norm() <= 1e-2 * true.norm() + 1e-5


def test_empty_scene_and_transparent_splats_give_an_empty_picture():
    cameras = orbit_cameras(Orbit(num_views=2), 20, 20)
    means, quats, scales, opacities, colours = scene(10, 0.3, 0.1)
    weights = torch.ones(2, 20, 20, 4)
    for inputs in (
        (means, quats, scales, opacities * 0, colours),
        tuple(t[:0] for t in (means, quats, scales, opacities, colours)),
    ):
        picture, gradients = run(rasterize_warp, inputs, cameras, weights)
        assert picture.abs().max() == 0
        assert all(g.abs().sum() == 0 for g in gradients)


def test_repeats_bit_for_bit_on_several_threads():
    cameras = orbit_cameras(Orbit(num_views=2), 60, 60)
    inputs = scene(1000, 0.4, 0.03)
    weights = torch.rand(2, 60, 60, 4, generator=torch.Generator().manual_seed(1))
    first = run(rasterize_warp, inputs, cameras, weights)
    for _ in range(5):
        again = run(rasterize_warp, inputs, cameras, weights)
        assert torch.equal(first[0], again[0])
        assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))


def test_engine_is_chosen_and_can_be_forced(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.delenv(raster.ENGINE_VARIABLE, raising=False)
    assert raster.choose_engine(cpu, torch.float32)[0] == "warp"
    assert raster.choose_engine(cpu, torch.float64)[0] == "torch"
    monkeypatch.setenv(raster.ENGINE_VARIABLE, "torch")
    assert raster.choose_engine(cpu, torch.float32)[0] == "torch"
    monkeypatch.setenv(raster.ENGINE_VARIABLE, "cuda11")
    with pytest.raises(ValueError, match="known engines are torch and warp"):
        raster.choose_engine(cpu, torch.float32)


def test_self_check_finds_a_wrong_engine():
    def dims_colours(projected, colours, opacities, width, height):
        return raster.composite_torch(projected, colours * 0.9, opacities, width, height)

    def forgets_a_gradient(projected, colours, opacities, width, height):
        return raster.composite_torch(
            projected, colours, opacities.detach() + 0 * opacities, width, height
        )

    assert raster.compare_with_oracle(raster.composite_torch) == ""
    assert "pictures differ" in raster.compare_with_oracle(dims_colours)
    assert "opacities" in raster.compare_with_oracle(forgets_a_gradient)
