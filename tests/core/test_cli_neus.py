"""`v3d fit-neus`, `extract-mesh` and `reconstruct --mesh neus` on a tiny orbit."""

import functools
import json

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from v3d_core import cli, cli_input, cli_neus, reconstruct
from v3d_core.formats.views import load_views
from v3d_core.neus import config as neus_config
from v3d_core.neus.store import load_field
from v3d_core.normals import encode_normals
from v3d_core.splats.config import SplatFitConfig, guide_preset, splat_preset
from v3d_core.splats.consensus import Consensus

SIZE = 48  # px, of the demo orbit
TINY_NEUS = neus_config.NeusFitConfig(
    steps=12, rays=128, samples=12, start_resolution=32, levels=4, finest=64, log2_entries=12
)
TINY_SPLAT = SplatFitConfig(
    steps=10, resolution=SIZE, initial_splats=500, max_splats=500, hull_resolution=32, align="off"
)


@pytest.fixture(scope="module")
def orbit_folder(demo_orbit_48):
    return demo_orbit_48


@pytest.fixture(autouse=True)
def tiny_settings(monkeypatch):
    monkeypatch.setitem(neus_config.NEUS_PRESETS, "normal", TINY_NEUS)
    monkeypatch.setitem(cli.SPLAT_PRESETS, "normal", TINY_SPLAT)
    pictures = reconstruct.PictureConfig(turntable_frames=4, turntable_size=32)
    monkeypatch.setattr(
        cli, "reconstruct", functools.partial(reconstruct.reconstruct, pictures=pictures)
    )


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def fails(capsys, *arguments):
    code = run(*arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("v3d: ")
    return code, error


def fit(orbit_folder, out, *more):
    tiny = ("--device", "cpu", "--align", "off", "--mesh-resolution", "32")
    return run("fit-neus", orbit_folder, "--out", out, *tiny, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, orbit_folder):
    """One fit that several tests look at."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(neus_config.NEUS_PRESETS, "normal", TINY_NEUS)
        assert fit(orbit_folder, out) == 0
    return out


def test_fit_neus_writes_field_meshes_and_report(finished):
    report = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert report["files"] == ["field.safetensors", "mesh.glb", "mesh.ply"]
    assert sorted(path.name for path in finished.iterdir()) == [*report["files"], "report.json"]
    assert report["fit"]["steps"] == report["fit_settings"]["steps"] == TINY_NEUS.steps
    assert report["options"]["seed"] == report["fit_settings"]["seed"] == 0
    assert report["frames"] == "agree" and report["views"]["count"] == 18
    assert set(report["seconds"]) == {"load", "align", "fit", "mesh", "total"}
    for name in ("mesh.glb", "mesh.ply"):
        mesh = trimesh.load(finished / name, process=False, force="mesh")
        assert mesh.is_watertight and mesh.volume > 0
        assert len(mesh.faces) == report["mesh"]["faces"]


def test_extract_mesh_takes_other_resolutions_out_of_the_file(finished, tmp_path, capsys):
    field = finished / "field.safetensors"
    assert run("extract-mesh", field, "--out", tmp_path / "m.ply", "--resolution", "32") == 0
    assert run("extract-mesh", field, "--out", tmp_path / "new" / "f.obj", "--resolution", 64) == 0
    printed = capsys.readouterr().out
    assert "m.ply: " in printed and "faces" in printed
    same = trimesh.load(tmp_path / "m.ply", process=False)
    first = trimesh.load(finished / "mesh.ply", process=False)
    np.testing.assert_array_equal(same.vertices, first.vertices)
    fine = trimesh.load(tmp_path / "new" / "f.obj", process=False, force="mesh")
    assert len(fine.faces) > 3 * len(same.faces)


def test_the_same_seed_gives_the_same_field(finished, orbit_folder, tmp_path):
    assert fit(orbit_folder, tmp_path / "a") == 0
    assert fit(orbit_folder, tmp_path / "b", "--seed", "1") == 0
    files = [folder / "field.safetensors" for folder in (finished, tmp_path / "a", tmp_path / "b")]
    first, second, third = (path.read_bytes() for path in files)
    assert first == second != third


def test_options_reach_the_settings(orbit_folder, tmp_path):
    assert fit(orbit_folder, tmp_path, "--steps", "3", "--resolution", "24", "--frames", "9") == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["fit"]["steps"] == 3 and report["fit"]["resolution"] == 24
    assert report["views"]["count"] == 9


def test_normal_maps_are_matched_by_name_and_handed_to_the_fit(orbit_folder, tmp_path, monkeypatch):
    views = load_views(orbit_folder).views
    generator = torch.Generator().manual_seed(1)
    normals = torch.nn.functional.normalize(torch.randn(18, 1, 1, 3, generator=generator), dim=-1)
    folder = tmp_path / "normals"
    folder.mkdir()
    for name, normal in zip(views.names, normals, strict=True):
        pixel = (encode_normals(normal, "opencv") * 255).round().to(torch.uint8)
        picture = pixel.expand(SIZE, SIZE, 3).numpy()
        Image.fromarray(picture).save(folder / f"{name}.png")
        Image.fromarray(picture).save(folder / f"x_{name}.png")  # of something else
    seen = []
    original = cli_neus.fit_neus

    def spy(given, *arguments, **keywords):
        seen.append(given)
        return original(given, *arguments, **keywords)

    monkeypatch.setattr(cli_neus, "fit_neus", spy)
    more = ("--normals", folder, "--normals-convention", "opencv", "--steps", "2")
    assert fit(orbit_folder, tmp_path / "out", *more) == 0
    inside = views.masks > 0.5
    wanted = normals.expand(18, SIZE, SIZE, 3)
    assert (seen[0].normals - wanted)[inside].abs().max() < 0.02
    assert not bool(seen[0].normals[~inside].any())
    for path in [path for path in folder.iterdir() if path.name.startswith("x_")]:
        path.unlink()
    for index, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{index:02d}.png")  # now by order
    again = cli_input.with_normals(views, folder, "opencv").normals
    torch.testing.assert_close(again, seen[0].normals)


def test_wrong_normal_maps_are_bad_input(orbit_folder, tmp_path, capsys):
    folder = tmp_path / "normals"
    folder.mkdir()
    arguments = ("fit-neus", orbit_folder, "--out", tmp_path / "o", "--normals", folder)
    code, error = fails(capsys, *arguments)
    assert code == cli.EXIT_BAD_INPUT and "no pictures" in error
    for index in range(17):
        Image.new("RGB", (SIZE, SIZE)).save(folder / f"{index}.png")
    code, error = fails(capsys, *arguments)
    assert code == cli.EXIT_BAD_INPUT and "17 normal maps but 18 views" in error
    Image.new("RGB", (SIZE, SIZE)).save(folder / "17.png")
    for path in folder.iterdir():
        Image.new("RGB", (SIZE, SIZE // 2)).save(path)
    code, error = fails(capsys, *arguments)
    assert code == cli.EXIT_BAD_INPUT and "18 frames of 48x24 but the images are" in error


def test_disagreeing_frames_are_aligned_before_the_fit(orbit_folder, tmp_path, monkeypatch):
    def align(views, choice, *, seed, progress):
        assert (choice, seed) == ("on", 4)
        return Consensus(views[:7], [{"moved_px": 2.0}] * 7)

    monkeypatch.setattr(cli_neus, "align_frames", align)
    assert fit(orbit_folder, tmp_path, "--align", "on", "--seed", "4", "--steps", "2") == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["frames"] == "disagree" and len(report["per_view"]) == 7
    settings = report["fit_settings"]
    assert settings["mask_misses"] == 1 and settings["smoothness_weight"] == 0.03


def test_what_is_wrong_is_said_before_the_work(
    orbit_folder, finished, tmp_path, capsys, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("the fit began")

    monkeypatch.setattr(cli_neus, "fit_neus", never)
    monkeypatch.setattr(cli_neus, "extract_mesh", never)
    out = ("--out", tmp_path / "out")
    cases = [
        (("fit-neus", orbit_folder, *out, "--mesh-resolution", "4000"), "got 4000"),
        (("fit-neus", orbit_folder, *out, "--steps", "-3"), "-3"),
        (("fit-neus", tmp_path / "nothing", *out), "nothing"),
        (("fit-neus", orbit_folder, "--out", orbit_folder / "r_000.png"), "is a file"),
        (("extract-mesh", finished / "mesh.ply", "--out", tmp_path / "m.glb"), "mesh.ply"),
        (("extract-mesh", finished / "no.safetensors", "--out", tmp_path / "m.glb"), "no file"),
        (("extract-mesh", finished / "field.safetensors", "--out", tmp_path / "m.xyz"), "'.xyz'"),
    ]
    for arguments, text in cases:
        code, error = fails(capsys, *arguments)
        assert code == cli.EXIT_BAD_INPUT and text in error, arguments


@pytest.mark.slow
def test_reconstruct_makes_its_mesh_from_a_surface(orbit_folder, tmp_path, monkeypatch):
    seen = []
    original = reconstruct.fit_neus

    def spy(views, config, *, depths, progress):
        seen.append((views, config, depths))
        return original(views, config, depths=depths, progress=progress)

    monkeypatch.setattr(reconstruct, "fit_neus", spy)
    monkeypatch.setattr(
        reconstruct, "extract_mesh", functools.partial(reconstruct.extract_mesh, resolution=32)
    )
    arguments = ("reconstruct", orbit_folder, "--out", tmp_path, "--device", "cpu")
    arguments += ("--texture-size", 64, "--faces", 1000)
    assert run(*arguments, "--mesh", "neus", "--seed", "2") == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["files"] == [*reconstruct.OUTPUT_NAMES, "field.safetensors"]
    assert report["neus"]["steps"] == report["neus_settings"]["steps"] == TINY_NEUS.steps
    assert report["neus_settings"]["seed"] == 2 and report["mesh_settings"] is None
    assert seen[0][2].shape == (18, SIZE, SIZE) and bool((seen[0][2] > 0).any())
    mesh = trimesh.load(tmp_path / "mesh.glb", process=False, force="mesh")
    assert mesh.is_watertight and len(mesh.faces) == report["mesh"]["faces"]
    assert load_field(tmp_path / "field.safetensors").half_size > 0

    assert run(*arguments, "--mesh", "none") == 0  # and says what an earlier run left
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "field.safetensors" not in report["files"] and report["neus"] is None
    assert any("field.safetensors is of an earlier run" in text for text in report["warnings"])


def test_a_cpus_splat_takes_longer_where_it_guides_a_surface():
    def chosen(*more):
        command = ["reconstruct", "frames", "--out", "out", "--device", "cpu", *more]
        return cli.chosen_fit(cli.build_parser().parse_args(command))

    assert chosen() == chosen("--mesh", "splat") == splat_preset("normal", "cpu")
    assert chosen("--mesh", "neus") == guide_preset("normal", "cpu") == splat_preset("best", "cpu")
    assert chosen("--mesh", "neus", "--preset", "draft") == splat_preset("draft", "cpu")
    for name in ("draft", "normal", "best"):
        assert guide_preset(name, "cuda") == splat_preset(name, "cuda")
    assert guide_preset("best", "cpu") == splat_preset("best", "cpu")
    with pytest.raises(ValueError, match="no preset 'finest'"):
        guide_preset("finest", "cpu")
