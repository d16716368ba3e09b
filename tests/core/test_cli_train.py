"""`v3d train` from a data set to a model: LoRA, full, from scratch; stopped, resumed, refused."""

import importlib
import json
import shutil
import signal

import pytest
import torch
from PIL import Image
from small_training import write_orbits
from tiny_models import write_sv3d

from v3d_core import backends
from v3d_core.cli import main
from v3d_core.diffusion import training_run
from v3d_core.diffusion.bundled import trained_for
from v3d_core.diffusion.checkpoint import read_part, require_part
from v3d_core.diffusion.lora import read_lora
from v3d_core.diffusion.model_files import find_model
from v3d_core.diffusion.training import OrbitTrainer
from v3d_core.formats.weights import open_weights

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

QUICK = ["--device", "cpu", "--steps", "3", "--batch-size", "2", "--warmup-steps", "1"]
QUICK += ["--learning-rate", "1e-3", "--validate-steps", "2", "--validate-objects", "1"]
BLIND = [*QUICK, "--validate-objects", "0"]
SHAPE = {
    "unet": {
        "model_channels": 64,
        "channel_mult": [1, 1],
        "attention": [True, True],
        "res_blocks": 1,
        "context_channels": 8,
    },
    "vae": {"channels": 32, "channel_mult": [1, 1, 1, 1]},
    "clip": {"width": 80, "layers": 1, "mlp_width": 80, "patch_size": 28, "projection": 8},
    "autoencoder": {"steps": 2, "batch_size": 1, "clip_frames": 2},
    "decoder": {"steps": 2, "batch_size": 1},
    "noise": {"log_sigma_mean": 0.5},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_orbits(tmp_path_factory.mktemp("data") / "orbits")


@pytest.fixture(scope="module")
def model(tiny):
    """The networks of V3D.ckpt in another file: what is the same model is decided by content."""
    return ["--model", str(tiny.v3d_without_vae), "--companion", str(tiny.svd)]


def train(data, out, *more, expect=0):
    assert main(["train", str(data), "--out", str(out), *map(str, more)]) == expect
    path = out / "report.json"
    return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture(scope="module")
def lora_run(data, tiny, tmp_path_factory):
    """A LoRA, merged as well; the folder and the report."""
    out = tmp_path_factory.mktemp("lora") / "run"
    model = ["--model", str(tiny.v3d), "--companion", str(tiny.svd)]
    return out, train(data, out, *model, *QUICK, "--lora", 2, "--merge", "--dtype", "float32")


def interrupted_after(step):
    """An update that presses Ctrl+C when that many were made."""
    update = OrbitTrainer.update

    def interrupted(self, source):
        loss = update(self, source)
        if self.step == step:
            signal.raise_signal(signal.SIGINT)
        return loss

    return interrupted


def tensors_of(path):
    with open_weights(path) as file:
        return {name: file.read(name) for name in file}


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_files(first, second):
    a, b = tensors_of(first), tensors_of(second)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- LoRA ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lora_run_leaves_model_adapters_log_sheets_and_report(lora_run, tiny):
    out, report = lora_run
    assert report["finished"] and report["step"] == 3
    assert report["files"] == {"lora": "lora.safetensors", "model": "model.safetensors"}
    assert report["options"]["seed"] == report["settings"]["training"]["seed"] == 0
    assert report["packages"].keys() >= {"torch", "diffusers", "transformers"}
    assert report["orbits"] == {"train": 3, "validation": 1}
    assert report["settings"]["training"]["precision"] == "float32"
    lines = log_of(out)
    assert [line["step"] for line in lines] == [0, 3, 3]
    assert lines[1].keys() >= {"loss", "learning_rate", "gradient_norm", "orbits_per_second"}
    assert report["validation"]["psnr"] == lines[2]["validation_psnr"]
    for step in (0, 3):  # truth above what was made, three frames beside one another
        with Image.open(out / "validation" / f"orbits_{step:08d}.png") as sheet:
            assert sheet.size == (3 * 68 - 4, 2 * 68 - 4)


def test_merged_weights_are_the_models_with_the_adapters_change(lora_run, tiny):
    out, _ = lora_run
    parts, base = find_model(out / "model.safetensors"), find_model(tiny.v3d, [tiny.svd])
    adapters = read_lora(out / "lora.safetensors")
    before, after = read_part(base.unet, "sgm"), read_part(parts.unet, "sgm")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"{name}.weight" for name in adapters}
    for name, adapter in adapters.items():
        change = adapter.alpha / 2 * adapter.up @ adapter.down
        torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + change)
    for kind in ("vae", "clip"):
        first, second = (
            read_part(getattr(base, kind), "sgm"),
            read_part(getattr(parts, kind), "sgm"),
        )
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_model_samples_and_converts(lora_run, tmp_path, data):
    out, _ = lora_run
    picture = tmp_path / "picture.png"
    image = Image.new("RGBA", (64, 64))
    image.paste((200, 30, 30, 255), (16, 8, 48, 56))
    image.save(picture)
    model = str(out / "model.safetensors")
    options = ["--model", model, "--size", "64", "--steps", "1", "--num-frames", "3"]
    assert main(["sample", str(picture), "--out", str(tmp_path), *options, "--device", "cpu"]) == 0
    assert len(list((tmp_path / "picture").glob("r_*.png"))) == 3
    folder = tmp_path / "diffusers"
    assert main(["convert", model, "--out", str(folder), "--dtype", "float32"]) == 0
    before, after = (read_part(find_model(p).unet, "sgm") for p in (model, folder))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_finished_run_only_writes_again(lora_run, data, model, monkeypatch, tmp_path):
    out, report = lora_run
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "lora.safetensors").unlink()

    def never(*_):
        raise AssertionError("a step was made, or frames were encoded again")

    monkeypatch.setattr(OrbitTrainer, "update", never)
    monkeypatch.setattr("v3d_core.diffusion.training_cache.encode_latents", never)
    again = train(data, copy, *model, *QUICK, "--lora", 2)
    assert again["files"] == {"lora": "lora.safetensors"}
    assert again["validation"] == report["validation"]
    assert_same_files(out / "lora.safetensors", copy / "lora.safetensors")


