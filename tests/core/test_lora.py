"""LoRA: nothing at the start, equal to its merged weights, and nothing but itself learns."""

import importlib
from dataclasses import replace

import pytest
import torch
from small_training import CONFIG, UNET, orbits
from tiny_models import random_state

from v3d_core.diffusion.checkpoint import CheckpointError, ModelPart, part_layout, require_part
from v3d_core.diffusion.lora import ADAPTED, Lora, merged_unet, read_lora, write_lora
from v3d_core.diffusion.training import OrbitTrainer
from v3d_core.diffusion.training_store import write_model
from v3d_core.formats.weights import open_weights, write_safetensors

pytest.importorskip("diffusers")

from v3d_core.diffusion.training_networks import (
    halve_frozen_layers,
    load_network,
    new_unet,
)

RANK = 3


@pytest.fixture(scope="module")
def part(tmp_path_factory) -> ModelPart:
    """A UNet in which every layer matters, in a file."""
    path = tmp_path_factory.mktemp("unet") / "unet.safetensors"
    state = random_state(importlib.import_module, UNET, 0, "model.diffusion_model.")
    write_safetensors(path, state, {n: (t.dtype, tuple(t.shape)) for n, t in state.items()})
    return require_part(path, "unet")


@pytest.fixture
def unet(part):
    return load_network(part)


def with_changes(lora, seed=3):
    """Adapters as after some training."""
    generator = torch.Generator().manual_seed(seed)
    for adapter in lora.adapters.values():
        adapter.up.data.normal_(0, 0.2, generator=generator)
    return lora


def output(unet):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 3, 8, 4, 4, generator=generator)
    token = torch.randn(2, 1, 8, generator=generator)
    ids = torch.tensor([[1.0, 300.0, 0.02]]).expand(2, -1)
    return unet(inputs, torch.tensor([0.1, 0.7]), token, ids, return_dict=False)[0]


def test_adapters_change_nothing_at_the_start_and_after_they_are_taken_off(unet):
    with torch.no_grad():
        before = output(unet)
        lora = Lora(unet, UNET, RANK)
        assert torch.equal(output(unet), before)
        with_changes(lora)
        assert float((output(unet) - before).abs().max()) > 0.1
        lora.remove()
        assert torch.equal(output(unet), before)


@pytest.mark.parametrize("alpha", [None, 1.5])
def test_the_merged_model_computes_what_the_adapted_one_does(part, unet, alpha, tmp_path):
    lora = with_changes(Lora(unet, UNET, RANK, alpha))
    write_lora(tmp_path / "lora.safetensors", lora.adapters)
    merged = merged_unet(part, read_lora(tmp_path / "lora.safetensors"))
    write_model(tmp_path / "model.safetensors", {"unet": (UNET, merged)}, torch.float32)
    again = load_network(require_part(tmp_path / "model.safetensors", "unet"))
    with torch.no_grad():
        torch.testing.assert_close(output(again), output(unet), rtol=1e-4, atol=1e-4)


def test_only_adapters_learn_and_all_of_them(unet):
    weights = {name: t.clone() for name, t in unet.state_dict().items()}
    lora = with_changes(Lora(unet, UNET, RANK))
    before = [p.detach().clone() for p in lora.parameters]
    noise = replace(CONFIG.noise, drop_token=0.0)
    trainer = OrbitTrainer(unet, None, replace(CONFIG, noise=noise), lora.parameters)
    assert trainer.parameters == lora.parameters
    trainer.update(orbits())
    assert all(torch.equal(weights[name], t) for name, t in unet.state_dict().items())
    assert not any(p.requires_grad for p in unet.parameters())
    for parameter, old in zip(lora.parameters, before, strict=True):
        moment = trainer.optimiser.state[parameter]["exp_avg"]
        assert float(moment.abs().max()) > 0 and not torch.equal(parameter, old)


