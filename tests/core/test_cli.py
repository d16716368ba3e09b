"""The command line from end to end on a tiny orbit, and what it says about bad input."""

import functools
import json
import math
import os
import pickle
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from skimage.metrics import structural_similarity

import v3d_core
from v3d_core import cli, cli_generate, reconstruct
from v3d_core.diffusion.decode_memory import DecodePlan
from v3d_core.diffusion.families import V3D
from v3d_core.formats.pictures import list_pictures, read_pictures
from v3d_core.formats.ply import read_splat_ply
from v3d_core.mesh.asset import AssetConfig
from v3d_core.mesh.config import SplatMeshConfig
from v3d_core.splats.config import SplatFitConfig

SIZE = 48  # px, of the demo orbit
TEXELS = 128  # of textures, along a side
TINY_FIT = SplatFitConfig(
    steps=30,
    resolution=SIZE,
    initial_splats=800,
    max_splats=1000,
    hull_resolution=32,
    coarse_until=0.0,
    align="off",
)


@pytest.fixture(scope="module")
def orbit_folder(demo_orbit_48):
    return demo_orbit_48


@pytest.fixture(scope="module")
def frames_folder(orbit_folder, tmp_path_factory):
    """The same frames without cameras and without alpha, on white, as a video model makes them."""
    folder = tmp_path_factory.mktemp("data") / "frames"
    folder.mkdir()
    for path in sorted(orbit_folder.glob("r_*.png")):
        with Image.open(path) as image:
            white = Image.new("RGBA", image.size, "white")
            Image.alpha_composite(white, image).convert("RGB").save(folder / path.name)
    return folder


def small_asset(**settings):
    assert (settings["faces"], settings["texture_size"]) == (20_000, 1024)  # the defaults
    return AssetConfig(**{**settings, "texture_size": TEXELS})


@pytest.fixture(autouse=True)
def tiny_settings(monkeypatch):
    monkeypatch.setitem(cli.SPLAT_PRESETS, "draft", TINY_FIT)
    monkeypatch.setitem(cli.SPLAT_PRESETS, "normal", TINY_FIT)
    monkeypatch.setattr(cli, "SplatMeshConfig", functools.partial(SplatMeshConfig, resolution=40))
    monkeypatch.setattr(cli, "AssetConfig", small_asset)
    pictures = reconstruct.PictureConfig(turntable_frames=4, turntable_size=32)
    monkeypatch.setattr(
        cli, "reconstruct", functools.partial(reconstruct.reconstruct, pictures=pictures)
    )


@pytest.fixture(scope="module")
def _shared(tmp_path_factory):
    return {"out": tmp_path_factory.mktemp("out")}


@pytest.fixture
def finished(_shared, orbit_folder):
    """One reconstruction with held-out views that several tests look at."""
    if "code" not in _shared:
        arguments = [
            "reconstruct",
            str(orbit_folder),
            "--out",
            str(_shared["out"]),
            "--device",
            "cpu",
        ]
        _shared["code"] = cli.main(arguments)
    assert _shared["code"] == 0
    return _shared["out"]


