"""The command line from end to end on a tiny orbit, and what it says about bad input."""

import functools
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from skimage.metrics import structural_similarity

import v3d_core
from v3d_core import cli, reconstruct
from v3d_core.formats.ply import read_splat_ply
from v3d_core.mesh.config import SplatMeshConfig
from v3d_core.procedural import write_demo_orbit
from v3d_core.splats.config import SplatFitConfig

SIZE = 48  # px
TINY_FIT = SplatFitConfig(
    steps=30, resolution=SIZE, initial_splats=800, max_splats=1000, hull_resolution=32
)


@pytest.fixture(scope="module")
def orbit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "orbit"
    write_demo_orbit(folder, SIZE)
    return folder


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


@pytest.fixture(autouse=True)
def tiny_settings(monkeypatch):
    monkeypatch.setitem(cli.SPLAT_PRESETS, "draft", TINY_FIT)
    monkeypatch.setitem(cli.SPLAT_PRESETS, "normal", TINY_FIT)
    monkeypatch.setattr(cli, "SplatMeshConfig", functools.partial(SplatMeshConfig, resolution=40))
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


def test_reconstruct_writes_every_file_and_other_software_reads_them(finished):
    report = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert report["files"] == [*reconstruct.OUTPUT_NAMES]
    assert len(read_splat_ply(finished / "splat.ply")) == report["splats"] > 0
    for name in ("mesh.glb", "mesh.ply"):
        mesh = trimesh.load(finished / name, process=False, force="mesh")
        assert len(mesh.faces) == report["mesh"]["faces"] > 0
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
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
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


@pytest.mark.parametrize("option", ["--resolution", "--max-splats"])
def test_impossible_settings_are_bad_input(orbit_folder, tmp_path, capsys, option):
    code, error = fails(
        capsys, "fit-splat", orbit_folder, "--out", tmp_path / "s.ply", option, "-3"
    )
    assert code == cli.EXIT_BAD_INPUT and "-3" in error


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
