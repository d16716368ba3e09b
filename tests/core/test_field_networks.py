"""The field's two networks: slopes against autograd, and every engine against the oracle."""

import pytest
import torch

from v3d_core.neus import engines
from v3d_core.neus.networks import colour_network, distance_network
from v3d_core.neus.torch_networks import (
    Layers,
    Places,
    colour_network_torch,
    distance_network_torch,
)

CPU = torch.device("cpu")
# samples, features, hidden units, outputs of the distance network, whether directions count
SIZES = [
    (1, 24, 48, 16, False),
    (31, 24, 48, 16, True),
    (513, 8, 7, 16, True),
    (1030, 24, 64, 16, False),
    (100, 36, 33, 4, True),
    (64, 2, 1, 1, False),
]


def scene(size, dtype=torch.float64, sharp=1.0, seed=0):
    """Leaves of both networks for a size: features, normals, layers; and what has no gradient."""
    count, width, hidden, outs, along = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = 3 + width
    seen = outs + inputs + 3 + 3 * along
    leaves = [
        normal(count, width),
        torch.nn.functional.normalize(normal(count, 3), dim=-1),
        normal(hidden, inputs, scale=sharp * (2 / inputs) ** 0.5), normal(hidden, scale=0.1),
        normal(outs, hidden, scale=0.3), normal(outs),
        normal(hidden, seen, scale=sharp * (2 / seen) ** 0.5), normal(hidden, scale=0.1),
        normal(3, hidden, scale=0.3), normal(3),
    ]  # fmt: skip
    joined = torch.rand(width, generator=generator, dtype=torch.float64)
    joined[-1] = 0  # a level that has not joined
    fixed = [normal(count, 3).clamp(-1, 1), joined, normal(count, 3) if along else None]
    gains = [normal(count), normal(count, outs), normal(count, 3), normal(count, width)]
    gains.append(normal(count, 3))
    leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    fixed, gains = ([t if t is None else t.to(dtype) for t in part] for part in (fixed, gains))
    return leaves, fixed, gains


def both(distance, colour, size, dtype, slopes=True, sharp=1.0):
    """Results of both networks, one behind the other, then the gradients of all leaves."""
    leaves, (unit, joined, along), gains = scene(size, dtype, sharp)
    places = Places(unit, leaves[0], joined)
    seen = distance(places, Layers(*leaves[2:6]), slopes)
    colours = colour(seen.outputs, places, leaves[1], along, Layers(*leaves[6:]))
    results = [*(seen if slopes else seen[:2]), colours]
    weights = [*gains[: 4 if slopes else 2], gains[4]]
    torch.stack([(a * b).sum() for a, b in zip(results, weights, strict=True)]).sum().backward()
    return [*(r.detach() for r in results), *(leaf.grad for leaf in leaves)]


def warp_networks():
    found = [e.find("warp", CPU) for e in (engines.DISTANCE_NETWORKS, engines.COLOUR_NETWORKS)]
    if any(engine is None for engine, _ in found):
        pytest.skip(f"needs Warp: {found}")
    return [engine.run for engine, _ in found]


