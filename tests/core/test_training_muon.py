"""Muon: its orthogonalisation and its step against plain twins, and its state on disk."""

import json
from dataclasses import replace

import pytest
import torch
from small_training import CONFIG, Small, assert_same_weights, orbits
from torch import nn

from v3d_core.diffusion.training import OrbitTrainer, TrainConfig
from v3d_core.diffusion.training_muon import (
    MOMENTUM,
    NEWTON_SCHULZ,
    NEWTON_SCHULZ_STEPS,
    RMS,
    Muon,
    is_matrix,
    orthogonalised,
)
from v3d_core.diffusion.training_store import load_progress, save_progress

MUON = replace(CONFIG, optimiser="muon")


class Wide(Small):
    """Besides Small's narrow weights, a matrix and two convolutions of one shape that learn."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.tall = nn.Parameter(torch.randn(48, 16, generator=generator))
        self.kernels = nn.ParameterList(
            torch.randn(16, 16, 3, 3, generator=generator) for _ in range(2)
        )

    def forward(self, *inputs, **options):
        (made,) = super().forward(*inputs, **options)
        more = self.tall.square().mean() + sum(k.sin().mean() for k in self.kernels)
        return (made * (1 + more),)


def trained(steps):
    trainer = OrbitTrainer(Wide(), None, MUON)
    for _ in range(steps):
        trainer.update(orbits())
    return trainer


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 80), (4, 96, 24), (1, 128, 1152)])
def test_singular_vectors_stay_and_values_come_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = orthogonalised(matrices).double()
    u, _, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    inside = u.mT @ made @ vh.mT  # diagonal if the vectors are the same
    values = inside.diagonal(dim1=1, dim2=2)
    assert float((inside - torch.diag_embed(values)).abs().max()) < 0.05  # bfloat16
    assert float(values.median()) > 0.7 and float(values.max()) < 1.25
    # the polynomial itself, on the singular values, is the same map in double precision
    a, b, c = NEWTON_SCHULZ
    s = torch.linalg.svdvals(matrices.double())
    s = s / s.norm(dim=1, keepdim=True)
    for _ in range(NEWTON_SCHULZ_STEPS):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(values, s, atol=0.05, rtol=0)


def test_scale_of_a_gradient_means_nothing_and_shapes_are_worked_on_apart():
    matrices = torch.randn(5, 16, 48, generator=torch.Generator().manual_seed(1))
    both = orthogonalised(torch.stack([matrices[0], 1000 * matrices[0]]))
    torch.testing.assert_close(both[0], both[1], atol=0.02, rtol=0)
    together = orthogonalised(matrices)
    for one, made in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalised(one[None])[0], made, atol=0.02, rtol=0)


def test_a_matrix_has_many_channels_on_both_sides():
    shapes = {(16, 16): True, (16, 15): False, (4, 128, 3, 3): False, (128, 8, 3, 3): False}
    shapes |= {(128,): False, (128, 128, 3, 1, 1): True, (16, 16, 1, 1): True}
    for shape, matrix in shapes.items():
        assert is_matrix(torch.zeros(shape)) == matrix, shape


def test_steps_are_those_of_a_plain_twin():
    generator = torch.Generator().manual_seed(2)
    starts = [
        torch.randn(s, generator=generator)
        for s in [(48, 16), (16, 16, 3, 3), (16, 16, 3, 3), (7,)]
    ]
    weights = [nn.Parameter(w.clone()) for w in starts]
    adamw = nn.Parameter(starts[3].clone())
    muon = Muon(weights, lr=0.02, betas=(0.9, 0.99), weight_decay=0.1)
    other = torch.optim.AdamW([adamw], lr=0.02, betas=(0.9, 0.99), weight_decay=0.1)
    momenta = [torch.zeros_like(w) for w in starts[:3]]
    twins = [w.clone() for w in starts[:3]]
    for step in range(4):
        rate = 0.02 / (step + 1)
        muon.param_groups[0]["lr"] = other.param_groups[0]["lr"] = rate
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        adamw.grad = weights[3].grad
        muon.step()
        other.step()
        for i, weight in enumerate(weights[:3]):
            momenta[i] = MOMENTUM * momenta[i] + (1 - MOMENTUM) * weight.grad
            ahead = (1 - MOMENTUM) * weight.grad + MOMENTUM * momenta[i]
            turned = orthogonalised(ahead.flatten(1)[None])[0].view_as(weight)
            size = max(weight.flatten(1).shape)
            twins[i] = (1 - rate * 0.1) * twins[i] - rate * RMS * size**0.5 * turned
            torch.testing.assert_close(weight.detach(), twins[i], atol=2e-3, rtol=0)
    assert torch.equal(weights[3], adamw)
    with pytest.raises(ValueError, match="no closure"):
        muon.step(lambda: 0.0)


def test_a_step_is_as_long_as_adamw_s():
    """RMS of an update of a matrix: about 0.2 of the rate (Liu et al. 2025)."""
    for shape in [(128, 128), (128, 512), (1024, 128), (128, 128, 3, 3)]:
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        Muon([weight], lr=1.0, betas=(0.9, 0.99), weight_decay=0.0).step()
        assert 0.15 < float(weight.detach().square().mean().sqrt()) < 0.25, shape


def test_it_finds_what_a_linear_map_is():
    """Least squares to the noise-free answer, from nothing."""
    generator = torch.Generator().manual_seed(4)
    true = torch.randn(32, 16, generator=generator)
    weight = nn.Parameter(torch.zeros(32, 16))
    muon = Muon([weight], lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(300):
        x = torch.randn(64, 16, generator=generator)
        weight.grad = None
        (x @ (weight - true).mT).square().mean().backward()
        muon.param_groups[0]["lr"] = 0.3 * (1 - step / 300)
        muon.step()
    assert float((weight.detach() - true).norm() / true.norm()) < 0.02


def test_settings_name_an_optimiser_that_there_is():
    with pytest.raises(ValueError, match="optimiser 'sgd' is none of adamw, muon"):
        TrainConfig(optimiser="sgd")


def test_a_run_that_stops_and_goes_on_is_equal_to_the_bit(tmp_path):
    for stop in (1, 4, 6):
        trainer = OrbitTrainer(Wide(), None, MUON)
        load_progress(tmp_path, trainer)
        while trainer.step < stop:
            trainer.update(orbits())
        save_progress(tmp_path, trainer)
    whole = trained(6)
    assert_same_weights(trainer, whole)
    assert all(torch.equal(a, b) for a, b in zip(trainer.average, whole.average, strict=True))


def test_a_small_state_has_a_third_and_goes_on_near_by(tmp_path):
    trainer = trained(5)
    save_progress(tmp_path / "whole", trainer)
    save_progress(tmp_path / "small", trainer, small=True)

    def size(folder):
        files = json.loads((folder / "progress.json").read_text())["files"]
        return sum((folder / file).stat().st_size for file in files)

    matrices = sum(p.numel() for p in trainer.parameters if is_matrix(p))
    rest = sum(p.numel() for p in trainer.parameters) - matrices
    head = 4096  # names and places
    assert size(tmp_path / "small") < 4 * matrices + 12 * rest + head < size(tmp_path / "whole")
    again = OrbitTrainer(Wide(), None, MUON)
    assert load_progress(tmp_path / "small", again) and again.step == 5
    for a, b in zip(again.parameters, trainer.parameters, strict=True):
        assert torch.equal(a, b.detach().half().float())
    for a, b in zip(again.average, trainer.average, strict=True):
        assert torch.equal(a, b.half().float())
    for parameter in again.parameters:
        momentum = again.optimiser.state[parameter]["exp_avg"]
        assert is_matrix(parameter) != bool(momentum.any())
    again.update(orbits())
    # a state of one kind is not taken for the other
    progress = json.loads((tmp_path / "small" / "progress.json").read_text())
    del progress["small"]
    (tmp_path / "small" / "progress.json").write_text(json.dumps(progress))
    with pytest.raises(ValueError, match="lacks 3 tensors"):
        load_progress(tmp_path / "small", OrbitTrainer(Wide(), None, MUON))


def test_a_small_state_of_adamw_keeps_its_moments(tmp_path):
    config = replace(CONFIG, steps=10)
    trainer = OrbitTrainer(Wide(), None, config)
    trainer.update(orbits())
    save_progress(tmp_path, trainer, small=True)
    again = OrbitTrainer(Wide(), None, config)
    load_progress(tmp_path, again)
    for a, b in zip(again.parameters, trainer.parameters, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(again.optimiser.state[a][name], trainer.optimiser.state[b][name])


def test_a_weight_too_large_for_a_small_state_is_named_and_the_state_before_stays(tmp_path):
    trainer = trained(1)
    save_progress(tmp_path, trainer, small=True)
    trainer.update(orbits())
    with torch.no_grad():
        trainer.parameters[1].view(-1)[0] = 7e4
    with pytest.raises(ValueError, match=r"weight\.00001 has a value of 70000, .* 65504 at most"):
        save_progress(tmp_path, trainer, small=True)
    again = OrbitTrainer(Wide(), None, MUON)
    assert load_progress(tmp_path, again) and again.step == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_makes_the_same_steps():
    def run(device):
        generator = torch.Generator().manual_seed(6)
        weights = [
            nn.Parameter(torch.randn(s, generator=generator).to(device)) for s in [(64, 32), (9,)]
        ]
        muon = Muon(weights, 0.02, (0.9, 0.99), 0.1, fused=device == "cuda")
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator).to(device)
            muon.step()
        return [w.detach().cpu() for w in weights]

    for a, b in zip(run("cuda"), run("cpu"), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)
