"""`v3d orbit-data`: from folders of meshes and seeds to shards, and what happens to bad files."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from v3d_core import cli
from v3d_core.formats.mesh_files import write_mesh
from v3d_core.formats.mesh_materials import read_material_parts
from v3d_core.images import composite, from_uint8
from v3d_core.training import orbit_data
from v3d_core.training.mesh_orbits import MeshOrbitConfig, random_azimuth, render_mesh_orbit
from v3d_core.training.objects import random_objects
from v3d_core.training.orbit_data import (
    MeshFiles,
    OrbitDataConfig,
    ProceduralObjects,
    make_orbit_data,
)
from v3d_core.training.shards import OrbitShards
from v3d_core.training.tracing import render_orbits

samples = sys.modules["mesh_samples"]
SMALL = ("--size", 32, "--supersample", 1, "--device", "cpu")


def run(*arguments):
    return cli.main(["orbit-data", *map(str, arguments)])


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    """Two good meshes in sub-folders, and three that are broken in ways of their own."""
    folder = tmp_path_factory.mktemp("meshes")
    (folder / "b").mkdir()
    write_mesh(folder / "cube.glb", samples.seamed_cube())
    write_mesh(folder / "b" / "four.ply", samples.coloured_mesh())
    (folder / "junk.glb").write_bytes(b"glTF and no more")
    (folder / "nan.obj").write_text("v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (folder / "point.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")
    (folder / "notes.txt").write_text("no mesh")
    return folder


@pytest.fixture(scope="module")
def made(meshes, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    code = run(meshes, "--out", out / "data", *SMALL, "--sheet", out / "sheet.png")
    assert code == 0
    return out


def test_good_meshes_are_rendered_and_broken_ones_are_reported(made):
    data = OrbitShards(made / "data", "all")
    assert sorted(data.names) == ["b/four.ply", "cube.glb"]
    report = json.loads((made / "data" / "report.json").read_text(encoding="utf-8"))
    assert report["orbits"]["added"] == 2
    assert report["orbits"]["train"] + report["orbits"]["validation"] == 2
    assert sorted(report["skipped"]) == ["junk.glb", "nan.obj", "point.obj"]
    assert "single point" in report["skipped"]["point.obj"]
    assert "NaN" in report["skipped"]["nan.obj"]


def test_frames_are_those_of_the_renderer(made, meshes):
    data = OrbitShards(made / "data", "all")
    config = MeshOrbitConfig(size=32, supersample=1)
    for name in data.names:
        expected = render_mesh_orbit(read_material_parts(meshes / name), config)
        assert torch.equal(data[data.names.index(name)], expected), name


def test_the_sheet_shows_every_orbit_in_a_row_on_white(made):
    data = OrbitShards(made / "data", "all")
    with Image.open(made / "sheet.png") as picture:
        sheet = torch.from_numpy(np.array(picture))
    assert sheet.shape == (2 * 36 - 4, 18 * 36 - 4, 3)
    for row in range(2):
        for view in (0, 5, 17):
            frame = from_uint8(data[row][view])
            expected = composite(frame[..., :3], frame[..., 3])
            shown = sheet[36 * row : 36 * row + 32, 36 * view : 36 * view + 32] / 255
            assert float((shown - expected).abs().max()) <= 0.5 / 255 + 1e-6


def test_a_second_run_adds_only_what_is_new(made, meshes, capsys):
    before = (made / "data" / "shard-00000.zip").read_bytes()
    assert run(meshes, "--out", made / "data", *SMALL) == 0
    said = capsys.readouterr()
    assert "0 orbits added, 2 were there, 3 skipped" in said.out
    assert "skipped: junk.glb: ValueError" in said.err
    assert (made / "data" / "shard-00000.zip").read_bytes() == before
    assert len(OrbitShards(made / "data", "all")) == 2


def test_other_settings_are_refused_in_one_line(made, meshes, capsys):
    out = ("--out", made / "data")
    for change, complaint in (
        (("--size", 48), "size 32, asked for is 48"),
        (("--shading", "lit"), "shading 'flat', asked for is 'lit'"),
        (("--views", 6), "views 18, asked for is 6"),
        (("--random-azimuth",), "turn False, asked for is True"),
        (("--seed", 1), "seed 0, asked for is 1"),
        (("--validation", 0.5), "validation 0.02, asked for is 0.5"),
    ):
        assert run(meshes, *out, *SMALL, *change) == cli.EXIT_BAD_INPUT
        assert complaint in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "give mesh files or folders, or --procedural"),
        (("nowhere",), "nowhere: no such mesh or folder"),
        (("--procedural", 2, "--shading", "flat"), "must be lit, got flat"),
        (("--procedural", 2, "--first-seed", -1), "seeds from 0, got 2 from -1"),
        (("--procedural", 1, "--fill", 2), "fill must lie between 0 and 1, got 2.0"),
        (("--procedural", 1, "--validation", 1), r"[0, 1), got 1.0"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, complaint, capsys):
    assert run(*arguments, "--out", tmp_path / "out", *SMALL) == cli.EXIT_BAD_INPUT
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("v3d: ") and complaint in error


def test_a_folder_of_broken_meshes_alone_is_bad_input(tmp_path, capsys):
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "junk.ply").write_bytes(b"ply?")
    code = run(tmp_path / "meshes", "--out", tmp_path / "out", *SMALL)
    assert code == cli.EXIT_BAD_INPUT
    assert "no object could be rendered" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.json").exists()


def test_procedural_objects_are_those_of_their_seeds(tmp_path):
    settings = ("--views", 3, "--procedural", 2, "--first-seed", 7)
    assert run("--out", tmp_path, *SMALL, *settings) == 0
    data = OrbitShards(tmp_path, "all")
    assert data.names == ["procedural-00000007", "procedural-00000008"]
    orbit = dataclasses.replace(MeshOrbitConfig().orbit, num_views=3)
    expected = render_orbits(random_objects([7, 8]), orbit, 32, 1)
    assert torch.equal(torch.stack([data[0], data[1]]), expected)
    assert data.index["sources"][0]["first_seed"] == 7
    # eight more seeds: the first two are there
    assert run("--out", tmp_path, *SMALL, "--views", 3, "--procedural", 3, "--first-seed", 7) == 0
    assert OrbitShards(tmp_path, "all").names[2:] == ["procedural-00000009"]


def test_azimuths_belong_to_the_object_not_to_its_company(meshes, tmp_path):
    turned = OrbitDataConfig(MeshOrbitConfig(size=32, supersample=1), seed=3, turn=True)
    make_orbit_data(tmp_path / "all", [MeshFiles([meshes])], turned)
    make_orbit_data(tmp_path / "one", [MeshFiles([meshes / "cube.glb"])], turned)
    everything = OrbitShards(tmp_path / "all", "all")
    cube = everything[everything.names.index("cube.glb")]
    assert torch.equal(OrbitShards(tmp_path / "one", "all")[0], cube)
    parts = read_material_parts(meshes / "cube.glb")
    angle = random_azimuth("cube.glb", 3)
    assert torch.equal(cube, render_mesh_orbit(parts, turned.render, angle))
    assert not torch.equal(cube, render_mesh_orbit(parts, turned.render))


def test_two_meshes_of_one_name_are_refused(meshes):
    with pytest.raises(ValueError, match=r"have one name, cube\.glb"):
        MeshFiles([meshes, meshes / "cube.glb"])


class Stopped(Exception):
    """What a host raises to cancel; an ordinary exception, as ComfyUI's is."""


