"""Meshes leave upright, unmirrored, in true colours, and only into the output folder."""

import numpy as np
import pytest
import torch
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
