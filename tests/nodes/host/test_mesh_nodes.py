"""Meshes leave upright, unmirrored, in true colours, and only into the output folder."""

import json
import sys

import numpy as np
import pytest
import torch
import trimesh
from scenes import asymmetric_splats, display_colours, open_mesh, orbit_frames, pack


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes always run in it."""
    with torch.inference_mode():
        yield


def mesh_of_the_object(with_views=True):
    structures = pack("v3d_core.structures")
    colours, alphas, cameras = orbit_frames(12, 96)
    views = structures.Views(images=colours, masks=alphas, cameras=cameras)
    splat = pack("nodes.convert").splats_to_host(asymmetric_splats())
    return (
        pack("nodes.mesh")
        .V3DMeshFromSplat.execute(
            splat=splat, resolution=48, smooth=3, min_part=0.0, views=views if with_views else None
        )
        .args[0]
    )


def export(mesh, **inputs):
    node = pack("nodes.mesh").V3DExportMesh
    return node.execute(mesh=mesh, **{"format": "glb", "filename_prefix": "3d/test", **inputs})


def assert_looks_like_the_object(vertices, colours):
    """Red is at +X, green at +Y, blue at +Z: any turn or mirror image puts one elsewhere."""
    saturation = colours.max(1) - colours.min(1)
    for channel, axis in ((0, 0), (1, 1), (2, 2)):
        chosen = (colours.argmax(1) == channel) & (saturation > 0.4)
        assert chosen.sum() > 20, (channel, chosen.sum())
        centre = vertices[chosen].mean(0)
        assert centre.argmax() == axis, (channel, centre)
        assert centre[axis] > 0.35, (channel, centre)


@pytest.mark.parametrize("with_views", [True, False])
def test_mesh_stands_as_the_splat_does(with_views):
    mesh = mesh_of_the_object(with_views)
    assert mesh.unlit
    colours = pack("v3d_core.images").linear_to_srgb(mesh.vertex_colors[0])
    assert_looks_like_the_object(mesh.vertices[0].numpy(), colours.numpy())


@pytest.mark.parametrize("suffix", ["glb", "ply", "obj", "stl"])
def test_exported_files_open_upright_and_unmirrored_in_trimesh(suffix, host_folders):
    mesh = mesh_of_the_object()
    result = export(mesh, format=suffix)
    shown = result.ui["3d"][0]
    assert shown == {"filename": f"test_00001_.{suffix}", "subfolder": "3d", "type": "output"}
    path = host_folders / "output" / "3d" / shown["filename"]
    assert result.args[0].get_source() == str(path)
    opened = open_mesh(path)
    assert len(opened.faces) == mesh.faces.shape[1]
    assert opened.volume > 0  # faces outward
    if suffix == "stl":
        return
    assert_looks_like_the_object(np.asarray(opened.vertices), display_colours(opened, suffix))


def test_cores_glb_writer_takes_our_mesh(host_folders):
    from comfy_extras.nodes_save_3d import SaveGLB

    saver = SaveGLB.PREPARE_CLASS_CLONE(None)
    shown = saver.execute(mesh_of_the_object(), "3d/core").ui["3d"][0]
    opened = open_mesh(host_folders / "output" / "3d" / shown["filename"])
    assert_looks_like_the_object(np.asarray(opened.vertices), display_colours(opened, "glb"))


def test_files_are_numbered_and_every_mesh_of_a_batch_is_saved(host_folders):
    from comfy_api.v0_0_2 import Types

    one = mesh_of_the_object()
    two = Types.MESH(vertices=one.vertices.repeat(2, 1, 1), faces=one.faces.repeat(2, 1, 1))
    export(one, format="stl")
    shown = export(two, format="stl").ui["3d"]
    assert [entry["filename"] for entry in shown] == ["test_00002_.stl", "test_00003_.stl"]


def textured_batch(unlit=False):
    """Two quads with a texture of four colours each; the second is turned upside down in it."""
    from comfy_api.v0_0_2 import Types

    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    uvs = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    quarters = torch.tensor([[[255.0, 0, 0], [0, 255, 0]], [[0, 0, 255], [51, 102, 153]]]) / 255
    texture = quarters.repeat_interleave(8, 0).repeat_interleave(8, 1)
    return Types.MESH(
        vertices=square.repeat(2, 1, 1),
        faces=torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32).repeat(2, 1, 1),
        uvs=torch.stack([uvs, 1 - uvs]),
        texture=texture.repeat(2, 1, 1, 1),
        unlit=unlit,
    )


def quarter_colours(path, suffix):
    """What a reader that is not ours finds at the middles of the quad's quarters, lower left first."""
    opened = trimesh.load(path, force="mesh", process=False)
    material = opened.visual.material
    image = material.baseColorTexture if suffix == "glb" else material.image
    corner = {
        tuple(p.round().astype(int)[:2]): uv for p, uv in zip(opened.vertices, opened.visual.uv)
    }
    found = []
    for x, y in ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)):
        uv = corner[0, 0] + x * (corner[1, 0] - corner[0, 0]) + y * (corner[0, 1] - corner[0, 0])
        found.append(trimesh.visual.color.uv_to_color(uv[None], image)[0, :3].tolist())
    return found