# --- stopping and going on -----------------------------------------------------------------------


def test_ctrl_c_saves_and_the_run_goes_on_to_the_same_weights(
    lora_run, data, model, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(OrbitTrainer, "update", interrupted_after(2))
        report = train(data, out, *model, *BLIND, "--lora", 2, expect=130)
    assert not report["finished"] and report["step"] == 2 and report["files"] == {}
    assert "saved at step 2" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(data, out, *model, *BLIND, "--lora", 2)["finished"]
    assert_same_files(lora_run[0] / "lora.safetensors", out / "lora.safetensors")


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_state_and_the_log_has_no_step_twice(
    lora_run, data, model, tmp_path, monkeypatch
):
    update = OrbitTrainer.update
    monkeypatch.setattr(training_run, "finite", lambda loss, step: float(loss))

    def dying(self, source):
        if self.step == 2:
            raise MemoryError("killed")
        return update(self, source)

    out, each = tmp_path / "run", [*BLIND, "--lora", 2, "--save-every", 1]
    with monkeypatch.context() as patch:
        patch.setattr(OrbitTrainer, "update", dying)
        train(data, out, *model, *each, expect=1)
    with (out / "log.jsonl").open("a") as file:  # of steps that were lost
        file.write('{"step": 3, "loss": 9.0}\n')
    train(data, out, *model, *each)
    assert [line["step"] for line in log_of(out)] == [3] and log_of(out)[0]["loss"] != 9.0
    assert_same_files(lora_run[0] / "lora.safetensors", out / "lora.safetensors")


@pytest.mark.slow
def test_encoding_that_was_stopped_goes_on(data, model, tmp_path, monkeypatch):
    from v3d_core.diffusion import training_cache

    encode, encoded = training_cache.encode_latents, []

    def counted(vae, pictures):
        encoded.append(len(pictures))
        if len(encoded) == 2:
            signal.raise_signal(signal.SIGINT)
        return encode(vae, pictures)

    monkeypatch.setattr(training_cache, "encode_latents", counted)
    out = tmp_path / "run"
    train(data, out, *model, *BLIND, "--steps", 1, expect=130)
    assert sum(encoded) == 2
    train(data, out, *model, *BLIND, "--steps", 1)
    assert sum(encoded) == 3


def test_time_runs_out(data, model, tmp_path, capsys):
    report = train(data, tmp_path / "run", *model, *BLIND, "--seconds", 0)
    assert not report["finished"] and report["step"] == 0
    assert "the same command goes on" in capsys.readouterr().out


# --- all weights, and from scratch ---------------------------------------------------------------


def test_full_fine_tuning_moves_all_weights_of_the_unet_and_no_others(data, model, tiny, tmp_path):
    out = tmp_path / "run"
    report = train(data, out, *model, *BLIND, "--full", "--ema", 0, "--dtype", "float32")
    assert report["files"] == {"model": "model.safetensors"}
    base, made = find_model(tiny.v3d, [tiny.svd]), find_model(out / "model.safetensors")
    before, after = read_part(base.unet, "sgm"), read_part(made.unet, "sgm")
    # softmax of one token is 1: its queries and keys have no gradient, only AdamW's decay
    still = [n for n in before if torch.equal(before[n], after[n])]
    assert not still
    vae = [read_part(parts.vae, "sgm") for parts in (base, made)]
    assert all(torch.equal(vae[0][name], vae[1][name]) for name in vae[0])


def test_muon_goes_on_from_a_small_state_near_by(data, model, tmp_path, monkeypatch):
    options = [*model, *BLIND, "--full", "--dtype", "float32", "--optimiser", "muon"]
    options += ["--learning-rate", 1e-3, "--small-state", "--steps", 2]
    report = train(data, tmp_path / "whole", *options)
    assert report["settings"]["training"]["optimiser"] == "muon"
    out = tmp_path / "halves"
    with monkeypatch.context() as patch:
        patch.setattr(OrbitTrainer, "update", interrupted_after(1))
        assert train(data, out, *options, expect=130)["step"] == 1
    state = sum(path.stat().st_size for path in (out / "state").glob("*.safetensors"))
    unet = sum(
        t.numel()
        for t in read_part(
            find_model(tmp_path / "whole" / "model.safetensors").unet, "sgm"
        ).values()
    )
    assert state < 7 * unet  # a whole state has 12 or 16 bytes for each
    assert train(data, out, *options)["finished"]
    first, last = (tensors_of(tmp_path / run / "model.safetensors") for run in ("whole", "halves"))
    assert first.keys() == last.keys()
    moved = [n for n in first if not torch.equal(first[n], last[n])]
    assert moved  # not to the bit, unlike a whole state
    for name in first:
        torch.testing.assert_close(first[name], last[name], atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_from_scratch_all_three_networks_learn_and_a_stop_changes_nothing(data, tmp_path):
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(SHAPE))
    options = ["--from-scratch", shape, *QUICK, "--dtype", "float32"]
    report = train(data, tmp_path / "run", *options)
    parts = find_model(tmp_path / "run" / "model.safetensors")
    assert report["settings"]["training"]["noise"]["log_sigma_mean"] == 0.5
    assert parts.clip.shape.projection == 8 and parts.unet.shape.channel_mult == (1, 1)
    assert "validation_psnr" in log_of(tmp_path / "run")[-1]
    trained = trained_for(tmp_path / "run" / "model.safetensors")
    assert trained is not None and trained.size == 64  # of its frames: v3d sample takes it

    halves = tmp_path / "halves"
    for seconds in (0, 0, 0):  # the autoencoder's two steps, and then the UNet's turn
        train(data, halves, *options, "--seconds", seconds)
    assert train(data, halves, *options)["finished"]
    assert_same_files(tmp_path / "run" / "model.safetensors", halves / "model.safetensors")
    # the encoder stays what it was when the orbits were encoded, the decoder learns them as a whole
    first, last = (
        read_part(require_part(halves / stage / "autoencoder.safetensors", "vae"), "sgm")
        for stage in ("autoencoder", "decoder")
    )
    made = read_part(parts.vae, "sgm")
    moved = {name for name in made if not torch.equal(first[name], made[name])}
    assert moved == {name for name in made if name.startswith("decoder.")}
    assert all(torch.equal(last[name], made[name]) for name in made)

    without = train(data, tmp_path / "without", *options, "--decoder-steps", 0)
    parts = find_model(without_model := tmp_path / "without" / "model.safetensors")
    assert without["finished"] and without_model.is_file()
    assert all(torch.equal(first[n], t) for n, t in read_part(parts.vae, "sgm").items())


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--lora", 3], "another lora_rank: 2 there, 3 asked for"),
        (["--full"], "another lora_rank: 2 there, 0 asked for"),
        (["--lora", 2, "--seed", 1], "another seed: 0 there, 1 asked for"),
        (["--lora", 2, "--ema", 0], "another average: true there, false asked for"),
        (["--lora", 0], "--lora 0: the rank is at least 1"),
        (["--autoencoder-steps", 2], "is for --from-scratch"),
        (["--decoder-steps", 0], "is for --from-scratch"),
        (["--from-scratch", "nano"], "takes no --model"),
        (["--accumulate", 3], "batch of 2 orbits does not split into 3"),
        (["--save-every", 0], "save_every is at least 1 step, got 0"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(lora_run, data, model, options, text, capsys):
    train(data, lora_run[0], *model, *BLIND, *options, expect=2)
    assert text in capsys.readouterr().err


def test_other_data_and_folders_are_refused(lora_run, model, tmp_path, capsys):
    other = write_orbits(tmp_path / "other", train=1, validation=0)
    train(other, lora_run[0], *model, *BLIND, "--lora", 2, expect=2)
    assert "another data" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    train(other, tmp_path / "full", *model, *BLIND, expect=2)
    assert "not empty" in capsys.readouterr().err
    train(tmp_path / "full", tmp_path / "run", *model, *BLIND, expect=2)
    assert "v3d orbit-data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"unet": {"widths": 3}}, "widths"),
        ({"unets": {}}, "unknown part 'unets'"),
        ({"vae": 7}, "items"),
        ({"vae": {"res_blocks": 1}}, "1 blocks in each of 4 levels, SVD's has 2 in 4"),
        ({"unet": {"context_channels": 8}}, "tokens of 1024 values, its UNet takes 8"),
        ({"unet": {"model_channels": 100}}, "do not split into heads of 64"),
        ({"clip": {"image_size": 112}}, "takes 112 px, not 224"),
    ],
)
def test_a_shape_that_is_none_is_named(data, tmp_path, document, text, capsys):
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(document))
    train(data, tmp_path / "run", "--from-scratch", path, *BLIND, expect=2)
    error = capsys.readouterr().err
    assert text in error and str(path) in error


