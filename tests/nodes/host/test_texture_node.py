"""V3D Refine Texture in the host: meshes of any node get the colours that views have of them."""

import dataclasses
import json

import comfy.utils
import numpy as np
import pytest
import torch
import trimesh
from comfy import model_management
from live_tensors import live_tensor_bytes
from prompts import DEMO, QUICK_FIT, node
from scenes import pack

RADIUS = 0.7
ABOVE = torch.tensor([0.0, 500.0, 0.0])  # where no camera looks
WIDGETS = {"texture_size": 128, "frames": "agree", "new_uvs": False, "num_views": 0}
WIDGETS |= {"lpips_weight": 0.0, "iterations": 0}


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes always run in it."""
    with torch.inference_mode():
        yield


def execute(mesh, views, **inputs):
    chosen = pack("nodes.texture").V3DRefineTexture
    return chosen.execute(mesh=mesh, views=views, **{**WIDGETS, **inputs}).args


def ball(radius=RADIUS, subdivisions=3):
    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(shape.faces)


def foreign(dtype=torch.float32, index=torch.int64, **extras):
    from comfy_api.v0_0_2 import Types

    vertices, faces = ball()
    extras = {name: value.to(dtype)[None] for name, value in extras.items()}
    return Types.MESH(vertices=vertices.to(dtype)[None], faces=faces.to(index)[None], **extras)


def paint(points):
    """Red grows along X, green along Y, blue along Z: no turn or mirror image looks the same."""
    return (0.5 + 0.45 * torch.nn.functional.normalize(points, dim=-1)).clamp(0, 1)


@pytest.fixture(scope="module")
def views():
    """Pictures of the painted ball, 12 all around at two heights."""
    cameras = pack("v3d_core.cameras")
    both = [
        cameras.orbit_cameras(cameras.Orbit(num_views=6, elevation_deg=height), 96, 96)
        for height in (-35.0, 35.0)
    ]
    kind = pack("v3d_core.structures")
    around = kind.Cameras(
        torch.cat([part.camera_to_world for part in both]),
        torch.cat([part.K for part in both]),
        96,
        96,
    )
    queries = pack("v3d_core.mesh_queries")
    surface = queries.MeshQueries(*ball(RADIUS, 4))
    hits = queries.cast_pixels(surface, around)
    points = surface.points(hits.face.flatten(), hits.barycentric.reshape(-1, 3))
    colours = paint(points.view(12, 96, 96, 3))
    return kind.Views(colours, (hits.face >= 0).float(), around)


@pytest.fixture
def told(monkeypatch):
    """Steps of the bar and the pictures beside it."""
    found = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda *step, **_: found.append((*step[:3],))
    )
    return found


def item(mesh, index=0):
    """One mesh of a batch: vertices, faces, uvs, without padding."""
    counts = mesh.vertex_counts, mesh.face_counts
    vertices, faces = (slice(None if n is None else int(n[index])) for n in counts)
    return mesh.vertices[index][vertices], mesh.faces[index][faces], mesh.uvs[index][vertices]


def assert_painted(mesh, unseen, index=0):
    """The texels under the middles of faces that views saw have the colour of their place."""
    vertices, faces, uvs = item(mesh, index)
    texture = mesh.texture[index]
    side = len(texture)
    texels = (uvs[faces].mean(1) * side).long().clamp(0, side - 1)
    seen = unseen[index, texels[:, 1], texels[:, 0]] == 0
    assert seen.float().mean() > 0.8
    found = texture[texels[:, 1], texels[:, 0]]
    error = (found - paint(vertices[faces].mean(1))).abs()[seen]
    assert error.mean() < 0.02 and error.quantile(0.99) < 0.08, (error.mean(), error.max())


# --- what comes out -----------------------------------------------------------------------------


def test_a_mesh_without_uvs_is_unwrapped_and_painted(views):
    mesh, texture, unseen, report = execute(foreign(), views)
    assert texture.shape == (1, 128, 128, 3) and texture.dtype == torch.float32
    assert unseen.shape == (1, 128, 128) and unseen.dtype == torch.float32
    assert set(unseen.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(mesh.texture, texture)
    assert mesh.unlit  # the pictures hold their light
    assert len(item(mesh)[1]) == 1280
    assert_painted(mesh, unseen)
    figures = json.loads(report)
    assert figures["texture"]["resolution"] == 128 and figures["texture"]["views"] == 12
    assert figures["texture"]["db"] > 35 and figures["views"] == "taken as they are"
    for value in (mesh.vertices, mesh.uvs, texture, unseen):
        assert value.device.type == "cpu" and not value.requires_grad


def test_the_unseen_are_marked(views):
    above = views[range(6, 12)]  # those that look down
    mesh, _, unseen, _ = execute(foreign(), above)
    vertices, faces, uvs = item(mesh)
    texels = (uvs[faces].mean(1) * 128).long().clamp(0, 127)
    marked = unseen[0, texels[:, 1], texels[:, 0]] > 0.5
    height = vertices[faces].mean(1)[:, 1] / RADIUS
    assert marked[height < -0.9].all() and not marked[height > -0.2].any()


@pytest.mark.parametrize("colours", [False, True])
def test_cores_glb_has_the_texture_alone(colours, views, host_folders):
    from comfy_extras.nodes_save_3d import SaveGLB

    # colours of the mesh would darken the texture in every viewer
    extras = {"vertex_colors": torch.full_like(ball()[0], 0.2)} if colours else {}
    mesh, texture, _, _ = execute(foreign(**extras), views)
    saver = SaveGLB.PREPARE_CLASS_CLONE(None)
    (shown,) = saver.execute(mesh, "3d/textured").ui["3d"]
    path = host_folders / "output" / "3d" / shown["filename"]
    assert b"COLOR_0" not in path.read_bytes()
    assert_file_is_painted(path, texture)


@pytest.mark.parametrize("suffix", ["glb", "obj"])
def test_our_files_have_it_too(suffix, views, host_folders):
    mesh, texture, _, _ = execute(foreign(), views)
    export = pack("nodes.mesh").V3DExportMesh
    (shown,) = export.execute(mesh=mesh, format=suffix, filename_prefix="3d/textured").ui["3d"]
    assert_file_is_painted(host_folders / "output" / "3d" / shown["filename"], texture)


def assert_file_is_painted(path, texture=None):
    """What a reader that is not ours finds at the middles of faces."""
    opened = trimesh.load(path, force="mesh", process=False)
    assert opened.volume > 0
    material = opened.visual.material
    image = getattr(material, "baseColorTexture", None) or material.image
    if texture is not None:
        stored = np.asarray(image.convert("RGB"), np.float64) / 255
        assert np.abs(stored - texture[0].double().numpy()).max() <= 1 / 255 + 1e-6
    middles = opened.visual.uv[opened.faces].mean(1)
    found = trimesh.visual.color.uv_to_color(middles, image)[:, :3] / 255
    expected = paint(torch.tensor(opened.triangles_center)).numpy()
    side_on = np.abs(opened.triangles_center[:, 1]) < 0.8 * RADIUS
    assert np.abs(found - expected)[side_on].mean() < 0.02


# --- what may come in ---------------------------------------------------------------------------


def test_every_mesh_of_a_batch_is_textured_without_its_padding(views, told):
    from comfy_api.v0_0_2 import Types

    (big, big_faces), (small, small_faces) = ball(), ball(0.97 * RADIUS, 2)
    vertices, faces = torch.zeros(2, len(big), 3), torch.zeros(2, len(big_faces), 3).long()
    vertices[0], faces[0] = big, big_faces
    vertices[1, : len(small)], faces[1, : len(small_faces)] = small, small_faces
    batch = Types.MESH(
        vertices=vertices,
        faces=faces,
        vertex_counts=torch.tensor([len(big), len(small)]),
        face_counts=torch.tensor([len(big_faces), len(small_faces)]),
    )
    mesh, texture, unseen, reports = execute(batch, views)
    assert texture.shape == (2, 128, 128, 3) and unseen.shape == (2, 128, 128)
    assert [len(item(mesh, index)[1]) for index in (0, 1)] == [1280, 320]
    assert len(json.loads(reports)) == 2
    assert_painted(mesh, unseen, 0)
    assert_painted(mesh, unseen, 1)
    steps = [step for step, _, _ in told]
    assert steps == sorted(steps) and len({total for _, total, _ in told}) == 1
    assert steps[-1] == told[-1][1]  # one bar for both


@pytest.mark.parametrize(
    "dtype, index", [(torch.float32, torch.int32), (torch.float16, torch.int64)]
)
def test_uvs_of_another_node_stay_unless_new_ones_are_asked_for(dtype, index, views):
    vertices, faces, uvs = item(execute(foreign(), views)[0])
    uvs = uvs / 2 + 0.25
    from comfy_api.v0_0_2 import Types

    given = Types.MESH(
        vertices=vertices.to(dtype)[None],
        faces=faces.to(index)[None],
        uvs=uvs.to(dtype)[None],
        texture=torch.zeros(1, 32, 32, 3, dtype=dtype),
    )
    before = given.uvs.clone(), given.texture.clone(), given.faces.clone()
    mesh, texture, unseen, _ = execute(given, views)
    assert torch.equal(mesh.uvs, given.uvs.float())
    assert torch.equal(mesh.faces, given.faces.long()) and texture.shape == (1, 128, 128, 3)
    assert_painted(mesh, unseen)
    again, _, unseen, _ = execute(given, views, new_uvs=True)
    assert again.uvs.max() - again.uvs.min() > 0.9 > mesh.uvs.max() - mesh.uvs.min()
    assert_painted(again, unseen)
    for value, old in zip((given.uvs, given.texture, given.faces), before, strict=True):
        assert torch.equal(value, old)


def test_frames_decide_about_laying_views_on_the_surface(views):
    shifted = dataclasses.replace(
        views,
        images=torch.stack([image.roll((-1) ** v * 2, 1) for v, image in enumerate(views.images)]),
        masks=torch.stack([mask.roll((-1) ** v * 2, 1) for v, mask in enumerate(views.masks)]),
    )

    def decided(frames, pictures):
        return json.loads(execute(foreign(), pictures, frames=frames)[3])["views"]

    assert decided("agree", shifted) == "taken as they are"
    assert decided("disagree", shifted) == "disagree"
    assert decided("auto", shifted) == "disagree"
    assert decided("auto", views) == "agree"


@pytest.mark.parametrize("asked, used", [(5, 5), (4096, 12)])
def test_as_many_views_are_used_as_there_are(asked, used, views):
    assert json.loads(execute(foreign(), views, num_views=asked)[3])["texture"]["views"] == used


def test_extra_steps_are_made(views):
    plain, stepped = (execute(foreign(), views, iterations=count)[1] for count in (0, 12))
    assert 0 < (plain - stepped).abs().mean() < 0.02


# --- while it works -----------------------------------------------------------------------------


def test_the_shape_moves_to_where_the_views_see_it_unless_told_to_stay(views):
    wide = foreign()
    wide.vertices = wide.vertices * 1.03  # the views show a smaller ball
    stays, _, _, report = execute(wide, views, refine_geometry=False)
    assert "geometry" not in json.loads(report)
    assert float((item(stays)[0].norm(dim=1) - 1.03 * RADIUS).abs().max()) < 1e-4 * RADIUS
    moved, _, _, report = execute(wide, views)
    told = json.loads(report)
    assert told["geometry"]["kept"] and told["geometry"]["moved_px"] > 0.3
    radii = item(moved)[0].norm(dim=1)
    assert float((radii - RADIUS).abs().mean()) < 0.3 * 0.03 * RADIUS
    disagree = execute(wide, views, frames="disagree")[3]
    assert json.loads(disagree)["geometry"] == {"kept": False, "views": "disagree"}


def test_the_bar_moves_and_shows_the_first_view(views, told, monkeypatch):
    monkeypatch.setattr(pack("nodes.runtime"), "PREVIEW_INTERVAL_S", 0.0)
    execute(foreign(), views)
    pictures = [picture for _, _, picture in told if picture is not None]
    assert pictures and len({step for step, _, _ in told}) > 5
    kind, picture, _ = pictures[-1]
    assert kind == "JPEG" and picture.size == (96, 96)
    shown = torch.tensor(np.asarray(picture)) / 255
    first = pack("v3d_core.images").composite(views.images[0], views.masks[0])
    assert (shown - first).abs().mean() < 0.02


@pytest.mark.parametrize("call", [3, 30, 60])
def test_cancel_is_heard_and_frees_everything(call, views, monkeypatch):
    execute(foreign(), views)
    before = live_tensor_bytes()
    throw, calls = model_management.throw_exception_if_processing_interrupted, []

    def heard():
        calls.append(1)
        if len(calls) == call:
            model_management.interrupt_current_processing(True)
        throw()

    monkeypatch.setattr(model_management, "throw_exception_if_processing_interrupted", heard)
    with pytest.raises(model_management.InterruptProcessingException) as caught:
        execute(foreign(), views)
    assert len(calls) == call
    del caught
    assert live_tensor_bytes() == before


def test_nothing_stays_behind(views):
    execute(foreign(), views)
    before = live_tensor_bytes()
    result = execute(foreign(), views)
    assert live_tensor_bytes() > before
    del result
    assert live_tensor_bytes() == before


def test_views_and_mesh_stay_as_they_were(views):
    images, masks = views.images.clone(), views.masks.clone()
    given = foreign()
    vertices = given.vertices.clone()
    execute(given, views, frames="disagree")
    assert torch.equal(views.images, images) and torch.equal(views.masks, masks)
    assert torch.equal(given.vertices, vertices)


# --- wrong input --------------------------------------------------------------------------------


def test_wrong_input_is_refused_under_the_nodes_name(views):
    from comfy_api.v0_0_2 import Types

    vertices, faces = ball()
    far = Types.MESH(vertices=vertices[None] + ABOVE, faces=faces[None])
    with pytest.raises(
        ValueError, match=r"^V3D Refine Texture: mesh 0 of 1: 12 of 12 views see nothing"
    ):
        execute(far, views)
    with pytest.raises(ValueError, match=r"^V3D Refine Texture: .*none of the 12 cameras sees"):
        execute(far, views, frames="auto")
    empty = Types.MESH(vertices=vertices[None], faces=faces[None, :0])
    with pytest.raises(ValueError, match=r"^V3D Refine Texture: mesh 0 of 1 is empty"):
        execute(empty, views)
    turned = Types.MESH(vertices=vertices[None], faces=faces[None].flip(-1))
    with pytest.raises(
        ValueError, match=r"^V3D Refine Texture: mesh 0 of 1: the mesh is inside out"
    ):
        execute(turned, views)
    nan = Types.MESH(vertices=vertices[None] * torch.nan, faces=faces[None])
    with pytest.raises(ValueError, match=r"^V3D Refine Texture: .*finite"):
        execute(nan, views)
    tiled = foreign(uvs=3 * vertices[:, :2])
    with pytest.raises(ValueError, match=r"^V3D Refine Texture: .*unwrap the mesh again"):
        execute(tiled, views)
    with pytest.raises(ValueError, match=r"^V3D Refine Texture: .*set iterations"):
        execute(foreign(), views, lpips_weight=1.0)


def test_a_broken_mesh_of_a_batch_is_named(views):
    from comfy_api.v0_0_2 import Types

    vertices, faces = ball()
    batch = Types.MESH(
        vertices=torch.stack([vertices, vertices + ABOVE]), faces=faces.expand(2, -1, -1)
    )
    with pytest.raises(ValueError, match=r"^V3D Refine Texture: mesh 1 of 2: 12 of 12 views see"):
        execute(batch, views)


def test_a_missing_package_is_named(views, monkeypatch):
    backends = pack("v3d_core.backends")
    monkeypatch.setattr(backends, "load_lpips_network", lambda: (None, "pip install lpips"))
    with pytest.raises(
        backends.MissingPackageError, match=r"^V3D Refine Texture: .*pip install lpips"
    ):
        execute(foreign(), views, lpips_weight=1.0, iterations=1)


def test_the_line_under_the_node_says_what_was_done():
    texture = {"resolution": 1024, "views": 18, "db": 31.256, "seen_share": 0.914}
    assert pack("nodes.texture").summary({"texture": texture, "seconds": 12.34}) == (
        "1024 px from 18 views, 31.26 dB, 91 % seen, 12.3 s"
    )


# --- in a running server ------------------------------------------------------------------------


def graph(**refine):
    """Demo frames to a textured file; node 6 refines, node 7 saves."""
    widgets = {**WIDGETS, "texture_size": 256, "frames": "auto", **refine}
    cleaning = {"max_error": 100.0, "smooth": 0, "fill_holes": 64, "min_part": 0.01}
    fit = {"seed": 0, "views_per_step": 0, "sh_degree": -1, **QUICK_FIT}
    export = {"format": "glb", "shading": "as the mesh says", "print_size_mm": 100.0}
    return {
        "1": node("V3DLoadViews", folder=DEMO, split="train"),
        "2": node("V3DFitSplat", views=["1", 0], **fit),
        "3": node(
            "V3DMeshFromSplat",
            splat=["2", 0],
            views=["1", 0],
            resolution=64,
            smooth=3,
            min_part=0.02,
        ),
        "5": node("V3DCleanMesh", mesh=["3", 0], faces=4000, drop_hidden=True, **cleaning),
        "6": node("V3DRefineTexture", mesh=["5", 0], views=["1", 0], **widgets),
        "7": node("V3DExportMesh", mesh=["6", 0], filename_prefix="3d/refined", **export),
        "8": node("PreviewImage", images=["6", 1]),
        "9": node("MaskToImage", mask=["6", 2]),
        "10": node("PreviewImage", images=["9", 0]),
        "11": node("PreviewAny", source=["6", 3]),
    }


def test_frames_become_a_textured_file(server):
    run = server.run(graph())
    assert run.ended == "execution_success", run.error
    (shown,) = run.outputs["7"]["3d"]
    path = server.base / "output" / shown["subfolder"] / shown["filename"]
    opened = trimesh.load(path, force="mesh", process=False)
    assert opened.visual.material.baseColorTexture.size == (256, 256)
    assert 1000 < len(opened.faces) <= 4000
    report = json.loads(run.outputs["11"]["text"][0])
    assert report["texture"]["db"] > 20
    steps = [d["value"] for _, kind, d in run.events if kind == "progress" and d["node"] == "6"]
    assert steps == sorted(steps) and len(steps) > 20
    assert any("Solving" in text or "px from 18 views" in text for text in run.texts)


def test_cancel_stops_it_within_a_second(server):
    run = server.run(
        graph(iterations=100_000),
        interrupt_when=lambda kind, d: (
            kind == "progress" and d.get("node") == "6" and d["value"] > 0.9 * d["max"]
        ),
    )
    assert run.ended == "execution_interrupted", run.error
    assert run.seconds_to_stop() < 1.0
