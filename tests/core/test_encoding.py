"""The hash grid: its definition, the engines against it, and how one is chosen.

The file runs on CUDA machines as it is; engines that do not run are left out.
"""

import itertools
import math
import types

import pytest
import torch

from v3d_core.neus import checks, engines, tcnn_encoding
from v3d_core.neus.encoding import Encoded, HashGrid, encode
from v3d_core.neus.torch_encoding import encode_torch

SMALL = HashGrid(levels=3, base=3, finest=9, log2_entries=7)  # one dense level, two hashed
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
    for engine in engines.HASH_GRIDS.available(device)
]
each_engine = pytest.mark.parametrize(("run", "device"), CASES)


def uniform(*shape, seed=0, low=-1.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def brute_force(point, table, grid):
    """Features of one point in plain Python."""
    features = []
    for level in range(grid.levels):
        place = [min(max(x, 0.0), 1.0) * grid.scales[level] + 0.5 for x in point]
        cell = [math.floor(x) for x in place]
        total = [0.0, 0.0]
        for corner in itertools.product((0, 1), repeat=3):
            x, y, z = (c + d for c, d in zip(cell, corner, strict=True))
            side, size = grid.resolutions[level], grid.sizes[level]
            if side**3 <= 2**grid.log2_entries:
                row = x + y * side + z * side**2
            else:
                row = (x ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)) % size
            weight = math.prod(
                p - c if d else 1 - (p - c) for p, c, d in zip(place, cell, corner, strict=True)
            )
            entry = table[grid.offsets[level] + row]
            total = [t + weight * e for t, e in zip(total, entry, strict=True)]
        features += total
    return features


def test_grid_has_the_sizes_it_was_asked_for():
    grid = HashGrid()
    assert grid.width == 24 and len(grid.scales) == 12
    assert grid.scales[0] == 15 and grid.scales[-1] == pytest.approx(383)
    assert grid.resolutions[0] == 17 and grid.resolutions[-1] == 385
    assert all(a <= b for a, b in itertools.pairwise(grid.sizes)) and max(grid.sizes) == 2**17
    assert grid.dense == tuple(side**3 <= 2**17 for side in grid.resolutions)
    assert grid.entries == grid.offsets[-1] + grid.sizes[-1] == sum(grid.sizes)
    assert HashGrid(levels=1).scales == (15.0,)


@pytest.mark.parametrize("wrong", [{"levels": 0}, {"base": 1}, {"finest": 8}, {"log2_entries": 0}])
def test_impossible_grids_are_refused(wrong):
    with pytest.raises(ValueError, match="HashGrid: needs"):
        HashGrid(**wrong)


