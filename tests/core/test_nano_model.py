"""V3D-nano: the bundled weights, what is chosen for them, and the demo that they carry."""

import dataclasses
import functools
import hashlib
import json
import shutil

import pytest
import torch
from PIL import Image

from v3d_core import cli, cli_generate, demo_picture, reconstruct
from v3d_core.diffusion.bundled import (
    CARD,
    NANO_FILE,
    NANO_SCALE,
    NANO_SHA256,
    NANO_STEPS,
    TRAINING_CARD,
    TrainedFor,
    chosen_numbers,
    nano_file,
    trained_for,
)
from v3d_core.diffusion.checkpoint import CheckpointError, read_part
from v3d_core.diffusion.convert import convert_to_diffusers, convert_to_safetensors
from v3d_core.diffusion.diffusers_backend import load_diffusers_model
from v3d_core.diffusion.edm import SamplerConfig
from v3d_core.diffusion.guidance import Guidance
from v3d_core.diffusion.model_files import find_model
from v3d_core.diffusion.orbit import OrbitConfig, sample_orbit
from v3d_core.formats.views import load_views
from v3d_core.formats.weights import open_weights, write_safetensors
from v3d_core.generate import PictureJob, read_and_prepare
from v3d_core.images import composite, from_uint8
from v3d_core.mesh.asset import AssetConfig
from v3d_core.mesh.config import SplatMeshConfig
from v3d_core.metrics import psnr
from v3d_core.nano import render_pictures
from v3d_core.splats.config import SplatFitConfig
from v3d_core.training.objects import random_objects
from v3d_core.training.tracing import render_orbits

KINDS = ("unet", "vae", "clip")
SIZE = 128


@pytest.fixture(scope="module")
def parts():
    return find_model(nano_file())


def test_the_weights_are_those_whose_hash_is_recorded():
    data = NANO_FILE.read_bytes()
    assert hashlib.sha256(data).hexdigest() == NANO_SHA256
    assert len(data) <= 32e6


def test_one_file_has_all_three_networks_in_v3d_s_naming(parts):
    assert {getattr(parts, kind).path for kind in KINDS} == {NANO_FILE}
    assert {getattr(parts, kind).naming for kind in KINDS} == {"sgm"}
    with open_weights(NANO_FILE) as file:
        recipe = json.loads(file.metadata[CARD])["recipe"]
    for kind in KINDS:  # the widths that it was trained with, today's recipe may have others
        shape = dataclasses.asdict(getattr(parts, kind).shape)
        assert json.loads(json.dumps(shape)) == recipe[kind], kind


def test_the_card_says_what_the_weights_were_trained_on():
    with open_weights(NANO_FILE) as file:
        card = json.loads(file.metadata[CARD])
        tensors = {name: file.read(name, torch.float32) for name in file}
    assert card["recipe"]["size"] == SIZE
    assert card["recipe"]["first_seed"] > demo_picture.SEED  # the demo's object was not trained on
    assert (card["step"], card["recipe"]["training"]["steps"]) == (9000, 9000)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_a_diffusers_folder_and_a_copy_hold_the_same_weights(parts, tmp_path):
    convert_to_diffusers(parts, tmp_path / "folder", torch.float16)
    again = find_model(tmp_path / "folder")
    for kind in KINDS:
        first = read_part(getattr(parts, kind), "diffusers")
        second = read_part(getattr(again, kind), "diffusers")
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), kind
    convert_to_safetensors(NANO_FILE, tmp_path / "copy.safetensors", torch.float32)
    assert trained_for(tmp_path / "copy.safetensors") == trained_for(NANO_FILE)