def test_at_the_start_only_up_moves(unet):
    """The gradient of `down` goes through `up`, which is 0."""
    lora = Lora(unet, UNET, RANK)
    for parameter in lora.parameters:
        parameter.requires_grad_(True)
    output(unet).square().sum().backward()
    for adapter in lora.adapters.values():
        assert not adapter.down.grad.any() and adapter.up.grad.any()


def test_the_layers_left_out_have_no_effect(unet):
    """With one token in the context the softmax is 1, whatever its query and key say."""
    names = [e.sgm for e in UNET.entries() if ".attn" in e.sgm and e.sgm.endswith("weight")]
    left_out = [e.diffusers for e in UNET.entries() if e.sgm in names and not ADAPTED.search(e.sgm)]
    assert left_out and all(
        n.endswith(("attn2.to_q.weight", "attn2.to_k.weight")) for n in left_out
    )
    with torch.no_grad():
        before = output(unet)
        for name in left_out:
            unet.get_parameter(name).add_(torch.randn(unet.get_parameter(name).shape))
        assert torch.equal(output(unet), before)


def test_the_file_has_comfyuis_names_and_comes_back(unet, tmp_path):
    lora = with_changes(Lora(unet, UNET, RANK, alpha=6.0, seed=5))
    path = tmp_path / "lora.safetensors"
    assert write_lora(path, lora.adapters, {"base": "V3D"}) == path.stat().st_size
    layers = {n.removesuffix(".weight") for n in part_layout(UNET, "sgm") if ADAPTED.search(n)}
    assert len(layers) == 2 * 6 * 7 == len(lora.adapters)  # two streams, six layers, seven blocks
    with open_weights(path) as file:
        assert file.metadata["base"] == "V3D"
        assert set(file) == {
            f"diffusion_model.{layer}.{what}"
            for layer in layers
            for what in ("lora_up.weight", "lora_down.weight", "alpha")
        }
    again = read_lora(path)
    for name, adapter in lora.adapters.items():
        assert torch.equal(again[name].up, adapter.up)
        assert torch.equal(again[name].down, adapter.down)
        assert again[name].alpha == 6.0
        torch.testing.assert_close(again[name].change(), 2 * adapter.up @ adapter.down)


def test_the_start_is_of_the_seed_and_as_torch_starts_linear_layers(unet):
    first, second = Lora(unet, UNET, 64, seed=1), Lora(unet, UNET, 64, seed=1)
    other = Lora(unet, UNET, 64, seed=2)
    for name, adapter in first.adapters.items():
        assert torch.equal(adapter.down, second.adapters[name].down)
        assert not torch.equal(adapter.down, other.adapters[name].down)
        bound = adapter.down.shape[1] ** -0.5
        assert 0.8 * bound < float(adapter.down.detach().abs().max()) <= bound


def test_frozen_layers_in_half_precision_compute_the_same_under_autocast(part):
    full, half = load_network(part), load_network(part)
    halve_frozen_layers(half)
    assert half.conv_in.weight.dtype == torch.bfloat16
    assert half.conv_norm_out.weight.dtype == torch.float32
    for network in (full, half):
        with_changes(Lora(network, UNET, RANK))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(output(full), output(half))


def test_files_that_are_no_adapters_and_other_models_are_refused(part, unet, tmp_path):
    path = tmp_path / "lora.safetensors"
    write_safetensors(path, {"a": torch.zeros(1)}, {"a": (torch.float32, (1,))})
    with pytest.raises(ValueError, match="not a LoRA that v3d train made: 1 of its names"):
        read_lora(path)
    wide = replace(UNET, context_channels=16)
    lora = Lora(new_unet(wide, 0), wide, RANK)
    with pytest.raises(CheckpointError, match=r"does not fit .*attn2.to_v \[64, 16\].*\[64, 8\]"):
        list(merged_unet(part, lora.adapters))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Lora(unet, UNET, 0)
