"""V3D Clean Mesh in the host: meshes of any node come out lighter, whole and in their colours."""

import json

import pytest
import torch
import trimesh
from scenes import pack


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes always run in it."""
    with torch.inference_mode():
        yield


WIDGETS = {"faces": 500, "max_error": 100.0, "smooth": 0, "fill_holes": 64}
WIDGETS |= {"min_part": 0.01, "drop_hidden": True}


def clean(mesh, **inputs):
    node = pack("nodes.clean").V3DCleanMesh
    mesh, report = node.execute(mesh=mesh, **{**WIDGETS, **inputs}).args
    return mesh, json.loads(report)


def ball(radius=0.7, subdivisions=4):
    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(shape.faces)


def foreign(dtype=torch.int64, **extras):
    from comfy_api.v0_0_2 import Types

    vertices, faces = ball()
    return Types.MESH(vertices=vertices[None], faces=faces[None].to(dtype), **extras)


def opened(mesh, index=0):
    vertices = slice(None if mesh.vertex_counts is None else int(mesh.vertex_counts[index]))
    faces = slice(None if mesh.face_counts is None else int(mesh.face_counts[index]))
    return trimesh.Trimesh(
        mesh.vertices[index][vertices].numpy(), mesh.faces[index][faces].numpy(), process=False
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_closed_mesh_gets_lighter_and_stays_closed(dtype):
    mesh, report = clean(foreign(dtype))
    shape = opened(mesh)
    assert shape.is_watertight and shape.volume > 1.3 and len(shape.faces) <= 500
    assert report["watertight"] and report["faces"] == len(shape.faces)
    assert 0 < report["decimation_error"]["high"] < 0.01


def test_the_bound_is_in_percent():
    _, report = clean(foreign(), faces=50, max_error=0.3)
    assert report["decimation_error"]["high"] <= 0.003
    assert report["decimation_stopped_by"] == "max_error" and report["faces"] > 50


def test_vertex_colours_stay_what_they_are():
    vertices, _ = ball()
    linear = ((vertices + 1) / 2)[None]
    mesh, _ = clean(foreign(vertex_colors=linear))
    assert mesh.unlit
    torch.testing.assert_close(mesh.vertex_colors, (mesh.vertices + 1) / 2, atol=0.02, rtol=0)


def test_a_texture_stays_without_decimation_and_becomes_colours_with_it():
    vertices, _ = ball()
    uvs = (vertices[:, :2] / 1.4 + 0.5)[None]
    ramp = (torch.arange(64).float() + 0.5) / 64
    texture = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), 0 * ramp.expand(64, 64)], -1)  # fmt: skip
    given = foreign(uvs=uvs, texture=texture[None])
    kept, report = clean(given, faces=0)
    assert report["texture"] == "kept" and torch.equal(kept.texture, texture[None])
    assert not kept.unlit and kept.uvs.shape[:2] == kept.vertices.shape[:2]
    light, report = clean(given)
    assert report["texture"] == "became vertex colours" and light.texture is None and light.unlit
    colours = pack("v3d_core.images").linear_to_srgb(light.vertex_colors)
    expected = light.vertices[..., :2] / 1.4 + 0.5
    assert (colours[..., :2] - expected).abs().max() < 0.05


def test_every_mesh_of_a_batch_is_cleaned_without_its_padding():
    from comfy_api.v0_0_2 import Types

    (big, big_faces), (small, small_faces) = ball(0.7, 4), ball(0.3, 2)
    vertices, faces = torch.zeros(2, len(big), 3), torch.zeros(2, len(big_faces), 3).long()
    vertices[0], faces[0] = big, big_faces
    vertices[1, : len(small)], faces[1, : len(small_faces)] = small, small_faces
    batch = Types.MESH(
        vertices=vertices,
        faces=faces,
        vertex_counts=torch.tensor([len(big), len(small)]),
        face_counts=torch.tensor([len(big_faces), len(small_faces)]),
    )
    mesh, reports = clean(batch)
    assert [report["faces_before"] for report in reports] == [5120, 320]
    assert len(opened(mesh, 0).faces) <= 500 and len(opened(mesh, 1).faces) == 320
    assert opened(mesh, 0).is_watertight and opened(mesh, 1).is_watertight


def test_a_batch_has_its_texture_on_all_meshes_or_on_none():
    from comfy_api.v0_0_2 import Types

    vertices, faces = ball()
    uvs = (vertices[:, :2] / 1.4 + 0.5).expand(2, -1, -1)
    torn = faces.clone()
    torn[0] = torn[1]  # one face less: a hole to fill
    batch = Types.MESH(
        vertices=vertices.expand(2, -1, -1), faces=torch.stack([faces, torn]), uvs=uvs,
        texture=torch.full((2, 8, 8, 3), 0.5),
    )  # fmt: skip
    mesh, reports = clean(batch, faces=0)
    assert [report["texture"] for report in reports] == ["kept", "became vertex colours"]
    assert mesh.texture is None and mesh.uvs is None
    colours = pack("v3d_core.images").linear_to_srgb(mesh.vertex_colors[:, :100])
    torch.testing.assert_close(colours, torch.full_like(colours, 0.5))


class BallField:
    """What V3D Fit NeuS hands on, with a ball of radius 0.5 whose gradient has length 2."""

    half_size, device = 0.6, torch.device("cpu")
    centre = torch.zeros(3)

    def sdf_and_gradient(self, points):
        length = points.norm(dim=-1, keepdim=True)
        return 2 * (length[:, 0] - 0.5), 2 * points / length


def test_vertices_are_laid_onto_the_connected_field_but_not_those_on_its_cube():
    vertices, faces = ball(0.503)
    vertices[0] = torch.tensor([0.0, 0.6, 0.0])  # on the side of the cube
    from comfy_api.v0_0_2 import Types

    given = Types.MESH(vertices=vertices[None], faces=faces[None])
    mesh, report = clean(given, faces=0, sdf=BallField())
    laid = mesh.vertices[0]
    assert torch.equal(laid[0], vertices[0])
    assert ((laid[1:].norm(dim=-1) - 0.5).abs() < 1e-5).float().mean() > 0.98
    assert report["field_distance"] < report["field_distance_before"]


def test_a_mesh_without_faces_and_a_broken_one_are_refused_under_the_nodes_name():
    from comfy_api.v0_0_2 import Types

    vertices, faces = ball()
    empty = Types.MESH(vertices=vertices[None], faces=faces[None, :0])
    with pytest.raises(ValueError, match=r"^V3D Clean Mesh: mesh 0 of 1 is empty"):
        clean(empty)
    out = Types.MESH(vertices=vertices[None], faces=faces[None] + 1)
    with pytest.raises(ValueError, match=r"^V3D Clean Mesh: .*but there are 2562 vertices"):
        clean(out)
    nan = Types.MESH(vertices=vertices[None] * torch.nan, faces=faces[None])
    with pytest.raises(ValueError, match=r"^V3D Clean Mesh: .*finite"):
        clean(nan)


@pytest.mark.parametrize("drop_hidden", [True, False])
def test_a_hidden_part_goes_only_when_it_is_asked_for(drop_hidden):
    from comfy_api.v0_0_2 import Types

    (outer, outer_faces), (inner, inner_faces) = ball(0.7, 3), ball(0.2, 2)
    vertices = torch.cat([outer, inner])[None]
    faces = torch.cat([outer_faces, inner_faces + len(outer)])[None]
    given = Types.MESH(vertices=vertices, faces=faces)
    mesh, report = clean(given, faces=0, min_part=0.0, drop_hidden=drop_hidden)
    assert report["hidden_part_faces"] == (len(inner_faces) if drop_hidden else 0)
    assert mesh.faces.shape[1] == len(outer_faces) + (0 if drop_hidden else len(inner_faces))


def test_the_line_under_the_node_says_what_was_done():
    report = {
        "faces_before": 811920, "faces": 20000, "watertight": True, "texture": "uvs dropped",
        "decimation_error": {"high": 0.00011}, "decimation_stopped_by": None, "open_edges": 0,
        "holes_filled": 2, "turned_faces": 0, "small_part_faces": 0, "hidden_part_faces": 7,
    }  # fmt: skip
    assert pack("nodes.clean").summary(report) == (
        "811,920 faces became 20,000, moved by 0.011 % of the diagonal, 2 holes filled, "
        "7 hidden faces dropped, watertight, uvs dropped"
    )
