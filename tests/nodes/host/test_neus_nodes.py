"""V3D Fit NeuS, Extract Mesh, Save SDF and Load SDF in the host: what they are given and give."""

import json
import os

import numpy as np
import pytest
import torch
from scenes import REPOSITORY, orbit_frames, pack

TINY = {"preset": "draft", "seed": 3, "resolution": 48, "steps": 15, "frames": "agree"}
TINY |= {"normals_convention": "opengl"}


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes always run in it."""
    with torch.inference_mode():
        yield


def tiny_views(count=8):
    colours, alphas, cameras = orbit_frames(count, 64)
    return pack("v3d_core.structures").Views(images=colours, masks=alphas, cameras=cameras)


def fit(views=None, **widgets):
    node = pack("nodes.neus").V3DFitNeuS
    return node.execute(views=tiny_views() if views is None else views, **{**TINY, **widgets}).args


@pytest.fixture(scope="module")
def fitted():
    with torch.inference_mode():
        return fit()


def extract(sdf, **widgets):
    node = pack("nodes.neus").V3DExtractMesh
    return node.execute(sdf=sdf, **{"resolution": 48, "min_part": 0.0, "colours": True, **widgets})


def test_a_surface_from_inference_tensors_stands_where_the_object_does(fitted):
    sdf, report, views = fitted
    figures = json.loads(report)
    assert figures["steps"] == 15 and figures["frames"] == "agree"
    assert sdf.device.type == "cpu" and not any(p.requires_grad for p in sdf.parameters())
    assert not any(tensor.is_inference() for tensor in sdf.state_dict().values())
    assert len(views) == 8
    mesh = extract(sdf).args[0]
    assert mesh.unlit and mesh.vertices.shape[0] == 1
    vertices = mesh.vertices[0]
    # a ball at +X, one at +Y, one at +Z, and a bar at -X: no turn or mirror image has these ends
    assert vertices[:, 0].max() > 0.5 and vertices[:, 1].max() > 0.6
    assert vertices[:, 2].max() > 0.45 and vertices[:, 2].min() > -0.3
    assert vertices[:, 1].min() > -0.45 and vertices[:, 0].min() < -0.55


def test_extracting_again_changes_nothing_but_the_mesh(fitted):
    sdf = fitted[0]
    before = {name: tensor.clone() for name, tensor in sdf.state_dict().items()}
    coarse, fine = extract(sdf).args[0], extract(sdf, resolution=96).args[0]
    assert fine.faces.shape[1] > 3 * coarse.faces.shape[1]
    for name, tensor in sdf.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(extract(sdf).args[0].vertices, coarse.vertices)
    assert extract(sdf, colours=False).args[0].vertex_colors is None
    one = extract(sdf, min_part=1.0).args[0]
    assert one.faces.shape[1] <= coarse.faces.shape[1]


def test_the_same_seed_gives_the_same_surface_and_the_views_stay_as_they_were(fitted):
    views = tiny_views()
    before = views.images.clone()
    again = fit(views)[0]
    other = fit(views, seed=2**64 - 1)[0]
    states = [field.state_dict() for field in (fitted[0], again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert torch.equal(views.images, before)


@pytest.mark.parametrize("convention", ["opengl", "opencv"])
def test_normal_maps_arrive_in_the_views_in_camera_axes(convention):
    views = tiny_views()
    facing = torch.tensor([0.5, 0.5, 1.0 if convention == "opengl" else 0.0])
    maps = facing.expand(*views.masks.shape, 3).clone()
    fitted = fit(views, normals=maps, normals_convention=convention, steps=2)[2]
    inside = views.masks > 0.5
    assert fitted.normals.shape == views.images.shape
    torch.testing.assert_close(
        fitted.normals[inside], torch.tensor([0.0, 0.0, -1.0]).expand(int(inside.sum()), 3)
    )
    assert not bool(fitted.normals[~inside].any())
    assert views.normals is None


def test_wrong_normals_and_too_few_views_are_refused_under_the_nodes_name():
    views = tiny_views()
    with pytest.raises(ValueError, match=r"^V3D Fit NeuS: normals are 7 frames of 64x64 but"):
        fit(views, normals=torch.zeros(7, 64, 64, 3))
    with pytest.raises(ValueError, match=r"^V3D Fit NeuS: .*at least 2 views.* got 1"):
        fit(views[0:1])


def test_a_splat_of_the_views_may_be_connected():
    from scenes import asymmetric_splats

    splat = pack("nodes.convert").splats_to_host(asymmetric_splats())
    sdf, report, _ = fit(splat=splat, steps=2)
    assert json.loads(report)["steps"] == 2 and sdf.half_size > 0


def test_a_splat_gives_normals_and_views_between_that_the_views_handed_on_do_not_have():
    from scenes import asymmetric_splats

    with pytest.raises(ValueError, match=r"^V3D Fit NeuS: .* needs a splat; connect one"):
        fit(views_between=True)
    splat = pack("nodes.convert").splats_to_host(asymmetric_splats())
    _, _, views = fit(splat=splat, steps=2, views_between=True)
    assert len(views) == 8
    length = views.normals.norm(dim=-1)
    assert bool((length > 0.99).any()) and not bool(length[views.masks == 0].any())


def test_disagreeing_frames_are_aligned_first(monkeypatch):
    from scenes import asymmetric_splats

    neus = pack("nodes.neus")
    splat = pack("nodes.convert").splats_to_host(asymmetric_splats())
    views = tiny_views()
    asked = []

    def align(given, choice, *, seed, progress, finish):
        asked.append((choice, seed))
        progress(0, 500, text="Do the frames agree?")
        if choice == "off":
            return None
        consensus = pack("v3d_core.splats.consensus")
        return consensus.Consensus(given[:6], [{"moved_px": 1.0}] * 6)

    monkeypatch.setattr(neus, "align_frames", align)
    _, report, fitted = fit(views, frames="auto", steps=2)
    figures = json.loads(report)
    assert figures["frames"] == "disagree" and len(figures["per_view"]) == 6 and len(fitted) == 6
    fit(views, frames="disagree", steps=1)
    _, _, fitted = fit(views, frames="disagree", steps=1, splat=splat)
    assert fitted.normals is None  # its normals have ripples
    _, report, fitted = fit(views, frames="agree", steps=1)
    assert json.loads(report)["frames"] == "agree" and len(fitted) == 8
    assert asked == [("auto", 3), ("on", 3), ("on", 3), ("off", 3)]


def test_zero_widgets_mean_the_presets_own_values():
    neus = pack("nodes.neus")
    presets = pack("v3d_core.neus.config").NEUS_PRESETS
    for name, preset in presets.items():
        assert neus.config_from_widgets(name, "cpu", 0, 0, 0) == preset
    changed = neus.config_from_widgets("draft", "cpu", 9, 7, 64)
    assert (changed.seed, changed.steps, changed.resolution) == (9, 7, 64)


def test_the_line_under_the_node_has_steps_quality_time_and_why_it_ended():
    summary = pack("nodes.neus").summary
    report = {"steps": 1500, "psnr_train": 28.25, "seconds": 71.04, "stopped": "all steps"}
    assert summary(report) == "1500 steps, 28.25 dB, 71.0 s"
    assert summary(report | {"stopped": "finish now"}).endswith(", stopped: finish now")


def test_a_saved_field_is_listed_and_loads_the_same(fitted, host_folders):
    neus, sdf = pack("nodes.neus"), fitted[0]
    result = neus.V3DSaveSDF.execute(sdf=sdf, filename_prefix="v3d/robot")
    (name,) = result.args
    assert name == "v3d/robot_00001_.safetensors [output]" and result.ui["text"] == (name,)
    assert pack("nodes.paths").field_files() == [name]
    missing = neus.V3DLoadSDF.fingerprint_inputs(file="v3d/robot_00002_.safetensors [output]")
    first = neus.V3DLoadSDF.fingerprint_inputs(file=name)
    (loaded,) = neus.V3DLoadSDF.execute(file=name).args
    wanted = sdf.state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in loaded.state_dict().items())
    assert not any(t.is_inference() for t in loaded.state_dict().values())
    path = host_folders / "output" / "v3d" / "robot_00001_.safetensors"
    assert neus.V3DLoadSDF.fingerprint_inputs(file=name) == first
    os.utime(path, ns=(1, 1))
    assert neus.V3DLoadSDF.fingerprint_inputs(file=name) != first
    os.link(path, path.with_name("robot_00002_.safetensors"))
    there = neus.V3DLoadSDF.fingerprint_inputs(file="v3d/robot_00002_.safetensors [output]")
    assert missing.startswith("there is no file") and there != missing
    path.with_name("robot_00002_.safetensors").unlink()
    (host_folders / "input" / "deep").mkdir()
    os.replace(path, host_folders / "input" / "deep" / "given.SAFETENSORS")
    assert pack("nodes.paths").field_files() == ["deep/given.SAFETENSORS"]
    np.testing.assert_array_equal(
        extract(neus.V3DLoadSDF.execute(file="deep/given.SAFETENSORS").args[0]).args[0].vertices,
        extract(sdf).args[0].vertices,
    )


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "/etc/evil.safetensors",
        "../output/x.safetensors",
        "../input/../evil.safetensors [output]",
    ],
)
def test_names_outside_the_folders_are_refused(name, host_folders):
    (host_folders / "evil.safetensors").write_bytes(b"")
    (host_folders / "output" / "x.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^V3D Load SDF: the file .* lies outside"):
        pack("nodes.neus").V3DLoadSDF.execute(file=name)


@pytest.mark.parametrize("prefix", ["../evil", "v3d/../../evil", "/tmp/evil", ".."])
def test_prefixes_that_leave_the_output_folder_are_refused(prefix, fitted, host_folders):
    with pytest.raises(ValueError, match=r"^V3D Save SDF: .*leads out of the output folder"):
        pack("nodes.neus").V3DSaveSDF.execute(sdf=fitted[0], filename_prefix=prefix)
    assert not list(host_folders.rglob("*evil*"))


def test_missing_foreign_and_other_files_are_refused_with_the_reason(host_folders):
    load = pack("nodes.neus").V3DLoadSDF.execute
    with pytest.raises(ValueError, match=r"^V3D Load SDF: there is no file .*press R"):
        load(file="nothing.safetensors")
    with pytest.raises(ValueError, match=r"^V3D Load SDF: .*is no .safetensors file"):
        load(file="notes.txt")
    weights = pack("v3d_core.formats.weights")
    other = host_folders / "input" / "model.safetensors"
    weights.write_safetensors(other, {"a": torch.zeros(2)}, {"a": (torch.float32, (2,))})
    with pytest.raises(ValueError, match=r"^V3D Load SDF: .*holds no V3D field"):
        load(file="model.safetensors")


def test_the_help_page_has_the_presets_own_numbers():
    page = (REPOSITORY / "web" / "docs" / "V3DFitNeuS.md").read_text(encoding="utf-8")
    config = pack("v3d_core.neus.config")
    for presets in (config.NEUS_PRESETS, config.GPU_NEUS_PRESETS):
        for name, p in presets.items():
            assert f"| {name} | {p.steps} | {p.rays} | {p.samples} | {p.resolution} px |" in page


def test_the_help_page_of_the_extraction_has_its_defaults():
    page = (REPOSITORY / "web" / "docs" / "V3DExtractMesh.md").read_text(encoding="utf-8")
    neus = pack("nodes.neus")
    assert f"16 to 1024, default {neus.DEFAULT_RESOLUTION}" in page
    assert f"default {neus.DEFAULTS.min_component_share:g} |" in page