def test_slopes_are_those_of_autograd():
    leaves, (unit, joined, _), _ = scene(SIZES[1])
    unit = unit.requires_grad_()
    seen = distance_network_torch(Places(unit, leaves[0], joined), Layers(*leaves[2:6]), True)
    by_unit, by_features = torch.autograd.grad(seen.residual.sum(), [unit, leaves[0]])
    torch.testing.assert_close(seen.by_unit, by_unit, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(seen.by_features, by_features, rtol=1e-7, atol=1e-8)
    assert torch.equal(seen.residual, seen.outputs[:, 0])


def test_a_network_of_one_unit_has_the_closed_form():
    """softplus(100 x) / 100 of the place's x alone, and a colour that is a sigmoid of it."""
    unit = torch.tensor([[-0.5, 0.3, 0.1], [0.0, 0.0, 0.0], [0.7, 0.2, -0.4]])
    places = Places(unit, torch.zeros(3, 2), torch.ones(2))
    layers = Layers(torch.eye(1, 5), torch.zeros(1), torch.full((1, 1), 2.0), torch.tensor([0.5]))
    seen = distance_network(places, layers)
    expected = torch.tensor([0.5, 0.5 + 2 * 0.01 * 0.6931472, 0.5 + 2 * 0.7])
    torch.testing.assert_close(seen.residual, expected)
    torch.testing.assert_close(seen.by_unit[:, 0], torch.tensor([0.0, 1.0, 2.0]))
    assert not seen.by_unit[:, 1:].any() and not seen.by_features.any()
    shades = Layers(torch.eye(1, 9), torch.zeros(1), torch.ones(3, 1), torch.zeros(3))
    colours = colour_network(seen.outputs, places, torch.ones(3, 3), None, shades)
    torch.testing.assert_close(colours, torch.sigmoid(expected)[:, None].expand(3, 3))


@pytest.mark.parametrize("slopes", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_kernels_give_what_the_oracle_gives(size, slopes):
    true = both(distance_network_torch, colour_network_torch, size, torch.float64, slopes)
    mine = both(*warp_networks(), size, torch.float32, slopes)
    for found, wanted in zip(mine, true, strict=True):
        assert found.shape == wanted.shape
        error = (found.double() - wanted).norm()
        assert float(error) <= 1e-4 * float(wanted.norm()) + 1e-12


def test_units_far_from_zero_neither_overflow_nor_vanish():
    size = SIZES[1]
    true = both(distance_network_torch, colour_network_torch, size, torch.float64, sharp=300)
    mine = both(*warp_networks(), size, torch.float32, sharp=300)
    single = both(distance_network_torch, colour_network_torch, size, torch.float32, sharp=300)
    for found, same, wanted in zip(mine, single, true, strict=True):
        assert found.isfinite().all()
        rounding = float((same.double() - wanted).norm())  # of float32, whoever adds up
        size = float(wanted.norm())
        assert float((found.double() - wanted).norm()) <= 3 * rounding + 1e-4 * size + 1e-12


def test_kernels_are_the_same_bits_however_many_threads_there_are(monkeypatch):
    networks = warp_networks()
    from v3d_core.neus import warp_networks as module

    engine = module._engine()
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(engine, "threads", threads)
        found.append(both(*networks, SIZES[3], torch.float32))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_no_points_and_too_many_units_are_no_trouble(caplog):
    distance, colour = warp_networks()
    found = both(distance, colour, (0, 24, 48, 16, False), torch.float32)
    assert [len(r) for r in found[:5]] == [0] * 5
    assert not any(g.any() for g in found[5:])
    large = (40, 60, 80, 16, False)  # more than the kernels have room for
    with caplog.at_level("WARNING"):
        mine = both(distance, colour, large, torch.float32)
    assert "a network of 80 units and 16 outputs runs in torch" in caplog.text
    true = both(distance_network_torch, colour_network_torch, large, torch.float32)
    for found, wanted in zip(mine, true, strict=True):
        assert torch.equal(found, wanted)


def test_a_variable_forces_the_engine_of_both_networks(monkeypatch):
    monkeypatch.delenv("V3D_NETWORKS", raising=False)
    for networks in (engines.DISTANCE_NETWORKS, engines.COLOUR_NETWORKS):
        warp_networks()
        assert networks.choose(CPU, torch.float32).name == "warp"
        assert networks.choose(CPU, torch.float64).name == "torch"
        assert networks.choose(torch.device("cuda", 0), torch.float32).name == "torch"
        monkeypatch.setenv("V3D_NETWORKS", "torch")
        assert networks.choose(CPU, torch.float32) is networks.oracle
        monkeypatch.setenv("V3D_NETWORKS", "tinycudann")
        with pytest.raises(ValueError, match="known engines are torch, warp"):
            networks.choose(CPU, torch.float32)
        monkeypatch.delenv("V3D_NETWORKS")


@pytest.mark.parametrize("which", ["distance", "colour"])
@pytest.mark.parametrize("broken", ["values", "gradients"])
def test_the_self_check_finds_a_wrong_engine(which, broken):
    from v3d_core.neus import checks

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value * 1.01 if broken == "values" else value.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad if broken == "values" else grad * 1.01

    def wrong_distance(places, layers, slopes):
        seen = distance_network_torch(places, layers, slopes)
        return seen._replace(outputs=Scaled.apply(seen.outputs))

    def wrong_colour(*arguments):
        return Scaled.apply(colour_network_torch(*arguments))

    if which == "distance":
        assert checks.compare_distance_networks(distance_network_torch) == ""
        assert "differ" in checks.compare_distance_networks(wrong_distance)
    else:
        assert checks.compare_colour_networks(colour_network_torch) == ""
        assert "differ" in checks.compare_colour_networks(wrong_colour)
