"""A training's state on disk, and the finished model: round trips, and what cannot be read."""

import json
from dataclasses import replace

import pytest
import torch
from live_tensors import live_tensor_bytes
from small_training import CONFIG, Small, assert_same_weights, orbits, trained
from torch import nn

from v3d_core.diffusion import training_store
from v3d_core.diffusion.checkpoint import read_part
from v3d_core.diffusion.convert import convert_to_diffusers
from v3d_core.diffusion.model_files import find_model
from v3d_core.diffusion.training import OrbitTrainer
from v3d_core.diffusion.training_store import load_progress, save_progress, saved_step, write_model
from v3d_core.formats.weights import open_weights


def assert_same_run(first, second):
    assert first.step == second.step
    assert_same_weights(first, second)
    assert all(torch.equal(a, b) for a, b in zip(first.average, second.average, strict=True))


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


# --- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(1,), (2, 5), (0, 1, 2, 3, 4, 5, 6)])
def test_a_run_that_stops_and_goes_on_is_equal_to_the_bit(tmp_path, stops):
    for stop in (*stops, 7):
        trainer = OrbitTrainer(Small(), None, CONFIG)
        load_progress(tmp_path, trainer)
        while trainer.step < stop:
            trainer.update(orbits())
        save_progress(tmp_path, trainer)
    assert_same_run(trainer, trained(CONFIG, 7))


def test_a_run_without_an_average_goes_on_as_well(tmp_path):
    config = replace(CONFIG, ema_decay=0.0)
    save_progress(tmp_path, trained(config, 2))
    trainer = OrbitTrainer(Small(), None, config)
    assert load_progress(tmp_path, trainer) and saved_step(tmp_path) == 2
    trainer.update(orbits())
    assert_same_run(trainer, trained(config, 3))


def test_an_empty_folder_has_no_state(tmp_path):
    trainer = OrbitTrainer(Small(), None, CONFIG)
    assert not load_progress(tmp_path, trainer) and saved_step(tmp_path) is None
    assert trainer.step == 0 and not trainer.optimiser.state


def test_a_save_that_breaks_off_leaves_the_state_before(tmp_path, monkeypatch):
    trainer = trained(CONFIG, 2)
    save_progress(tmp_path, trainer)
    before, write = files_of(tmp_path), training_store.write_safetensors
    monkeypatch.setattr(training_store, "SHARD_BYTES", 1)
    monkeypatch.setattr(training_store, "MOST_SHARDS", 10**9)
    trainer.update(orbits())
    for last in range(12):  # dies at each of its files in turn
        left = iter(range(last))

        def dying(*arguments, left=left):
            if next(left, None) is None:
                raise OSError("the disk is gone")
            write(*arguments)

        monkeypatch.setattr(training_store, "write_safetensors", dying)
        with pytest.raises(OSError, match="gone"):
            save_progress(tmp_path, trainer)
        again = OrbitTrainer(Small(), None, CONFIG)
        assert load_progress(tmp_path, again) and again.step == 2
    monkeypatch.setattr(training_store, "write_safetensors", write)
    save_progress(tmp_path, trainer)
    assert not set(before) - {"progress.json"} & set(files_of(tmp_path))
    assert len(files_of(tmp_path)) == 3 * 4 + 1  # each tensor alone, and the list of them
    assert load_progress(tmp_path, again)
    assert_same_run(again, trainer)


def test_the_state_of_another_model_is_refused(tmp_path):
    save_progress(tmp_path, trained(CONFIG, 1))

    class Other(Small):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(4, 9))

    with pytest.raises(ValueError, match=r"another model: weight.00001 is \[4, 8\] .*\[4, 9\]"):
        load_progress(tmp_path, OrbitTrainer(Other(), None, CONFIG))
    without = replace(CONFIG, ema_decay=0.0)
    with pytest.raises(ValueError, match=r"average.00000 is \[4, 8\] there and not in the model"):
        load_progress(tmp_path, OrbitTrainer(Small(), None, without))
    save_progress(tmp_path / "none", trained(without, 1))
    with pytest.raises(ValueError, match=r"lacks 3 tensors of this one, such as average\.00000"):
        load_progress(tmp_path / "none", OrbitTrainer(Small(), None, CONFIG))