UPRIGHT = [[0, 0, 255], [51, 102, 153], [255, 0, 0], [0, 255, 0]]


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply"])
def test_textures_of_a_batch_are_exported_the_right_way_up(suffix, host_folders):
    shown = export(textured_batch(), format=suffix).ui["3d"]
    assert len(shown) == 2
    for entry, expected in zip(shown, (UPRIGHT, UPRIGHT[::-1]), strict=True):
        path = host_folders / "output" / "3d" / entry["filename"]
        assert quarter_colours(path, suffix) == expected


def test_cores_glb_writer_takes_our_textured_batch(host_folders):
    from comfy_extras.nodes_save_3d import SaveGLB

    convert = pack("nodes.convert")
    batch = convert.meshes_to_host(convert.meshes_from_host(textured_batch()))
    shown = SaveGLB.PREPARE_CLASS_CLONE(None).execute(batch, "3d/core").ui["3d"]
    for entry, expected in zip(shown, (UPRIGHT, UPRIGHT[::-1]), strict=True):
        path = host_folders / "output" / "3d" / entry["filename"]
        assert quarter_colours(path, "glb") == expected
        back = pack("v3d_core.formats.mesh_files").read_mesh(path)
        assert back.normals.tolist() == [[0, 0, 1]] * 4  # core writes none
        assert torch.equal((back.texture * 255).round(), batch.texture[0] * 255)


@pytest.mark.parametrize(
    "unlit, shading, expected",
    [
        (False, "as the mesh says", False),
        (True, "as the mesh says", True),
        (True, "lit", False),
        (False, "unlit", True),
    ],
)
def test_glb_is_unlit_when_the_mesh_or_the_user_says_so(unlit, shading, expected, host_folders):
    shown = export(textured_batch(unlit), shading=shading).ui["3d"]
    data = (host_folders / "output" / "3d" / shown[0]["filename"]).read_bytes()
    assert (b"KHR_materials_unlit" in data) is expected


def test_glb_carries_the_workflow_unless_the_host_forbids_it(host_folders, monkeypatch):
    from comfy.cli_args import args
    from comfy_api.latest import IO

    hidden = IO.HiddenHolder.from_dict(
        {IO.Hidden.prompt: {"1": {}}, IO.Hidden.extra_pnginfo: {"workflow": {"nodes": []}}}
    )
    for disabled in (False, True):
        monkeypatch.setattr(args, "disable_metadata", disabled)
        clone = pack("nodes.mesh").V3DExportMesh.PREPARE_CLASS_CLONE(None)
        clone.hidden = hidden
        entry = clone.execute(mesh=textured_batch(), format="glb", filename_prefix="a").ui["3d"][0]
        data = (host_folders / "output" / entry["filename"]).read_bytes()
        document = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
        kept = {"prompt": '{"1": {}}', "workflow": '{"nodes": []}'}
        assert document["asset"].get("extras") == (None if disabled else kept)


def test_stl_has_the_size_for_the_printer(host_folders):
    for size, longest in ((None, 100), (40.0, 40), (0.0, 1)):
        given = {} if size is None else {"print_size_mm": size}
        shown = export(textured_batch(), format="stl", **given).ui["3d"]
        path = host_folders / "output" / "3d" / shown[0]["filename"]
        assert trimesh.load(path).extents.max() == pytest.approx(longest)


def test_usdz_without_its_package_says_what_it_needs(host_folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    missing = pack("v3d_core.backends").MissingPackageError
    with pytest.raises(missing, match=r"^V3D Export Mesh: .*pip install usd-core"):
        export(textured_batch(), format="usdz")
    assert not list((host_folders / "output").rglob("*.*"))


def test_usdz_is_written(host_folders):
    pytest.importorskip("pxr")
    (first, _) = export(textured_batch(), format="usdz").ui["3d"]
    assert (host_folders / "output" / "3d" / first["filename"]).read_bytes()[:4] == b"PK\x03\x04"


def test_an_unknown_format_and_broken_meshes_are_refused(host_folders):
    with pytest.raises(ValueError, match=r"^V3D Export Mesh: .*'\.exe'; known are \.glb"):
        export(textured_batch(), format="exe")
    broken = textured_batch()
    broken.vertices[1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^V3D Export Mesh: mesh 1 of 2: .*1 of 12 .*NaN"):
        export(broken)
    broken = textured_batch()
    broken.faces[0, 1, 2] = 4
    with pytest.raises(ValueError, match=r"mesh 0 of 2: .*0 to 4, but there are 4 vertices"):
        export(broken)
    assert not list((host_folders / "output").rglob("*.*"))


@pytest.mark.parametrize("prefix", ["../evil", "3d/../../evil", "/tmp/evil", "..", ""])
def test_names_that_leave_the_output_folder_are_refused(prefix, host_folders):
    with pytest.raises(ValueError, match=r"^V3D Export Mesh: .*leads out of the output folder"):
        export(mesh_of_the_object(), filename_prefix=prefix)
    assert not list(host_folders.rglob("*evil*"))


def test_an_output_folder_that_cannot_be_made_is_named(host_folders):
    (host_folders / "output" / "3d").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"^V3D Export Mesh: .*3d"):
        export(mesh_of_the_object())


def test_an_empty_mesh_is_refused(host_folders):
    from comfy_api.v0_0_2 import Types

    empty = Types.MESH(
        vertices=torch.zeros(1, 3, 3),
        faces=torch.zeros(1, 5, 3, dtype=torch.int64),
        vertex_counts=torch.tensor([3]),
        face_counts=torch.tensor([0]),
    )
    with pytest.raises(ValueError, match=r"^V3D Export Mesh: mesh 0 of 1 is empty"):
        export(empty)