def test_frames_that_the_model_cannot_halve_are_refused(data, tmp_path, capsys):
    path = tmp_path / "shape.json"
    deep = {"channel_mult": [1] * 5, "attention": [True] * 5}
    path.write_text(json.dumps({**SHAPE, "unet": {**SHAPE["unet"], **deep}}))
    train(data, tmp_path / "run", "--from-scratch", path, *BLIND, expect=2)
    assert "frames are 64x64; this model takes squares with a side of a multiple of 128" in (
        capsys.readouterr().err
    )


def test_tensorboard_that_is_asked_for_and_missing_is_named(
    data, model, tmp_path, monkeypatch, capsys
):
    def missing():
        raise backends.MissingPackageError("tensorboard ... pip install tensorboard")

    monkeypatch.setattr("v3d_core.diffusion.training_log.load_summary_writer", missing)
    out = tmp_path / "run"
    train(data, out, *model, *BLIND, "--log-dir", tmp_path / "tb", expect=1)
    assert "pip install tensorboard" in capsys.readouterr().err


def test_sv3d_is_refused_because_it_is_told_other_numbers(data, tmp_path, capsys):
    model = write_sv3d(tmp_path, importlib.import_module, "sv3d_p")
    train(data, tmp_path / "run", "--model", model, *BLIND, expect=2)
    assert "sv3d_p.safetensors is SV3D_p, which is told other numbers" in capsys.readouterr().err


def test_a_diverged_training_says_so(data, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(OrbitTrainer, "update", lambda self, source: _nan(self))
    train(data, tmp_path / "run", *model, *BLIND, expect=1)
    error = capsys.readouterr().err
    assert "diverged" in error and "learning-rate" in error


def _nan(trainer):
    trainer.step += 1
    return torch.tensor(float("nan"))