def scores_of_files(rendered, truth):
    """Mean figures of RGBA PNGs, written once more from their definitions in numpy and skimage."""
    rows = []
    for path in sorted(truth.glob("t_*.png")):
        pictures = []
        for folder in (rendered, truth):
            with Image.open(folder / path.name) as image:
                assert image.mode == "RGBA"
                rgba = np.asarray(image, np.float64) / 255
            pictures.append((rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:], rgba[..., 3]))
        (image, alpha), (target, mask) = pictures
        error = ((image - target) ** 2).mean(2)
        on_object = (mask > 0) | (alpha > 0.5)
        a, b = alpha > 0.5, mask > 0.5
        similarity = structural_similarity(
            target,
            image,
            channel_axis=2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        rows.append(
            {
                "psnr": -10 * math.log10(error.mean()),
                "psnr_object": -10 * math.log10(error[on_object].mean()),
                "ssim": similarity,
                "alpha_iou": (a & b).sum() / (a | b).sum(),
            }
        )
    return {key: np.mean([row[key] for row in rows]) for key in rows[0]}


@pytest.mark.slow
def test_reconstruct_writes_every_file_and_other_software_reads_them(finished):
    report = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert report["files"] == [*reconstruct.OUTPUT_NAMES]
    assert len(read_splat_ply(finished / "splat.ply")) == report["splats"] > 0
    for name in ("mesh.glb", "mesh.ply"):
        mesh = trimesh.load(finished / name, process=False, force="mesh")
        assert len(mesh.faces) == report["mesh"]["faces"] > 0
    asset = trimesh.load(finished / "textured.glb", process=False, force="mesh")
    assert asset.visual.material.baseColorTexture.size == (TEXELS, TEXELS)
    assert report["asset"]["texture"]["views"] == 18
    with Image.open(finished / "contact_sheet.png") as sheet:
        assert sheet.size == (6 * SIZE + 5 * 4, 4 * SIZE + 3 * 4)
    assert (finished / "turntable.mp4").stat().st_size > 500
    leftovers = [path.name for path in finished.rglob(".*")]
    assert leftovers == []


def test_report_says_what_ran_and_what_it_cost(finished):
    report = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert report["v3d"] == v3d_core.__version__
    assert report["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert report["options"]["seed"] == report["fit_settings"]["seed"] == 0
    assert report["device"] == "cpu" and report["engine"]
    assert set(report["seconds"]) >= {"load", "fit", "mesh", "turntable", "test", "total"}
    assert 50 < report["peak_memory"]["resident_mib"] < 64_000
    assert report["warnings"] == []


def test_scores_in_the_report_are_those_of_the_written_pictures(finished, orbit_folder):
    report = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    expected = scores_of_files(finished / "test", orbit_folder)
    for name, value in expected.items():
        assert report["scores"][name] == pytest.approx(value, abs=1e-3), name
    names = [row["name"] for row in report["scores"]["per_view"]]
    assert names == [path.stem for path in sorted(orbit_folder.glob("t_*.png"))]
    assert report["scores"]["psnr"] > 15
    assert report["scores"]["lpips"] is not None or report["scores"]["lpips_backend"]


def test_frames_without_cameras_take_the_orbit_and_the_keying_is_reported(
    frames_folder, tmp_path, capsys
):
    assert (
        cli.main(["reconstruct", str(frames_folder), "--out", str(tmp_path), "--mesh", "none"]) == 0
    )
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["scores"] is None and report["mesh"] is None
    assert not (tmp_path / "mesh.glb").exists() and "mesh.glb" not in report["files"]
    assert any("keyed" in warning for warning in report["warnings"])
    output = capsys.readouterr()
    assert "keyed" in output.err
    assert str(tmp_path / "splat.ply") in output.out


def test_same_seed_gives_the_same_file_and_another_seed_another(orbit_folder, tmp_path):
    paths = [tmp_path / name for name in ("a.ply", "b.ply", "c.ply")]
    for path, seed in zip(paths, ("7", "7", "8"), strict=True):
        arguments = [str(orbit_folder), "--out", str(path), "--seed", seed, "--device", "cpu"]
        assert cli.main(["fit-splat", *arguments]) == 0
    first, second, third = (path.read_bytes() for path in paths)
    assert first == second != third
    assert sorted(tmp_path.iterdir()) == paths


def test_demo_prints_where_every_file_is(orbit_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "DEMO_ORBIT", orbit_folder)
    assert cli.main(["demo", "--from-orbit", "--out", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    for name in (*reconstruct.OUTPUT_NAMES, "report.json"):
        assert str(tmp_path / "demo" / name) in printed


def test_shipped_demo_orbit_is_complete():
    pictures = sorted(path.name for path in cli.DEMO_ORBIT.glob("r_*.png"))
    assert pictures == [f"r_{index:03d}.png" for index in range(18)]


def test_export_converts_a_mesh(finished, tmp_path):
    assert cli.main(["export", str(finished / "mesh.ply"), "--out", str(tmp_path / "m.obj")]) == 0
    first = trimesh.load(finished / "mesh.ply", process=False)
    second = trimesh.load(tmp_path / "m.obj", process=False, force="mesh")
    assert np.allclose(first.bounds, second.bounds, atol=1e-5)


def fails(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    error = capsys.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("v3d: ") and "Traceback" not in error
    return code, error.splitlines()[-1]


def test_missing_input_names_it(tmp_path, capsys):
    code, error = fails(capsys, "fit-splat", tmp_path / "nothing", "--out", tmp_path / "s.ply")
    assert code == cli.EXIT_BAD_INPUT and "nothing" in error
    assert list(tmp_path.iterdir()) == []


def test_folder_without_pictures_is_bad_input(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no pictures here")
    code, error = fails(capsys, "reconstruct", tmp_path / "in", "--out", tmp_path / "out")
    assert code == cli.EXIT_BAD_INPUT and str(tmp_path / "in") in error


def test_wrong_frame_count_names_both_numbers(frames_folder, tmp_path, capsys):
    frames = tmp_path / "frames"
    shutil.copytree(frames_folder, frames)
    (frames / "r_005.png").unlink()
    code, error = fails(capsys, "reconstruct", frames, "--out", tmp_path / "out")
    assert code == cli.EXIT_BAD_INPUT and "17" in error and "18" in error


def test_unwritable_output_is_found_before_the_fit(orbit_folder, tmp_path, capsys, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the fit began")

    monkeypatch.setattr(reconstruct, "fit_splats", never)
    monkeypatch.setattr(cli, "fit_splats", never)
    (tmp_path / "file").write_text("in the way")
    for command in ("reconstruct", "fit-splat"):
        code, error = fails(capsys, command, orbit_folder, "--out", tmp_path / "file" / "out")
        assert code == cli.EXIT_BAD_INPUT and str(tmp_path / "file") in error


def test_cuda_on_a_machine_without_it_is_bad_input(orbit_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, error = fails(
        capsys, "fit-splat", orbit_folder, "--out", tmp_path / "s.ply", "--device", "cuda"
    )
    assert code == cli.EXIT_BAD_INPUT and "--device cpu" in error


@pytest.mark.parametrize("option", ["--resolution", "--max-splats", "--seconds"])
def test_impossible_settings_are_bad_input(orbit_folder, tmp_path, capsys, option):
    code, error = fails(
        capsys, "fit-splat", orbit_folder, "--out", tmp_path / "s.ply", option, "-3"
    )
    assert code == cli.EXIT_BAD_INPUT and "-3" in error


def test_held_out_views_are_scored_and_not_fitted(frames_folder, tmp_path, capsys):
    arguments = ["--hold-out", "6", "--align", "off", "--seconds", "60"]
    out = tmp_path / "out"
    assert (
        cli.main(
            ["reconstruct", str(frames_folder), "--out", str(out), "--mesh", "none", *arguments]
        )
        == 0
    )
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["views"]["count"] == 15 and len(report["scores"]["per_view"]) == 3
    assert (report["fit_settings"]["align"], report["fit_settings"]["seconds"]) == ("off", 60.0)
    assert report["scores"]["psnr"] > 15
    capsys.readouterr()
    splat = tmp_path / "s.ply"
    assert cli.main(["fit-splat", str(frames_folder), "--out", str(splat), *arguments]) == 0
    assert "(3 views)" in capsys.readouterr().out


def test_a_data_set_with_test_views_needs_no_others(orbit_folder, tmp_path, capsys):
    code, error = fails(
        capsys, "fit-splat", orbit_folder, "--out", tmp_path / "s.ply", "--hold-out", "6"
    )
    assert code == cli.EXIT_BAD_INPUT and "has test views of its own" in error


def test_interrupt_ends_with_130_and_leaves_no_file(orbit_folder, tmp_path, capsys, monkeypatch):
    class Interrupted:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            def progress(step, total, preview=None, text=""):
                if step >= 2:
                    raise KeyboardInterrupt

            return progress

        def __exit__(self, *_):
            return False

    monkeypatch.setattr(cli, "progress_bar", Interrupted)
    code, _ = fails(capsys, "reconstruct", orbit_folder, "--out", tmp_path / "out")
    assert code == cli.EXIT_CANCELLED
    assert list((tmp_path / "out").iterdir()) == []


def test_unexpected_errors_end_with_1_and_debug_shows_them(
    orbit_folder, tmp_path, capsys, monkeypatch
):
    def broken(*_, **__):
        raise KeyError("a defect")

    monkeypatch.setattr(cli, "fit_splats", broken)
    arguments = ["fit-splat", orbit_folder, "--out", tmp_path / "s.ply"]
    code, error = fails(capsys, *arguments)
    assert code == cli.EXIT_FAILURE and "KeyError" in error and "--debug" in error
    with pytest.raises(KeyError):
        cli.main([*map(str, arguments), "--debug"])


def test_orbit_options_change_the_preset():
    options = cli.build_parser().parse_args(
        "fit-splat in --out s.ply --orbit sv3d --elevation 12 --num-views 10 --clockwise".split()
    )
    orbit = cli.chosen_orbit(options)
    assert (orbit.elevation_deg, orbit.num_views, orbit.fov_y_deg) == (12, 10, 33.8)
    first, second = orbit.azimuths_deg[:2]
    assert second - first == pytest.approx(-36)


def test_fewer_frames_make_an_orbit_of_as_many_views(frames_folder, tmp_path):
    path = tmp_path / "s.ply"
    assert cli.main(["fit-splat", str(frames_folder), "--out", str(path), "--frames", "9"]) == 0
    assert path.exists()


def test_module_command_runs_and_lets_idle_threads_sleep(monkeypatch, capsys):
    from v3d_core import __main__

    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # so that the old value comes back
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr("sys.argv", ["v3d", "--version"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert v3d_core.__version__ in capsys.readouterr().out


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert v3d_core.__version__ in capsys.readouterr().out


# Orbits from pictures


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "thing.png"
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((200, 40, 30, 255), (8, 6, 32, 36))
    image.save(path)
    return path


@pytest.fixture
def no_environment(monkeypatch):
    for name in ("V3D_MODEL", "V3D_COMPANION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tiny_model(no_environment, tiny, monkeypatch):
    """The tiny model in the environment variables, and the options that make it quick."""
    monkeypatch.setenv("V3D_MODEL", str(tiny.v3d_without_vae))
    monkeypatch.setenv("V3D_COMPANION", os.pathsep.join([str(tiny.svd)]))
    return ("--size", "64", "--steps", "2", "--num-frames", "3", "--device", "cpu")


@pytest.mark.slow
def test_sample_makes_an_orbit_and_the_second_time_keeps_it(picture, tiny_model, tmp_path, capsys):
    pytest.importorskip("diffusers")
    out = tmp_path / "out"
    arguments = [str(x) for x in ("sample", picture, "--out", out, *tiny_model)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert str(out / "thing") in printed and "MiB resident" in printed
    assert len(list_pictures(out / "thing")) == 3 + 1  # frames and prepared.png
    assert cli.main(arguments) == 0
    assert "there already" in capsys.readouterr().out


def test_options_of_sample_reach_the_settings():
    options = cli.build_parser().parse_args(
        "sample a.png --out o --steps 7 --guidance triangle --scale 4.5 --min-scale 2 --fps-id 2 "
        "--motion-bucket-id 9 --cond-aug 0.1 --vae-mode sample --decode-frames 3 --size 256 "
        "--border-ratio 0.2 --mask-threshold 0.4 --num-frames 5".split()
    )
    config, prepare = (
        cli_generate.chosen_orbit_config(options),
        cli_generate.chosen_prepare(options),
    )
    assert (config.sampler.steps, config.decode_frames) == (7, 3)
    guidance = config.guidance
    assert (guidance.kind, guidance.scale, guidance.min_scale) == ("triangle", 4.5, 2)
    numbers = config.conditioning
    assert (numbers.num_frames, numbers.fps_id, numbers.motion_bucket_id) == (5, 2, 9)
    assert (numbers.cond_aug, numbers.vae_mode) == (0.1, "sample")
    assert (prepare.size, prepare.border_ratio, prepare.mask_threshold) == (256, 0.2, 0.4)


@pytest.mark.parametrize("command", ["sample", "image-to-3d"])
def test_defaults_of_the_options_are_those_of_the_settings(command):
    options = cli.build_parser().parse_args([command, "a.png", "--out", "o"])
    assert cli_generate.chosen_orbit_config(options) == cli_generate.OrbitConfig()
    assert cli_generate.chosen_prepare(options) == cli_generate.PrepareConfig()


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--steps", "0", "steps is 0"),
        ("--scale", "nan", "scale must be a number"),
        ("--size", "100", "multiple of 64"),
        ("--seed", "-4", "seed is -4"),
        ("--num-frames", "0", "num_frames is 0"),
    ],
)
def test_impossible_sampling_is_bad_input(
    picture, tiny_model, tmp_path, capsys, option, value, text
):
    code, error = fails(
        capsys, "sample", picture, "--out", tmp_path / "out", *tiny_model, option, value
    )
    assert code == cli.EXIT_BAD_INPUT and text in error
    assert not (tmp_path / "out").exists()


def test_without_a_model_it_says_which_file_and_where_from(
    picture, no_environment, tmp_path, capsys
):
    code, error = fails(capsys, "sample", picture, "--out", tmp_path / "out")
    assert code == cli.EXIT_BAD_INPUT
    for text in ("--model", "V3D_MODEL", "V3D.ckpt", "huggingface.co/heheyas/V3D", "svd_xt"):
        assert text in error


def test_a_missing_companion_says_what_it_has_and_how_to_name_it(
    picture, no_environment, tiny, tmp_path, capsys
):
    code, error = fails(capsys, "sample", picture, "--out", tmp_path / "out", "--model", tiny.v3d)
    assert code == cli.EXIT_BAD_INPUT
    for text in ("image encoder", "svd_xt.safetensors", "--companion", "V3D_COMPANION"):
        assert text in error


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_bad_model_files_are_bad_input(picture, no_environment, tiny, tmp_path, capsys):
    evil, cut = tmp_path / "evil.ckpt", tmp_path / "cut.safetensors"
    evil.write_bytes(pickle.dumps({"state_dict": Malicious()}, protocol=2))
    cut.write_bytes(tiny.v3d_without_vae.read_bytes()[:100_000])
    other = tmp_path / "other.ckpt"
    state = torch.load(tiny.v3d, weights_only=True)["state_dict"]
    torch.save({n: t for n, t in state.items() if ".time_stack." not in n}, other)
    missing = tmp_path / "missing.ckpt"
    for model, text in (
        (evil, "nothing was run"),
        (cut, "cut off"),
        (other, "are missing"),
        (missing, "no such model file"),
    ):
        for command in (["sample", picture], ["convert", model]):
            given = ["--model", model] if command[0] == "sample" else []
            out = tmp_path / "out" if given else tmp_path / "out.safetensors"
            code, error = fails(capsys, *command, *given, "--out", out)
            assert code == cli.EXIT_BAD_INPUT and text in error and model.name in error
            assert not out.exists()


def test_missing_diffusers_is_one_line_with_the_remedy(
    picture, tiny_model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    code, error = fails(capsys, "sample", picture, "--out", tmp_path / "out", *tiny_model)
    assert code == cli.EXIT_FAILURE and "pip install diffusers transformers" in error


class DrawnModel:
    """Stands in for the networks: its orbit is the one the tests reconstruct."""

    family = V3D

    def __init__(self, frames):
        self.frames = read_pictures(list_pictures(frames))[..., :3].float() / 255

    def condition(self, image, config, seed):
        return SimpleNamespace(latent=torch.zeros(1, 4, 8, 8), config=config)

    def sample(self, condition, guidance, run, check):
        return torch.zeros(condition.config.num_frames, 4, 8, 8)

    def decode(self, latents, frames_per_slice, progress):
        return self.frames, DecodePlan(len(latents), len(latents))


@pytest.fixture
def drawn_model(frames_folder, tiny_model, monkeypatch):
    model = DrawnModel(frames_folder)
    monkeypatch.setattr(cli_generate.ModelSource, "load", lambda source: model)


def test_some_failures_end_with_1_and_all_bad_input_with_2(picture, drawn_model, tmp_path, capsys):
    Image.new("RGBA", (40, 40), (9, 9, 9, 0)).save(tmp_path / "empty.png")
    out = ("--out", tmp_path / "out")
    code, error = fails(capsys, "sample", tmp_path / "empty.png", picture, *out)
    assert code == cli.EXIT_FAILURE and "empty.png: empty mask" in error
    assert (tmp_path / "out" / "thing" / "orbit.json").exists()
    code, error = fails(capsys, "sample", tmp_path / "empty.png", tmp_path / "no.png", *out)
    assert code == cli.EXIT_BAD_INPUT and "no.png" in error


def test_image_to_3d_goes_all_the_way(picture, drawn_model, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["image-to-3d", str(picture), "--out", str(out), "--mesh", "none", "--seed", "3"]
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["fit_settings"]["seed"] == report["options"]["seed"] == 3
    assert len(read_splat_ply(out / "splat.ply")) == report["splats"] > 0
    assert report["views"]["count"] == len([*(out / "orbit").glob("r_*.png")]) == 18
    orbit = json.loads((out / "orbit" / "orbit.json").read_text(encoding="utf-8"))
    assert orbit["seed"] == 3 and orbit["picture"] == "thing.png"
    before = (out / "orbit" / "orbit.json").stat().st_mtime_ns
    assert cli.main([*arguments, "--device", "cpu", "--preset", "draft"]) == 0
    assert (out / "orbit" / "orbit.json").stat().st_mtime_ns == before
    assert "there already" in capsys.readouterr().out


def test_image_to_3d_without_an_object_stops_before_the_fit(drawn_model, tmp_path, capsys):
    Image.new("RGBA", (40, 40), (9, 9, 9, 0)).save(tmp_path / "empty.png")
    code, error = fails(capsys, "image-to-3d", tmp_path / "empty.png", "--out", tmp_path / "out")
    assert code == cli.EXIT_BAD_INPUT and "empty.png: empty mask" in error
    assert [*(tmp_path / "out").iterdir()] == []


def test_convert_makes_a_file_or_a_folder(tiny_model, tiny, tmp_path, capsys):
    file, folder = tmp_path / "v3d.safetensors", tmp_path / "v3d"
    assert cli.main(["convert", str(tiny.v3d), "--out", str(file)]) == 0
    assert cli.main(["convert", str(file), "--out", str(folder), "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert "tensors" in printed and "bfloat16" in printed
    assert (folder / "model_index.json").exists()
    code, error = fails(
        capsys, "convert", tiny.v3d, "--out", tmp_path / "b.safetensors", "--companion", tiny.svd
    )
    assert code == cli.EXIT_BAD_INPUT and "--companion is for a folder only" in error
