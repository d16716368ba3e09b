"""Conversions lose nothing, change nothing but the type, and are read by other software."""

import dataclasses
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from v3d_core import __version__
from v3d_core.diffusion.checkpoint import CheckpointError, part_layout, read_part
from v3d_core.diffusion.convert import convert_to_diffusers, convert_to_safetensors
from v3d_core.diffusion.diffusers_backend import (
    build_image_encoder,
    build_unet,
    build_vae,
    load_diffusers_model,
)
from v3d_core.diffusion.layout import ClipShape, UNetShape, VaeShape
from v3d_core.diffusion.model_files import find_model
from v3d_core.formats.weights import WeightsError, open_weights

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("unet", "vae", "clip")


def assert_same_tensors(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def parts(tiny):
    return find_model(tiny.v3d, [tiny.svd])


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    """The tiny model as a diffusers folder of float32, so that every bit can be compared."""
    out = tmp_path_factory.mktemp("converted") / "diffusers"
    convert_to_diffusers(parts, out, torch.float32)
    return out


@pytest.fixture
def state(tiny):
    """The tensors of V3D.ckpt, to be changed by a test."""
    return dict(torch.load(tiny.v3d, weights_only=True)["state_dict"])


def save(state, path, **beside):
    torch.save({"state_dict": state, **beside}, path)
    return path


# One file


def test_every_tensor_is_kept_under_its_name_and_only_floats_change(tiny, tmp_path):
    state = load_file(tiny.svd) | {"steps": torch.tensor([3, 2**40]), "on": torch.tensor(True)}
    save_file(state, tmp_path / "in.safetensors")
    made = convert_to_safetensors(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    expected = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    assert_same_tensors(load_file(made.path), expected)
    assert made.tensors == len(state) and made.left_out == ()
    assert made.size == made.path.stat().st_size
    assert any(name.startswith("conditioner.embedders.3.") for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pickle_becomes_the_wanted_type(tiny, state, tmp_path, dtype):
    made = convert_to_safetensors(tiny.v3d, tmp_path / "v3d.safetensors", dtype)
    assert_same_tensors(load_file(made.path), {n: t.to(dtype) for n, t in state.items()})


def test_the_header_says_where_it_comes_from(tiny, tmp_path):
    made = convert_to_safetensors(tiny.v3d, tmp_path / "a.safetensors", torch.bfloat16)
    with open_weights(made.path) as file:
        metadata = file.metadata
    expected = {"v3d_source": "V3D.ckpt", "v3d_version": __version__, "v3d_dtype": "bfloat16"}
    assert metadata == {"format": "pt", **expected}


def test_a_converted_file_is_a_model_again(tiny, tmp_path):
    made = convert_to_safetensors(tiny.v3d, tmp_path / "v3d.safetensors", torch.float32)
    for kind in KINDS:
        before, after = (
            read_part(getattr(find_model(path, [tiny.svd]), kind), "sgm")
            for path in (tiny.v3d, made.path)
        )
        assert_same_tensors(after, before)


def test_what_is_no_tensor_is_named(state, tmp_path):
    source = save({**state, "note": "hello"}, tmp_path / "a.ckpt", global_step=7)
    made = convert_to_safetensors(source, tmp_path / "a.safetensors")
    assert set(made.left_out) == {"state_dict.note", "global_step"}
    assert made.tensors == len(state)


def test_values_beyond_float16_are_an_error_with_the_remedy(state, tmp_path):
    name = next(reversed(state))
    state[name] = state[name].clone()
    state[name].view(-1)[0] = -70_000.0
    source, out = save(state, tmp_path / "a.ckpt"), tmp_path / "out" / "a.safetensors"
    with pytest.raises(WeightsError, match=f"{name}.* 70000, float16 ends at 65504.*bfloat16"):
        convert_to_safetensors(source, out)
    assert not out.parent.exists()
    made = convert_to_safetensors(source, out, torch.bfloat16)
    assert load_file(made.path)[name].view(-1)[0] == torch.tensor(-70_000.0).bfloat16()


def test_values_at_the_limit_and_infinite_ones_stay(state, tmp_path):
    extra = torch.tensor([65504.0, -65504.0, math.inf, -math.inf])
    source = save({**state, "extra": extra}, tmp_path / "a.ckpt")
    made = convert_to_safetensors(source, tmp_path / "a.safetensors")
    assert torch.equal(load_file(made.path)["extra"].float(), extra)


def test_other_models_are_refused_with_the_shapes_that_differ(state, tmp_path):
    """An SD 1.5 checkpoint: no layers along time, four channels in."""
    unet = tiny_models.UNET
    image = {n: t for n, t in state.items() if ".time_" not in n and ".label_emb." not in n}
    image[f"{unet}input_blocks.0.0.weight"] = image[f"{unet}input_blocks.0.0.weight"][:, :4]
    source, out = save(image, tmp_path / "sd15.ckpt"), tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError) as refused:
        convert_to_safetensors(source, out)
    for text in ("sd15.ckpt is not an SVD-shaped", "instead of [", "] is missing"):
        assert text in str(refused.value)
    assert not out.exists()


def test_a_file_without_a_unet_is_refused(tmp_path):
    save_file({"lora.up.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"SVD-shaped.*they start with lora"):
        convert_to_safetensors(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_a_pickle_that_wants_to_run_code_runs_nothing(tmp_path):
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": Malicious()}, protocol=2))
    with pytest.raises(WeightsError, match="nothing was run"):
        convert_to_safetensors(tmp_path / "evil.ckpt", tmp_path / "a.safetensors")


def test_a_truncated_source_is_refused(tiny, tmp_path):
    whole = tiny.v3d_without_vae.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cut off"):
        convert_to_safetensors(tmp_path / "cut.safetensors", tmp_path / "a.safetensors")


def test_the_source_is_not_written_over(tiny, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(tiny.v3d_without_vae.read_bytes())
    with pytest.raises(ValueError, match="the source itself"):
        convert_to_safetensors(path, tmp_path / ".." / tmp_path.name / "a.safetensors")
    with pytest.raises(ValueError, match="must end with"):
        convert_to_safetensors(path, tmp_path / "b.ckpt")


# A folder


def test_stable_video_diffusion_pipeline_loads_the_folder_strictly(parts, folder):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    pipeline = diffusers.StableVideoDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    model = load_diffusers_model(parts, torch.device("cpu"), torch.float32)
    for name in ("unet", "vae", "image_encoder"):
        theirs, ours = (getattr(owner, name).state_dict() for owner in (pipeline, model))
        assert_same_tensors(theirs, ours)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(25)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.sigmas[0] == pytest.approx(700) and scheduler.sigmas[-1] == 0
    assert scheduler.sigmas[-2] == pytest.approx(0.002)
    assert pipeline.vae.config.force_upcast
    assert pipeline.feature_extractor.size["shortest_edge"] == 224


def test_the_configurations_are_those_of_our_networks(parts, folder):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    for name, build, part in (
        ("unet", build_unet, parts.unet),
        ("vae", build_vae, parts.vae),
        ("image_encoder", build_image_encoder, parts.clip),
    ):
        config = build(part.shape).config
        ours = config.to_dict() if name == "image_encoder" else dict(config)
        written = json.loads((folder / name / "config.json").read_text())
        for key, value in written.items():
            if key in ("_class_name", "_diffusers_version", "architectures", "force_upcast"):
                continue
            expected = [*ours[key]] if isinstance(ours[key], tuple) else ours[key]
            assert expected == value, (name, key)


def test_sgm_to_diffusers_and_back_is_the_identity(parts, folder):
    again = find_model(folder)
    for kind in KINDS:
        before, after = getattr(parts, kind), getattr(again, kind)
        assert after.naming == "diffusers" and after.shape == before.shape
        assert_same_tensors(read_part(after, "sgm"), read_part(before, "sgm"))


@pytest.mark.parametrize("shape", [UNetShape(), VaeShape(), ClipShape()], ids=KINDS)
def test_both_namings_have_every_tensor_of_the_full_size_once(shape):
    entries = [*shape.entries()]
    assert len({entry.diffusers for entry in entries}) == len(entries)
    fused = [entry for entry in entries if entry.change in ("q", "k", "v")]
    assert len({entry.sgm for entry in entries}) == len(entries) - 2 * len(fused) // 3
    numbers = {
        naming: sum(math.prod(size) for size in part_layout(shape, naming).values())
        for naming in ("sgm", "diffusers")
    }
    assert numbers["sgm"] == numbers["diffusers"]


def test_the_folder_holds_the_files_that_diffusers_expects_and_no_others(folder):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {Path(name).as_posix() for name in files} == {
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "scheduler/scheduler_config.json",
    }
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    latents = torch.randn(1, 8, 3, 3)
    same = torch.nn.functional.conv2d(latents, vae["quant_conv.weight"], vae["quant_conv.bias"])
    assert torch.equal(same, latents)


def test_half_the_size_is_the_default_and_a_second_time_replaces(parts, tmp_path):
    out = tmp_path / "model"
    convert_to_diffusers(parts, out, torch.float32)
    made = convert_to_diffusers(parts, out)
    assert made.size == sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    for path in out.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}


def test_tensors_beyond_the_three_networks_are_named(tiny, tmp_path):
    made = convert_to_diffusers(find_model(tiny.svd), tmp_path / "svd")
    clip = tiny_models.CLIP
    assert clip + "logit_scale" in made.left_out
    beside = [name for name in load_file(tiny.svd) if name.startswith("conditioner.embedders.3.")]
    others = [name for name in made.left_out if name not in beside]
    assert len(made.left_out) == len(beside) + len(others) and beside
    assert all(name.startswith(clip) and "visual" not in name for name in others)


def test_weights_of_other_names_in_the_folder_are_refused(parts, tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"fp16\.safetensors.*choose an empty folder"):
        convert_to_diffusers(parts, tmp_path)


def test_an_early_end_leaves_nothing(parts, tiny, tmp_path):
    def stop(step, total, preview=None, text=""):
        if step == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_to_diffusers(parts, tmp_path / "folder", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        convert_to_safetensors(tiny.v3d, tmp_path / "a.safetensors", progress=stop)
    assert [*tmp_path.iterdir()] == []


def test_progress_counts_every_tensor(parts, tiny, tmp_path):
    for convert in (
        lambda told: convert_to_diffusers(parts, tmp_path / "folder", progress=told),
        lambda told: convert_to_safetensors(tiny.v3d, tmp_path / "a.safetensors", progress=told),
    ):
        steps = []
        made = convert(lambda step, total, preview=None, text="", s=steps: s.append((step, total)))
        # the identity after the encoder is no tensor of the source, but one of the folder
        assert steps == [(index + 1, made.tensors) for index in range(made.tensors)]


# Memory

MEASURE = """
import sys, torch
from v3d_core.diffusion.convert import convert_to_diffusers, convert_to_safetensors
from v3d_core.diffusion.model_files import find_model

def anonymous_mb():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("RssAnon:")).split()[1]) / 1024

model, companion, warm_up, out = sys.argv[1:]
peak = 0.0
def watched(step, total, preview=None, text=""):
    global peak
    peak = max(peak, anonymous_mb())

convert_to_safetensors(warm_up, out + "/warm-up.safetensors")
start = anonymous_mb()
convert_to_safetensors(model, out + "/a.safetensors", progress=watched)
convert_to_diffusers(find_model(model, [companion]), out + "/folder", progress=watched)
print(peak - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="anonymous memory is read from /proc/self/status"
)
def test_memory_is_small_against_the_file(tiny, tmp_path):
    tiny_unet = find_model(tiny.v3d, [tiny.svd]).unet.shape
    wide = dataclasses.replace(tiny_unet, model_channels=128, channel_mult=(1, 2, 2), res_blocks=2)
    layout = part_layout(wide, "sgm")
    path = save(
        {tiny_models.UNET + name: torch.ones(shape) for name, shape in layout.items()},
        tmp_path / "wide.ckpt",
    )
    size_mb = path.stat().st_size / 2**20
    assert size_mb > 150
    command = [sys.executable, "-c", MEASURE, path, tiny.svd, tiny.v3d, tmp_path]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    assert float(done.stdout) < size_mb / 8, (done.stdout, size_mb)