def test_files_without_a_card_and_damaged_cards(tmp_path, tiny):
    assert trained_for(tiny.v3d) is None
    assert trained_for(tiny.svd) is None
    one = {"a": torch.zeros(1)}
    layout = {"a": (torch.float32, (1,))}
    for text in ("{", '{"recipe": {}}', "[]", '{"recipe": {"size": null}}'):
        path = tmp_path / "card.safetensors"
        write_safetensors(path, one, layout, {CARD: text})
        with pytest.raises(CheckpointError, match="damaged"):
            trained_for(path)
    for text, expected in (
        ('{"size": 64}', TrainedFor("card.safetensors", 64, None)),
        ('{"settings": {}}', None),  # fine-tuned: V3D's numbers hold
    ):
        write_safetensors(path, one, layout, {TRAINING_CARD: text})
        assert trained_for(path) == expected
    write_safetensors(path, one, layout, {TRAINING_CARD: "[]"})
    with pytest.raises(CheckpointError, match="'v3d_training' is damaged"):
        trained_for(path)


def chosen(*more):
    options = ["sample", "a.png", "--out", "o", "--model", "nano", *more]
    options = cli.build_parser().parse_args(options)
    return cli_generate.chosen_settings(options, cli_generate.chosen_parts(options))


def test_nano_is_sampled_with_its_own_size_and_guidance(capsys, monkeypatch, tmp_path):
    (tmp_path / "nano").mkdir()  # nothing of that name is taken for the model
    monkeypatch.chdir(tmp_path)
    config, prepare = chosen()
    assert (prepare.size, config.guidance.scale) == (SIZE, NANO_SCALE)
    assert config.sampler.steps == NANO_STEPS
    assert capsys.readouterr().err == ""
    config, prepare = chosen("--size", "512", "--scale", "3.5", "--steps", "9")
    assert config.sampler.steps == 9
    assert (prepare.size, config.guidance.scale) == (512, 3.5)
    said = capsys.readouterr().err
    assert "V3D-nano makes frames of 128 px, not of 512 px" in said
    assert f"guidance scale of {NANO_SCALE:g}; 3.5 gives worse" in said