def test_oracle_is_the_brute_force_sum_over_corners():
    table, points = uniform(SMALL.entries, 2), uniform(40, 3, seed=1, low=-0.2, high=1.2)
    points[:2] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    expected = [brute_force(p, table.tolist(), SMALL) for p in points.tolist()]
    features = encode_torch(points, table, SMALL).features
    torch.testing.assert_close(
        features, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_oracle_interpolates_a_linear_function_exactly_where_levels_are_dense():
    grid = HashGrid(levels=2, base=4, finest=6, log2_entries=12)
    rows = []
    for side, scale in zip(grid.resolutions, grid.scales, strict=True):
        steps = (torch.arange(side, dtype=torch.float64) - 0.5) / scale  # where a vertex lies
        z, y, x = torch.meshgrid(steps, steps, steps, indexing="ij")
        rows.append(torch.stack([x + 2 * y - z, 3 * z], dim=-1).flatten(0, 2))
    points = uniform(20, 3, low=0.0)
    features, pull_back = encode_torch(points, torch.cat(rows), grid)
    x, y, z = points.unbind(-1)
    torch.testing.assert_close(features, torch.stack([x + 2 * y - z, 3 * z] * 2, dim=-1))
    gradient = torch.tensor([1.0, 0.0, 0.0, 0.5]).double().expand(20, 4)
    slope = torch.tensor([1.0, 2.0, 0.5]).double().expand(20, 3)
    torch.testing.assert_close(pull_back(gradient), slope)


def test_pull_back_is_the_gradient_by_the_points():
    table, points = uniform(SMALL.entries, 2), uniform(30, 3, low=-0.2, high=1.2, seed=2)
    gradient = uniform(30, SMALL.width, seed=3)
    pulled = encode_torch(points, table, SMALL).pull_back(gradient)
    step = 1e-6
    for axis in range(3):
        shift = torch.zeros(3).double()
        shift[axis] = step
        up, down = (encode_torch(points + s, table, SMALL).features for s in (shift, -shift))
        numeric = ((up - down) / (2 * step) * gradient).sum(-1)
        torch.testing.assert_close(pulled[:, axis], numeric, rtol=1e-5, atol=1e-6)
    outside = (points < 0) | (points > 1)
    assert outside.any() and not pulled[outside].any()


def test_gradients_of_the_oracle_pass_gradcheck():
    points = uniform(7, 3, low=-0.1, high=1.1, seed=4)
    table = uniform(SMALL.entries, 2, seed=5).requires_grad_()
    gradient = uniform(7, SMALL.width, seed=6).requires_grad_()

    def both(table, gradient):
        features, pull_back = encode_torch(points, table, SMALL)
        return features, pull_back(gradient * features)

    assert torch.autograd.gradcheck(both, (table, gradient))


def run_all(run, points, table, grid, dtype, device):
    """Features, what is pulled back, and gradients of a loss of both; in float64 on the CPU."""
    count = len(points)
    weights, pulls = uniform(count, grid.width, seed=7), uniform(count, 3, seed=8)
    gradient = uniform(count, grid.width, seed=9).to(device, dtype).requires_grad_()
    table = table.to(device, dtype).requires_grad_()
    features, pull_back = run(points.to(device, dtype), table, grid, True)
    pulled = pull_back(gradient * features)
    loss = (features * weights.to(device, dtype)).sum() + (pulled * pulls.to(device, dtype)).sum()
    loss.backward()
    return [t.detach().cpu().double() for t in (features, pulled, table.grad, gradient.grad)]


def assert_close_in_length(mine, true, tolerance=1e-5):
    for a, b in zip(mine, true, strict=True):
        assert a.shape == b.shape
        assert float((a - b).norm()) <= tolerance * float(b.norm())


@each_engine
@pytest.mark.parametrize("count", [0, 1, 37, 2500])
@pytest.mark.parametrize(
    "grid", [SMALL, HashGrid(levels=5, base=4, finest=64, log2_entries=9)], ids=["small", "more"]
)
def test_agrees_with_the_oracle_in_float64(run, device, count, grid):
    points = uniform(count, 3, low=-0.1, high=1.1, seed=count)
    table = uniform(grid.entries, 2)
    mine = run_all(run, points, table, grid, torch.float32, device)
    assert_close_in_length(mine, run_all(encode_torch, points, table, grid, torch.float64, CPU))


@each_engine
def test_corners_of_the_cube_and_far_outside(run, device):
    points = torch.tensor(list(itertools.product((-1e6, -0.3, 0.0, 1.0, 1.3, 1e6), repeat=3)))
    table = uniform(SMALL.entries, 2)
    mine = run_all(run, points, table, SMALL, torch.float32, device)
    assert_close_in_length(mine, run_all(encode_torch, points, table, SMALL, torch.float64, CPU))


@each_engine
def test_features_alone_are_the_same_and_cannot_be_pulled_back(run, device):
    points = uniform(50, 3, low=0.0).to(device, torch.float32)
    table = uniform(SMALL.entries, 2).to(device, torch.float32).requires_grad_()
    grads = []
    for jacobian in (True, False):
        encoded = run(points, table, SMALL, jacobian)
        grads.append(torch.autograd.grad(encoded.features.square().sum(), table)[0])
    torch.testing.assert_close(*grads)
    with pytest.raises(RuntimeError, match="jacobian=False"):
        encoded.pull_back(torch.zeros_like(encoded.features))


@each_engine
def test_pull_back_alone_twice_and_with_any_strides(run, device):
    points = uniform(50, 3, low=0.0).to(device, torch.float32)
    base = uniform(SMALL.entries, 2).to(device, torch.float32)
    first, second, pulls = (
        uniform(50, n, seed=s).to(device, torch.float32) for n, s in ((6, 1), (6, 2), (3, 3))
    )
    grads = []
    for split in (False, True):
        table = base.clone().requires_grad_()
        pull_back = run(points, table, SMALL, True).pull_back
        if split:  # one contiguous the other way round, one the same number for all
            pulled = pull_back(first.t().contiguous().t())
            pulled = pulled * pull_back(second[:1].expand(50, -1))
        else:
            pulled = pull_back(first)
            pulled = pulled * run(points, table, SMALL, True).pull_back(second[:1].repeat(50, 1))
        grads.append(torch.autograd.grad((pulled * pulls).sum(), table)[0])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@each_engine
def test_backward_can_be_repeated_and_changes_nothing_it_was_given(run, device):
    points = uniform(50, 3, low=0.0).to(device, torch.float32)
    table = uniform(SMALL.entries, 2).to(device, torch.float32).requires_grad_()
    gradient = uniform(50, 6).to(device, torch.float32)
    before = [t.detach().clone() for t in (points, table, gradient)]
    features, pull_back = run(points, table, SMALL, True)
    loss = features.sum() + pull_back(gradient).square().sum()
    (once,) = torch.autograd.grad(loss, table, retain_graph=True)
    (again,) = torch.autograd.grad(loss, table)
    torch.testing.assert_close(once, again)
    assert all(torch.equal(a, b) for a, b in zip(before, (points, table, gradient), strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_step_can_be_captured_as_a_cuda_graph():
    device = torch.device("cuda", torch.cuda.current_device())
    points = torch.rand(500, 3, device=device)
    table = torch.rand(SMALL.entries, 2, device=device).requires_grad_()
    gradient = torch.rand(500, SMALL.width, device=device)

    def step():
        features, pull_back = encode(points, table, SMALL)
        loss = features.square().sum() + pull_back(gradient).square().sum()
        return torch.autograd.grad(loss, table)[0]

    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = step()
    points.copy_(torch.rand(500, 3, device=device))
    for _ in range(2):  # a second replay must not add to the first
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(captured, step(), rtol=1e-3, atol=1e-2)


def test_points_and_tables_of_the_wrong_shape_are_refused():
    table = torch.zeros(SMALL.entries, 2)
    with pytest.raises(ValueError, match="has 1156656 rows"):
        encode(torch.zeros(4, 3), table, HashGrid())
    with pytest.raises(ValueError, match=r"expected points \[N, 3\] on cpu"):
        encode(torch.zeros(4, 2), table, SMALL)


@pytest.fixture
def choice(monkeypatch):
    """The choice of the hash grid's engine, unforced, and looked at anew before and after."""
    monkeypatch.delenv("V3D_HASH_GRID", raising=False)
    engines.HASH_GRIDS.forget()
    yield engines.HASH_GRIDS
    engines.HASH_GRIDS.forget()


def test_engine_is_chosen_and_can_be_forced(choice, monkeypatch, caplog):
    pytest.importorskip("warp", reason="the kernels need warp-lang")
    caplog.set_level("INFO")
    assert choice.choose(CPU, torch.float32).name == "warp"
    assert choice.choose(CPU, torch.float64).name == "torch"
    assert caplog.text.count("hash grid on cpu: warp") == 1
    for name in ("torch", "warp"):
        monkeypatch.setenv("V3D_HASH_GRID", name)
        assert choice.choose(CPU, torch.float32).name == name
    monkeypatch.setenv("V3D_HASH_GRID", "cuda11")
    with pytest.raises(ValueError, match="known engines are torch, warp"):
        choice.choose(CPU, torch.float32)


def test_a_missing_or_wrong_engine_leaves_the_oracle_and_says_why(choice, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(engines.backends, "is_installed", lambda name: False)
        assert choice.choose(CPU, torch.float32) is choice.oracle
    assert "pip install warp-lang" in caplog.text
    choice.forget()
    monkeypatch.setattr(engines.backends, "is_installed", lambda name: name == "warp")
    wrong = engines.Engine("warp", dims_features, capturable=False)
    monkeypatch.setitem(choice.candidates, "warp", lambda device: wrong)
    assert choice.choose(CPU, torch.float32) is choice.oracle
    assert "features differ" in caplog.text


class StandIn(torch.nn.Module):
    """tinycudann.Encoding of a hash grid as its source has it, in torch: sizes, wrap and all."""

    def __init__(self, n_input_dims, encoding_config, seed=1337, dtype=None):
        super().__init__()
        c = self.config = encoding_config
        assert (n_input_dims, dtype, c["otype"]) == (3, torch.float32, "HashGrid")
        assert (c["n_features_per_level"], c["interpolation"]) == (2, "Linear")
        self.levels = []
        for level in range(c["n_levels"]):
            scale = c["per_level_scale"] ** level * c["base_resolution"] - 1
            side = math.ceil(scale - 1e-6) + 1
            size = min(-(-(side**3) // 8) * 8, 2 ** c["log2_hashmap_size"])
            self.levels.append((scale, side, size))
        count = sum(size for *_, size in self.levels)
        self.params = torch.nn.Parameter(torch.rand(2 * count) * 1e-4)

    def forward(self, points):
        assert points.dtype == self.params.dtype == torch.float32
        entries, features = self.params.view(-1, 2), []
        for scale, side, size in self.levels:
            place = points * scale + 0.5
            cell = place.detach().floor()
            total = 0
            for corner in itertools.product((0, 1), repeat=3):
                bits = torch.tensor(corner)
                x, y, z = (cell.long() + bits).unbind(-1)
                row = x + y * side + z * side**2
                if size < side**3:
                    row = x ^ (y * 2654435761) ^ (z * 805459861)
                share = torch.where(bits.bool(), place - cell, 1 - (place - cell)).prod(-1)
                total = total + share[:, None] * entries[row % size]
            features.append(total)
            entries = entries[size:]
        return torch.cat(features, dim=-1)


def test_adapter_of_tinycudann_keeps_the_contract(monkeypatch):
    tcnn = types.SimpleNamespace(Encoding=StandIn)
    monkeypatch.setattr(tcnn_encoding.backends, "load", {"tinycudann": tcnn}.__getitem__)
    tcnn_encoding._module.cache_clear()
    try:
        assert checks.compare_encoders(tcnn_encoding.encode_tinycudann) == ""
        points = uniform(300, 3, low=-0.1, high=1.1).float()
        table = uniform(SMALL.entries, 2)
        mine = run_all(tcnn_encoding.encode_tinycudann, points, table, SMALL, torch.float32, CPU)
        true = run_all(encode_torch, points, table, SMALL, torch.float64, CPU)
        assert_close_in_length(mine, true)
        with pytest.raises(ValueError, match="dense level where"):
            tcnn_encoding._module(HashGrid(levels=1, base=8, finest=8, log2_entries=9), CPU)
    finally:
        tcnn_encoding._module.cache_clear()


def dims_features(points, table, grid, jacobian):
    features, pull_back = encode_torch(points, table, grid, jacobian)
    return Encoded(features * 0.9, pull_back)


def forgets_the_table(points, table, grid, jacobian):
    features, _ = encode_torch(points, table, grid, jacobian)
    return Encoded(features, encode_torch(points, table.detach(), grid).pull_back)


def pulls_in_cells(points, table, grid, jacobian):
    features, pull_back = encode_torch(points, table, grid, jacobian)
    return Encoded(features, lambda gradient: pull_back(gradient) / grid.scales[0])


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        (dims_features, "features differ"),
        (forgets_the_table, "gradients of the table differ"),
        (pulls_in_cells, "gradients of the points differ"),
    ],
)
def test_self_check_finds_a_wrong_engine(engine, complaint):
    assert checks.compare_encoders(encode_torch) == ""
    assert complaint in checks.compare_encoders(engine)
