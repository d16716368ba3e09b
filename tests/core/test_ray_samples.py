"""The kernel that places samples along rays, against the definition in torch."""

import math

import pytest
import torch
import torch.nn.functional as F

from v3d_core.neus import checks, engines
from v3d_core.neus.torch_sampling import place_samples_torch
from v3d_core.neus.trilinear import interleaved

CPU = torch.device("cpu")


def warp_sampler():
    engine, why = engines.SAMPLERS.find("warp", CPU)
    if engine is None:
        pytest.skip(f"needs Warp: {why}")
    return engine.run


def ball(cells=32, radius=0.5, bumps=0.03):
    side = (torch.arange(cells) + 0.5) / cells * 2 - 1
    x, y, z = torch.meshgrid(side, side, side, indexing="ij")
    start = (x * x + y * y + z * z).sqrt() - radius
    return interleaved(torch.stack([start + bumps * torch.sin(7 * x + 5 * z), start]))


def rays(count=500, seed=0):
    """From all around, most of them towards the cube, some beside it, some along an axis."""
    generator = torch.Generator().manual_seed(seed)
    origins = 3 * F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    towards = F.normalize(torch.randn(count, 3, generator=generator) - origins, dim=-1)
    origins[:6] = torch.cat([torch.eye(3), -torch.eye(3)]) * 2 + 0.01
    towards[:6] = torch.cat([-torch.eye(3), torch.eye(3)])
    return origins, towards, torch.rand(count, generator=generator)


@pytest.mark.parametrize("band", [0.1, 0.4, math.inf])
@pytest.mark.parametrize(("count", "share"), [(32, 0.75), (1, 0.0), (7, 0.5), (96, 0.9)])
def test_kernel_places_samples_where_the_definition_does(count, share, band):
    origins, towards, jitter = rays()
    centre, half = torch.tensor([0.1, -0.05, 0.02]), 1.2
    arguments = (origins, towards, jitter, ball() * half, centre, half, band * half, count, share)
    mine, true = warp_sampler()(*arguments), place_samples_torch(*arguments)
    assert true.inside.any() and not true.inside.all()  # rays that miss the band, too
    assert (mine.inside != true.inside).float().mean() < 2e-3
    both = mine.inside & true.inside
    for name in ("distances", "deltas"):
        off = (getattr(mine, name) - getattr(true, name)).abs()[both]
        assert float((off > 1e-4).float().mean()) < 5e-3, name
        assert float(off.mean()) < 1e-4, name
    assert not mine.deltas[~mine.inside.any(-1)].any() or band == math.inf
    torch.testing.assert_close(mine.deltas.sum(-1), true.deltas.sum(-1), rtol=1e-3, atol=1e-3)


def test_sections_cover_the_band_once_and_in_order():
    origins, towards, jitter = rays()
    known, band = ball(bumps=0.0), 0.15
    seen = warp_sampler()(origins, towards, jitter, known, torch.zeros(3), 1.0, band, 32, 0.75)
    hit = seen.inside.any(-1)
    assert (seen.distances.diff(dim=-1)[hit] >= -1e-5).all() and (seen.deltas >= 0).all()
    # the chord of the ball that the band ends at, of radius 0.65
    nearest = (origins + towards * -(origins * towards).sum(-1, keepdim=True)).norm(dim=-1)
    chord = 2 * (0.65**2 - nearest.square()).clamp(min=0).sqrt()
    within = hit & (nearest < 0.6)
    step = 2 * math.sqrt(3) / 96  # a place either side may count or not
    assert within.any() and ((seen.deltas.sum(-1) - chord)[within].abs() < 2 * step).all()


def test_the_self_check_finds_samples_in_a_wrong_place():
    assert checks.compare_samplers(place_samples_torch) == ""

    def nearer(*arguments):
        seen = place_samples_torch(*arguments)
        return seen._replace(distances=seen.distances - 0.01)

    def blind(*arguments):
        seen = place_samples_torch(*arguments)
        return seen._replace(inside=torch.zeros_like(seen.inside))

    assert "distances differ" in checks.compare_samplers(nearer)
    assert "count" in checks.compare_samplers(blind)


def test_a_variable_forces_the_engine(monkeypatch):
    monkeypatch.delenv("V3D_SAMPLES", raising=False)
    warp_sampler()
    assert engines.SAMPLERS.choose(CPU, torch.float32).name == "warp"
    assert engines.SAMPLERS.choose(CPU, torch.float64).name == "torch"
    monkeypatch.setenv("V3D_SAMPLES", "torch")
    assert engines.SAMPLERS.choose(CPU, torch.float32) is engines.SAMPLERS.oracle
