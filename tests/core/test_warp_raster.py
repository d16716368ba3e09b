"""What only the CPU kernels promise, and how an engine is chosen and checked."""

import pytest
import torch

pytest.importorskip("warp", reason="the warp rasteriser needs warp-lang")

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.splats import engines
from v3d_core.splats.projection import Pinholes
from v3d_core.splats.warp_raster import rasterize_warp

CPU = torch.device("cpu")


def test_repeats_bit_for_bit_on_several_threads():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    scene = [
        0.4 * normal(1000, 3),
        normal(1000, 4),
        torch.exp(0.5 * normal(1000, 3)) * 0.03,
        torch.sigmoid(1.5 * normal(1000)),
        torch.rand(1, 1000, 3, generator=generator),
    ]
    pinholes = Pinholes.of(orbit_cameras(Orbit(num_views=2), 60, 60))
    weights = torch.rand(2, 60, 60, 4, generator=generator)

    def run():
        inputs = [part.clone().requires_grad_() for part in scene]
        pull = torch.zeros(1000)
        picture = rasterize_warp(*inputs, pinholes, pull)
        (picture * weights).sum().backward()
        return [picture.detach(), pull, *(part.grad for part in inputs)]

    first = run()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_engine_is_chosen_and_can_be_forced(monkeypatch):
    monkeypatch.delenv(engines.ENGINE_VARIABLE, raising=False)
    assert engines.choose_engine(CPU, torch.float32).name == "warp"
    assert engines.choose_engine(CPU, torch.float64).name == "torch"
    for name in ("torch", "warp"):
        monkeypatch.setenv(engines.ENGINE_VARIABLE, name)
        assert engines.choose_engine(CPU, torch.float32).name == name
    monkeypatch.setenv(engines.ENGINE_VARIABLE, "cuda11")
    with pytest.raises(ValueError, match="known engines are torch, warp and gsplat"):
        engines.choose_engine(CPU, torch.float32)
    monkeypatch.setenv(engines.ENGINE_VARIABLE, "gsplat")
    with pytest.raises(ValueError, match="V3D_RASTERIZER=gsplat, but "):
        engines.choose_engine(CPU, torch.float32)


def test_a_missing_or_wrong_engine_leaves_the_oracle_and_says_why(monkeypatch, caplog):
    for cached in (engines.find_engine, engines._best_engine):
        cached.cache_clear()
    monkeypatch.delenv(engines.ENGINE_VARIABLE, raising=False)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(engines.backends, "is_installed", lambda name: False)
            assert engines.choose_engine(CPU, torch.float32) is engines.ORACLE
        assert "pip install warp-lang" in caplog.text
        for cached in (engines.find_engine, engines._best_engine):
            cached.cache_clear()
        with monkeypatch.context() as patch:
            dimmed = engines.Engine("warp", dims_colours, capturable=False)
            patch.setattr(engines, "_load", lambda name, device: dimmed)
            assert engines.choose_engine(CPU, torch.float32) is engines.ORACLE
        assert "pictures differ" in caplog.text
    finally:
        for cached in (engines.find_engine, engines._best_engine):
            cached.cache_clear()


def dims_colours(means, quats, scales, opacities, colours, pinholes, pull):
    return engines.rasterize_oracle(means, quats, scales, opacities, colours * 0.9, pinholes, pull)


def forgets_a_gradient(means, quats, scales, opacities, colours, pinholes, pull):
    detached = opacities.detach() + 0 * opacities
    return engines.rasterize_oracle(means, quats, scales, detached, colours, pinholes, pull)


def forgets_the_pull(means, quats, scales, opacities, colours, pinholes, pull):
    return engines.rasterize_oracle(means, quats, scales, opacities, colours, pinholes)


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        (dims_colours, "pictures differ"),
        (forgets_a_gradient, "gradients of the opacities differ"),
        (forgets_the_pull, "gradients of the projected centres differ"),
    ],
)
def test_self_check_finds_a_wrong_engine(engine, complaint):
    assert engines.compare_with_oracle(engines.rasterize_oracle) == ""
    assert complaint in engines.compare_with_oracle(engine)
