"""NeuS's compositing: closed forms, its definition by brute force, and the engines against it.

The file runs on CUDA machines as it is; engines that do not run are left out.
"""

import math

import pytest
import torch

from v3d_core.neus import checks, engines
from v3d_core.neus.torch_volume import Composited, composite_torch, transmittances
from v3d_core.neus.volume import composite

CPU = torch.device("cpu")
DEVICES = [CPU] + [torch.device("cuda")] * torch.cuda.is_available()
CASES = [
    pytest.param(
        engine.run,
        device,
        id=f"{engine.name}-{device.type}",
        marks=[pytest.mark.cuda] * (device.type == "cuda"),
    )
    for device in DEVICES
    for engine in engines.COMPOSITORS.available(device)
]
each_engine = pytest.mark.parametrize(("run", "device"), CASES)


def scene(rays, samples, channels=3, seed=0, sharpness=40.0, anneal=0.3):
    """Arguments of a compositor: rays that enter an uneven body; some samples do not count."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    along = torch.linspace(1, -1, samples).double()
    return [
        0.1 * (along + uniform(rays, samples) - uniform(rays, 1)),
        2.2 * uniform(rays, samples) - 1.1,
        0.02 * uniform(rays, samples),
        uniform(rays, samples) < 0.9,
        uniform(rays, samples, channels),
        torch.tensor(sharpness).double(),
        torch.tensor(anneal).double(),
    ]


def wall(rays=1, samples=64, sharpness=200.0, dtype=torch.float64):
    """Rays straight into a plane at half of their unit length; segments touch one another."""
    middles = (torch.arange(samples, dtype=dtype) + 0.5) / samples
    values = torch.stack([torch.ones_like(middles), middles], dim=-1)
    return [
        (0.5 - middles).expand(rays, -1).contiguous(),
        -torch.ones(rays, samples, dtype=dtype),
        torch.full((rays, samples), 1 / samples, dtype=dtype),
        torch.ones(rays, samples, dtype=torch.bool),
        values.expand(rays, -1, -1).contiguous(),
        torch.tensor(sharpness, dtype=dtype),
        torch.tensor(1.0, dtype=dtype),
    ]


def moved(arguments, device, dtype):
    return [t.to(device) if t.dtype == torch.bool else t.to(device, dtype) for t in arguments]


def brute_force(sdf, cosines, deltas, inside, values, inv_s, anneal):
    """Weights of one ray in plain Python."""
    passed, weights = 1.0, []
    for d, cosine, delta, counts in zip(sdf, cosines, deltas, inside, strict=True):
        ic = -(max(0.5 - 0.5 * cosine, 0) * (1 - anneal) + max(-cosine, 0) * anneal)
        before = 1 / (1 + math.exp(-(d - ic * delta / 2) * inv_s))
        after = 1 / (1 + math.exp(-(d + ic * delta / 2) * inv_s))
        alpha = min(max((before - after + 1e-5) / (before + 1e-5), 0), 1) if counts else 0
        weights.append(passed * alpha)
        passed *= 1 - alpha
    return weights


def test_oracle_is_the_brute_force_walk_along_each_ray():
    arguments = scene(6, 20)
    out = composite_torch(*arguments)
    for ray in range(6):
        numbers = [t[ray].tolist() for t in arguments[:5]]
        weights = brute_force(*numbers, *(float(t) for t in arguments[5:]))
        weights = torch.tensor(weights, dtype=torch.float64)
        torch.testing.assert_close(out.weights[ray], weights, rtol=1e-12, atol=1e-15)
        seen = (weights[:, None] * arguments[4][ray]).sum(0)
        torch.testing.assert_close(out.values[ray], seen)
        torch.testing.assert_close(out.opacities[ray], weights.sum())


@pytest.mark.parametrize("samples", [1, 2, 3, 8, 13, 64])
def test_transmittances_are_products_of_what_comes_before(samples):
    alphas = torch.rand(5, samples, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.cumprod(torch.cat([torch.ones(5, 1), 1 - alphas[:, :-1]], dim=1), dim=1)
    torch.testing.assert_close(transmittances(alphas), expected)


def test_gradients_of_the_oracle_pass_gradcheck():
    sdf, cosines, deltas, inside, values, inv_s, anneal = scene(3, 6, 2)
    leaves = [t.requires_grad_() for t in (sdf, cosines, values, inv_s)]

    def run(sdf, cosines, values, inv_s):
        return composite_torch(sdf, cosines, deltas, inside, values, inv_s, anneal)[:2]

    assert torch.autograd.gradcheck(run, leaves)


@each_engine
def test_a_wall_is_opaque_and_its_weights_are_those_of_the_logistic_density(run, device):
    arguments = wall(rays=3)
    out = run(*moved(arguments, device, torch.float32))
    sharpness, edges = float(arguments[5]), torch.linspace(0.5, -0.5, 65).double()
    passed = torch.sigmoid(edges * sharpness)
    expected = (passed[:-1] - passed[1:]) / passed[0]
    for ray in range(3):
        error = (out.weights[ray].cpu().double() - expected).abs().max()
        assert float(error) < 1e-3  # what NeuS's epsilon of 1e-5 adds over 64 samples
    assert float((out.opacities - 1).abs().max()) < 1e-6
    assert float((out.values[:, 0] - 1).abs().max()) < 1e-6
    assert float((out.values[:, 1] - 0.5).abs().max()) < 1e-3  # the depth


@each_engine
def test_rays_through_nothing_are_clear(run, device):
    arguments = moved(scene(4, 40), device, torch.float32)
    arguments[3] = torch.zeros_like(arguments[3])
    out = run(*arguments)
    assert not out.values.any() and not out.opacities.any() and not out.weights.any()
    arguments = moved(scene(4, 40, sharpness=1000.0), device, torch.float32)
    arguments[0] = arguments[0] + 10
    assert 0 <= float(run(*arguments).opacities.max()) <= 40 * 1.1e-5  # NeuS's epsilon alone


@each_engine
def test_opacity_is_the_sum_of_the_weights_and_the_value_of_ones(run, device):
    arguments = moved(scene(30, 45, 1), device, torch.float32)
    arguments[4] = torch.ones_like(arguments[4])
    out = run(*arguments)
    torch.testing.assert_close(out.weights.sum(1), out.opacities)
    torch.testing.assert_close(out.values[:, 0], out.opacities)
    assert bool((out.weights >= 0).all()) and float(out.opacities.max()) <= 1 + 1e-6


@each_engine
def test_samples_that_do_not_count_change_nothing(run, device):
    arguments = moved(scene(7, 30), device, torch.float32)
    arguments[3] = torch.ones_like(arguments[3])
    padded = [torch.full((7, 50), -3.0, device=device) for _ in range(3)]
    padded += [torch.zeros(7, 50, dtype=torch.bool, device=device)]
    padded += [torch.full((7, 50, 3), 9.0, device=device)]
    places = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:30].sort().values
    for wide, narrow in zip(padded, arguments[:5], strict=True):
        wide[:, places] = narrow
    out, wide = run(*arguments), run(*padded, *arguments[5:])
    torch.testing.assert_close(wide.values, out.values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(wide.weights[:, places], out.weights, rtol=1e-5, atol=1e-7)
    assert float(wide.weights.sum()) == pytest.approx(float(out.weights.sum()), rel=1e-5)


def run_all(run, arguments, device, dtype):
    """Results and gradients of a weighted sum; in float64 on the CPU."""
    arguments = moved(arguments, device, dtype)
    leaves = [arguments[i].clone().requires_grad_() for i in (0, 1, 4, 5)]
    sdf, cosines, values, inv_s = leaves
    out = run(sdf, cosines, arguments[2], arguments[3], values, inv_s, arguments[6])
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(values.shape[0], values.shape[2] + 1, generator=generator) - 0.3
    weights = weights.to(device, dtype)
    ((out.values * weights[:, 1:]).sum() + (out.opacities * weights[:, 0]).sum()).backward()
    assert not out.weights.requires_grad
    return [t.detach().cpu().double() for t in (*out, *(t.grad for t in leaves))]


@each_engine
@pytest.mark.parametrize(
    ("rays", "samples", "channels"),
    [(0, 20, 3), (1, 1, 1), (3, 31, 6), (37, 32, 3), (37, 64, 5), (5, 130, 9), (20, 33, 0)],
)
@pytest.mark.parametrize(("sharpness", "anneal"), [(20.0, 0.0), (300.0, 0.4), (60.0, 1.0)])
def test_agrees_with_the_oracle_in_float64(run, device, rays, samples, channels, sharpness, anneal):
    arguments = scene(rays, samples, channels, samples, sharpness, anneal)
    tolerance = 1e-4 if channels else 1e-2  # opacity alone: gradients of next to nothing
    # CUDA's sigmoid is off by an ulp or two where it is nearly 1 and should cancel: then what is
    # left of a gradient, inv_s y (1 - y), is off by inv_s times that, for the torch twin as well
    noise = sharpness * torch.finfo(torch.float32).eps if device.type == "cuda" else 1e-7
    mine = run_all(run, arguments, device, torch.float32)
    for a, b in zip(mine, run_all(composite_torch, arguments, CPU, torch.float64), strict=True):
        assert a.shape == b.shape
        assert float((a - b).norm()) <= tolerance * float(b.norm()) + noise


@each_engine
def test_opaque_samples_have_finite_gradients(run, device):
    arguments = wall(sharpness=1e5)
    arguments[0] = arguments[0] * 10
    mine = run_all(run, arguments, device, torch.float32)
    assert all(t.isfinite().all() for t in mine)
    assert float(mine[1]) == pytest.approx(1.0, abs=1e-5)


def test_nerfacc_agrees_with_the_oracle(monkeypatch):
    pytest.importorskip("nerfacc", reason="needs nerfacc")
    from v3d_core.neus.nerfacc_volume import composite_nerfacc

    assert checks.compare_compositors(composite_nerfacc) == ""
    arguments = wall(sharpness=1e4)
    mine = run_all(composite_nerfacc, arguments, CPU, torch.float64)
    for a, b in zip(mine, run_all(composite_torch, arguments, CPU, torch.float64), strict=True):
        torch.testing.assert_close(a, b)


def test_anneal_may_be_a_number():
    arguments = scene(4, 10)
    as_tensor = composite(*arguments)
    as_number = composite(*arguments[:6], float(arguments[6]))
    assert all(torch.equal(a, b) for a, b in zip(as_tensor, as_number, strict=True))


def test_shapes_that_do_not_fit_are_refused():
    arguments = scene(4, 10)
    for position in (1, 2, 3, 4):
        wrong = [t[:, 1:] if i == position else t for i, t in enumerate(arguments)]
        with pytest.raises(ValueError, match=r"composite: sdf is \[4, 10\]"):
            composite(*wrong)


def test_engine_is_chosen_and_can_be_forced(monkeypatch):
    pytest.importorskip("warp", reason="the kernels need warp-lang")
    monkeypatch.delenv("V3D_COMPOSITING", raising=False)
    assert engines.COMPOSITORS.choose(CPU, torch.float32).name == "warp"
    assert engines.COMPOSITORS.choose(CPU, torch.float64).name == "torch"
    monkeypatch.setenv("V3D_COMPOSITING", "torch")
    assert engines.COMPOSITORS.choose(CPU, torch.float32) is engines.COMPOSITORS.oracle


def sees_behind(*arguments):
    out = composite_torch(*arguments)
    return Composited(out.values * 1.1, out.opacities, out.weights)


def forgets_the_sharpness(*arguments):
    fixed = arguments[5].detach() + 0 * arguments[5]
    return composite_torch(*arguments[:5], fixed, arguments[6])


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [(sees_behind, "values differ"), (forgets_the_sharpness, "gradients of the sharpness differ")],
)
def test_self_check_finds_a_wrong_engine(engine, complaint):
    assert checks.compare_compositors(composite_torch) == ""
    assert complaint in checks.compare_compositors(engine)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@each_engine
def test_a_step_can_be_captured_as_a_cuda_graph(run, device):
    if device.type != "cuda":
        pytest.skip("a CUDA graph needs CUDA")
    arguments = moved(scene(20, 48), device, torch.float32)
    sdf = arguments[0].requires_grad_()

    def step():
        out = run(*arguments)
        return torch.autograd.grad(out.values.square().sum() + out.opacities.sum(), sdf)[0]

    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = step()
    with torch.no_grad():
        sdf.add_(0.01)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(captured, step())