def test_a_model_that_is_not_named_is_asked_for_and_nano_offered(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("V3D_MODEL", raising=False)
    picture = shutil.copy(demo_picture.PICTURE, tmp_path / "a.png")
    assert cli.main(["sample", str(picture), "--out", str(tmp_path / "o")]) == cli.EXIT_BAD_INPUT
    assert "--model nano" in capsys.readouterr().err


def test_advice_names_both_numbers():
    trained = TrainedFor("X", 128, 1.5)
    assert trained.advice(128, Guidance(scale=1.5)) == []
    assert TrainedFor("X", 128, None).advice(128, Guidance(scale=3.5)) == []
    size, scale = trained.advice(512, Guidance(scale=3.5))
    assert "128" in size and "512" in size and "1.5" in scale and "3.5" in scale


def test_numbers_are_those_given_else_the_model_s_else_v3d_s():
    nano, unknown = trained_for(NANO_FILE), TrainedFor("own.safetensors", 128, None)
    assert chosen_numbers(nano, None, None) == (6, 1.0, ["V3D-nano's own: steps 6, scale 1."])
    for other in (None, unknown):
        assert chosen_numbers(other, None, None) == (25, 3.5, ["V3D's own: steps 25, scale 3.5."])
    half = TrainedFor("half", 128, 1.5)
    assert chosen_numbers(half, None, None)[2] == ["V3D's own: steps 25.", "half's own: scale 1.5."]
    assert chosen_numbers(nano, 9, None) == (9, 1.0, ["V3D-nano's own: scale 1."])
    assert chosen_numbers(nano, None, 2.0) == (6, 2.0, ["V3D-nano's own: steps 6."])
    assert chosen_numbers(nano, 9, 0.0) == (9, 0.0, [])  # 0 is a scale here
    assert chosen_numbers(None, 1, 1.0) == (1, 1.0, [])


def test_weights_that_are_missing_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("v3d_core.diffusion.bundled.NANO_FILE", tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"gone\.safetensors is missing"):
        nano_file()


def test_the_demo_picture_is_the_rendering_of_its_seed():
    pytest.importorskip("warp")
    table = random_objects([demo_picture.SEED])
    cameras = demo_picture.framing_cameras(table, demo_picture.SIZE)[::9]
    again = render_orbits(table, cameras, demo_picture.SIZE, demo_picture.SUPERSAMPLE)[0]
    shipped = load_views(demo_picture.FOLDER).views[::9]
    again = from_uint8(again)
    assert (
        psnr(composite(again[..., :3], again[..., 3]), composite(shipped.images, shipped.masks))
        > 45
    )
    assert (again[..., 3] - shipped.masks).abs().mean() < 1e-3


def test_the_demo_picture_is_prepared_without_moving_it():
    prepared = demo_picture.true_orbit(SIZE)[:1]
    with Image.open(demo_picture.PICTURE) as image:
        assert image.size == (demo_picture.SIZE, demo_picture.SIZE)
    options = cli.build_parser().parse_args(["sample", "a", "--out", "o", "--model", "nano"])
    prepare = cli_generate.chosen_prepare(options, trained_for(NANO_FILE))
    made = read_and_prepare(PictureJob(demo_picture.PICTURE, demo_picture.FOLDER), prepare)
    true = composite(prepared.images, prepared.masks)[0]
    assert torch.allclose(made.image, true, atol=1e-6)


@pytest.fixture(scope="module")
def sampled(parts):
    """Frames of an aeroplane, whose way of turning is plain to see."""
    model = load_diffusers_model(parts, torch.device("cpu"))
    true = render_pictures(range(1), SIZE, torch.device("cpu"))[0].float() / 255
    config = OrbitConfig(SamplerConfig(steps=NANO_STEPS), Guidance(scale=NANO_SCALE))
    return sample_orbit(model, true[:1], config, 0).frames, true


@pytest.mark.slow
def test_an_object_that_was_not_trained_on_turns_the_right_way(sampled):
    frames, true = sampled
    assert frames.shape == (18, SIZE, SIZE, 3)
    each = torch.tensor([psnr(a, b) for a, b in zip(frames, true, strict=True)])
    other_way = true[[0, *range(17, 0, -1)]]
    mirrored = torch.tensor([psnr(a, b) for a, b in zip(frames, other_way, strict=True)])
    assert each[0] > 26
    assert each.mean() > 20
    assert each[1:].mean() > mirrored[1:].mean() + 3


@pytest.mark.slow
def test_the_demo_goes_from_its_picture_to_all_files(tmp_path, capsys, monkeypatch):
    tiny = SplatFitConfig(
        steps=30,
        resolution=64,
        initial_splats=800,
        max_splats=1000,
        hull_resolution=32,
        coarse_until=0.0,
        align="off",
    )
    monkeypatch.setitem(cli.SPLAT_PRESETS, "normal", tiny)
    monkeypatch.setattr(cli, "SplatMeshConfig", functools.partial(SplatMeshConfig, resolution=40))
    monkeypatch.setattr(
        cli, "AssetConfig", lambda **given: AssetConfig(**{**given, "texture_size": 128})
    )
    pictures = reconstruct.PictureConfig(turntable_frames=4, turntable_size=32)
    monkeypatch.setattr(
        cli, "reconstruct", functools.partial(reconstruct.reconstruct, pictures=pictures)
    )
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--steps", "2", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "--model nano" in printed and "the object's true views" in printed
    for name in (*reconstruct.OUTPUT_NAMES, "report.json"):
        assert (out / name).is_file() and str(out / name) in printed
    report = json.loads((out / "report.json").read_text())
    frames, truth = load_views(out / "orbit").views, demo_picture.true_orbit(SIZE)
    assert report["views"] == {"count": 18, "width": SIZE, "height": SIZE}
    assert report["orbit"] == demo_picture.orbit_scores(frames, truth)
    assert len(report["scores"]["per_view"]) == 18  # the splat against the truth
    orbit = json.loads((out / "orbit" / "orbit.json").read_text())
    assert orbit["settings"]["sampler"]["steps"] == 2
    assert orbit["settings"]["guidance"]["scale"] == NANO_SCALE