@pytest.mark.slow
def test_saving_and_loading_hold_one_tensor_at_a_time(tmp_path, monkeypatch):
    class Large(Small):
        def __init__(self):
            super().__init__()
            self.more = nn.ParameterList(torch.zeros(250_000) for _ in range(8))

    trainer = OrbitTrainer(Large(), None, CONFIG)
    tensor, peaks = 10**6, []
    base = live_tensor_bytes()
    write, read = training_store.write_safetensors, open_weights

    def watched(path, tensors, layout):
        def each():
            for number, (name, value) in enumerate(tensors):
                if number % 15 == 0:  # looking takes a while
                    peaks.append(live_tensor_bytes() - base)
                yield name, value

        write(path, each(), layout)

    monkeypatch.setattr(training_store, "write_safetensors", watched)
    save_progress(tmp_path, trainer)
    assert max(peaks) <= 2 * tensor and len(peaks) >= 3  # of 44 tensors
    again = OrbitTrainer(Large(), None, CONFIG)
    load_progress(tmp_path, again)  # makes the two moments, which stay
    peaks.clear()
    base = live_tensor_bytes()

    def watching(path):
        peaks.append(live_tensor_bytes() - base)
        return read(path)

    monkeypatch.setattr(training_store, "open_weights", watching)
    load_progress(tmp_path, again)
    assert max(peaks) <= 17 * tensor  # the old moments, until the new ones take their place


# --- the finished model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tiny):
    pytest.importorskip("diffusers")
    from v3d_core.diffusion.training_networks import load_network

    parts = find_model(tiny.v3d, [tiny.svd])
    return {p.kind: (p, load_network(p)) for p in (parts.unet, parts.vae, parts.clip)}


def written(networks, path, dtype=torch.float32, **changed):
    made = {kind: (part.shape, net) for kind, (part, net) in networks.items()}
    size = write_model(path, {**made, **changed}, dtype, {"why": "a test"})
    assert size == path.stat().st_size
    return find_model(path)


def test_a_written_model_is_the_model_that_was_read(networks, tmp_path):
    parts = written(networks, tmp_path / "model.safetensors")
    for kind, (part, _) in networks.items():
        again = getattr(parts, kind)
        assert again.naming == "sgm" and again.shape == part.shape
        before, after = read_part(part, "diffusers"), read_part(again, "diffusers")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    with open_weights(tmp_path / "model.safetensors") as file:
        assert file.metadata["why"] == "a test"
        names = sum(len(getattr(parts, kind).names()) for kind in networks)
        assert len(file) == names


def test_networks_in_files_are_copied_as_modules_are_written(networks, tmp_path):
    written(networks, tmp_path / "modules.safetensors", torch.float16)
    copied = {kind: (part.shape, part) for kind, (part, _) in networks.items()}
    written(networks, tmp_path / "parts.safetensors", torch.float16, **copied)
    both = [(tmp_path / name).read_bytes() for name in ("modules.safetensors", "parts.safetensors")]
    assert both[0] == both[1]


def test_a_written_model_becomes_a_diffusers_folder_and_back(networks, tmp_path):
    parts = written(networks, tmp_path / "model.safetensors")
    convert_to_diffusers(parts, tmp_path / "folder", torch.float32)
    again = find_model(tmp_path / "folder")
    assert again.unet.naming == "diffusers"
    for kind, (part, _) in networks.items():
        before, after = read_part(part, "sgm"), read_part(getattr(again, kind), "sgm")
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_a_value_that_the_type_cannot_hold_is_refused(networks, tmp_path, value):
    path = tmp_path / "model.safetensors"
    path.write_text("what was there")
    part, network = networks["clip"]
    weight = network.visual_projection.weight
    kept = weight.detach().clone()
    try:
        weight.data[3, 5] = value
        with pytest.raises(ValueError, match=r"clip proj has a value of (nan|inf|100000)"):
            write_model(path, {"clip": (part.shape, network)}, torch.float16)
    finally:
        weight.data.copy_(kept)
    assert path.read_text() == "what was there" and files_of(tmp_path) == [path.name]


def test_progress_names_its_step_and_files(tmp_path):
    save_progress(tmp_path, trained(CONFIG, 2))
    document = json.loads((tmp_path / "progress.json").read_text())
    assert document == {"step": 2, "files": ["state_00000002_000.safetensors"]}