def test_cancelling_inside_an_object_stops_at_once_and_keeps_the_rest(meshes, tmp_path):
    calls = []

    def progress(step, total, preview=None, text=""):
        calls.append((step, total))
        if step == 1 and calls.count((1, 2)) == 9:  # in the middle of the second object
            raise Stopped

    sources = [MeshFiles([meshes / "cube.glb", meshes / "b" / "four.ply"])]
    config = OrbitDataConfig(MeshOrbitConfig(size=16, supersample=1))
    with pytest.raises(Stopped):
        make_orbit_data(tmp_path, sources, config, progress=progress)
    assert OrbitShards(tmp_path, "all").names == ["cube.glb"]
    result = make_orbit_data(tmp_path, sources, config)
    assert (result.added, result.kept) == (1, 1)


def test_cancelling_procedural_objects_stops_between_views(tmp_path):
    calls = []

    def progress(step, total, preview=None, text=""):
        calls.append(step)
        if len(calls) == 4:
            raise Stopped

    config = OrbitDataConfig(MeshOrbitConfig(size=16, supersample=1, shading="lit"))
    with pytest.raises(Stopped):
        make_orbit_data(tmp_path, [ProceduralObjects(3)], config, progress=progress)
    assert calls == [0, 0, 0, 0] and len(OrbitShards(tmp_path, "all")) == 0


def test_the_progress_shows_the_orbit_that_was_made(meshes, tmp_path):
    pictures = []

    def progress(step, total, preview=None, text=""):
        if preview is not None:
            pictures.append((step, total, text, preview()))

    config = OrbitDataConfig(MeshOrbitConfig(size=16, supersample=1))
    make_orbit_data(tmp_path, [MeshFiles([meshes])], config, progress=progress)
    assert [(p[1], p[2]) for p in pictures] == [(5, "b/four.ply"), (5, "cube.glb")]
    (orbit,) = [OrbitShards(tmp_path, "all")[1]]
    assert torch.equal(pictures[1][3], orbit_data.orbit_sheet(orbit[None]))
