"""Values cross between ComfyUI and v3d_core without turning, mirroring or changing colour."""

import dataclasses
import math

import pytest
import torch
from scenes import asymmetric_splats, orbit_frames, pack


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes always run in it."""
    with torch.inference_mode():
        yield


def core_render(splat, camera_info, size=64, background=(1.0, 1.0, 1.0)):
    from comfy_extras.nodes_gaussian_splat import RenderSplat

    hexes = "#" + "".join(f"{round(255 * c):02x}" for c in background)
    result = RenderSplat.execute(
        splat, size, size, 1, 1.0, 1.0, 0.0, 0.0, hexes, "color", camera_info=camera_info
    )
    return result.args[0][0]


def psnr(a, b):
    return -10 * math.log10(float(((a - b) ** 2).mean()))


def test_splats_survive_the_way_to_the_host_and_back():
    convert = pack("nodes.convert")
    splats = asymmetric_splats(degree=3)
    back = convert.splats_from_host(convert.splats_to_host(splats))
    for name in ("means", "scales", "quats", "opacities", "sh"):
        torch.testing.assert_close(getattr(back, name), getattr(splats, name))


def test_host_splat_is_upside_down_and_turned_as_splat_files_are():
    splats = asymmetric_splats()
    splat = pack("nodes.convert").splats_to_host(splats)
    torch.testing.assert_close(splat.positions[0, :, 0], splats.means[:, 0])
    torch.testing.assert_close(splat.positions[0, :, 1:], -splats.means[:, 1:])
    assert splat.opacities.shape == (1, len(splats), 1)


@pytest.mark.parametrize("frame", [0, 1, 4])
def test_core_renders_our_splat_upright_and_unmirrored_from_our_camera(frame):
    convert = pack("nodes.convert")
    colours, _, cameras = orbit_frames()
    info = convert.camera_info_from_cameras(cameras, frame)
    ours, core = colours[frame], core_render(convert.splats_to_host(asymmetric_splats()), info)
    # core composites in linear light and is half a pixel off, so agreement is not exact
    same, mirrored, flipped = psnr(core, ours), psnr(core.flip(1), ours), psnr(core.flip(0), ours)
    assert same > 22, same
    assert same > mirrored + 4, (same, mirrored)
    assert same > flipped + 4, (same, flipped)


def test_camera_info_is_what_core_makes_for_the_same_orbit():
    from comfy_extras.nodes_gaussian_splat import CreateCameraInfo

    cameras_module = pack("v3d_core.cameras")
    cameras = cameras_module.orbit_cameras(cameras_module.Orbit(elevation_deg=25.0), 512, 512)
    for frame, azimuth in ((0, 0.0), (2, 40.0), (12, 240.0)):
        ours = pack("nodes.convert").camera_info_from_cameras(cameras, frame)
        mode = {"mode": "orbit", "yaw": azimuth, "pitch": 25.0, "distance": 2.0}
        core = CreateCameraInfo.execute(mode, 0.0, 0.0, 0.0, 0.0, 60.0).args[0]
        for key in ("position", "target"):
            assert ours[key] == pytest.approx(core[key], abs=1e-5), key
        sign = math.copysign(1, sum(ours["quaternion"][k] * core["quaternion"][k] for k in "xyzw"))
        turned = {k: sign * v for k, v in ours["quaternion"].items()}
        assert turned == pytest.approx(core["quaternion"], abs=1e-5)
        assert ours["fov"] == pytest.approx(60.0, abs=1e-4)


def test_orbit_starts_where_a_start_camera_stands():
    convert, cameras_module = pack("nodes.convert"), pack("v3d_core.cameras")
    orbit = cameras_module.Orbit(
        num_views=7, radius=3.0, elevation_deg=-20, azimuth_start_deg=75, fov_y_deg=40
    )
    cameras = cameras_module.orbit_cameras(orbit, 64, 64)
    info = convert.camera_info_from_cameras(cameras, 0)
    found = convert.orbit_from_camera_info(info, cameras_module.Orbit(num_views=7))
    again = cameras_module.orbit_cameras(found, 64, 64)
    torch.testing.assert_close(again.camera_to_world, cameras.camera_to_world, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.K, cameras.K, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ({"cameraType": "orthographic", "position": {"z": 2}}, "orthographic"),
        ({"position": {"x": 1}, "target": {"x": 1}}, "its own target"),
    ],
)
def test_start_cameras_that_define_no_orbit_are_refused(info, text):
    with pytest.raises(ValueError, match=text):
        pack("nodes.convert").orbit_from_camera_info(info, pack("v3d_core.cameras").Orbit())


def test_padding_of_a_host_splat_is_dropped_and_batches_are_refused():
    from comfy_api.v0_0_2 import Types

    convert = pack("nodes.convert")
    splat = convert.splats_to_host(asymmetric_splats())
    fields = ("positions", "scales", "rotations", "opacities", "sh")
    padded = {
        name: torch.cat([getattr(splat, name), torch.zeros_like(getattr(splat, name)[:, :9])], 1)
        for name in fields
    }
    count = splat.positions.shape[1]
    assert (
        len(convert.splats_from_host(Types.SPLAT(**padded, counts=torch.tensor([count])))) == count
    )
    twice = {name: tensor.repeat(2, *[1] * (tensor.ndim - 1)) for name, tensor in padded.items()}
    with pytest.raises(ValueError, match="2 splats came in one batch but 1 is needed"):
        convert.splats_from_host(Types.SPLAT(**twice))
    empty = Types.SPLAT(**padded, counts=torch.tensor([0]))
    with pytest.raises(ValueError, match="0 Gaussians"):
        convert.splats_from_host(empty)


def coloured_mesh(mesh_type):
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    colours = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0, 0], [0, 0.2, 0], [0, 0, 1.0]])
    return mesh_type(vertices, faces, vertex_colours=colours)


def test_meshes_survive_the_way_to_the_host_and_back():
    convert = pack("nodes.convert")
    mesh = coloured_mesh(pack("v3d_core.structures").Mesh)
    (back,) = convert.meshes_from_host(convert.mesh_to_host(mesh))
    torch.testing.assert_close(back.vertices, mesh.vertices)
    torch.testing.assert_close(back.vertex_colours, mesh.vertex_colours)
    assert torch.equal(back.faces, mesh.faces)


def test_vertex_colours_leave_linear_and_unlit():
    host = pack("nodes.convert").mesh_to_host(coloured_mesh(pack("v3d_core.structures").Mesh))
    assert host.unlit
    # sRGB 0.5 is 0.2140 in linear light (IEC 61966-2-1)
    assert float(host.vertex_colors[0, 0, 0]) == pytest.approx(0.21404, abs=1e-4)


def foreign_batch():
    """Two textured meshes of different size as other packs make them: int32, float16, RGBA."""
    from comfy_api.v0_0_2 import Types

    generator = torch.Generator().manual_seed(3)
    vertices = torch.rand(2, 6, 3, generator=generator)
    vertices[1, 4:] = float("nan")  # padding may hold anything
    faces = torch.tensor([[[0, 1, 2], [3, 4, 5]], [[1, 3, 2], [99, 99, 99]]], dtype=torch.int32)
    return Types.MESH(
        vertices=vertices,
        faces=faces,
        uvs=torch.rand(2, 6, 2, generator=generator),
        vertex_colors=torch.rand(2, 6, 4, generator=generator).half(),
        texture=torch.rand(2, 8, 16, 3, generator=generator),
        vertex_counts=torch.tensor([6, 4]),
        face_counts=torch.tensor([2, 1]),
        unlit=True,
    )


def test_everything_of_a_foreign_batch_comes_in_and_leaves_again():
    convert, images = pack("nodes.convert"), pack("v3d_core.images")
    host = foreign_batch()
    meshes = convert.meshes_from_host(host)
    assert [(len(m.vertices), len(m.faces)) for m in meshes] == [(6, 2), (4, 1)]
    for index, mesh in enumerate(meshes):
        count = len(mesh.vertices)
        assert mesh.faces.dtype == torch.int64
        assert torch.equal(mesh.faces, host.faces[index, : len(mesh.faces)].long())
        assert torch.equal(mesh.vertices, host.vertices[index, :count])
        assert torch.equal(mesh.uvs, host.uvs[index, :count])
        assert torch.equal(mesh.texture, host.texture[index])
        linear = images.srgb_to_linear(mesh.vertex_colours)
        torch.testing.assert_close(
            linear, host.vertex_colors[index, :count, :3].float(), atol=1e-5, rtol=0
        )
    back = convert.meshes_to_host(meshes, convert.is_unlit(host))
    assert back.unlit and not convert.meshes_to_host(meshes, False).unlit
    assert back.vertex_counts.tolist() == [6, 4] and back.face_counts.tolist() == [2, 1]
    for mesh, again in zip(meshes, convert.meshes_from_host(back), strict=True):
        for name in ("vertices", "faces", "uvs", "texture", "vertex_colours"):
            torch.testing.assert_close(getattr(again, name), getattr(mesh, name), atol=1e-6, rtol=0)


def test_what_a_batch_cannot_hold_is_refused_with_sizes():
    convert = pack("nodes.convert")
    first, second = convert.meshes_from_host(foreign_batch())
    small = dataclasses.replace(second, texture=second.texture[:4])
    with pytest.raises(ValueError, match=r"one size, these have \[\[8, 16, 3\], \[4, 16, 3\]\]"):
        convert.meshes_to_host([first, small])
    bare = dataclasses.replace(second, vertex_colours=None)
    with pytest.raises(ValueError, match="1 of 2 meshes have vertex colours"):
        convert.meshes_to_host([first, bare])


def test_a_broken_mesh_of_a_batch_is_named():
    convert = pack("nodes.convert")
    host = foreign_batch()
    host.face_counts[1] = 2
    with pytest.raises(ValueError, match=r"mesh 1 of 2: .*1 to 99, but there are 4 vertices"):
        convert.meshes_from_host(host)
    host = foreign_batch()
    host.vertex_counts[1] = 5
    with pytest.raises(ValueError, match=r"mesh 1 of 2: .*3 of 15 values are NaN"):
        convert.meshes_from_host(host)
    host = foreign_batch()
    host.texture = host.texture[:1]
    with pytest.raises(ValueError, match=r"mesh 1 of 2: texture are there for 1 meshes only"):
        convert.meshes_from_host(host)
    host = foreign_batch()
    host.uvs = None  # core's saver leaves such a texture out
    assert [m.texture for m in convert.meshes_from_host(host)] == [None, None]


def test_newer_hosts_get_normals_by_keyword(monkeypatch):
    from comfy_api.v0_0_2 import Types

    class Newer:
        def __init__(self, vertices, faces, uvs=None, vertex_colors=None, texture=None,
                     metallic_roughness=None, vertex_counts=None, face_counts=None, unlit=False,
                     normals=None):  # fmt: skip
            self.__dict__.update(locals())

    monkeypatch.setattr(Types, "MESH", Newer)
    convert, repair = pack("nodes.convert"), pack("v3d_core.mesh_repair")
    mesh = repair.with_normals(coloured_mesh(pack("v3d_core.structures").Mesh))
    host = convert.mesh_to_host(mesh)
    assert torch.equal(host.normals, mesh.normals[None]) and host.metallic_roughness is None
    (back,) = convert.meshes_from_host(host)
    assert torch.equal(back.normals, mesh.normals)


def test_a_half_precision_image_becomes_float32_with_or_without_alpha():
    convert = pack("nodes.convert")
    image = torch.rand(2, 5, 7, 4, dtype=torch.float16)
    for channels in (3, 4):
        pixels = convert.pictures_from_image(image[..., :channels])
        assert pixels.dtype == torch.float32
        torch.testing.assert_close(pixels, image[..., :channels].float())
    with pytest.raises(ValueError, match="3 or 4"):
        convert.pictures_from_image(image[..., :2])


def test_opengl_normal_maps_become_opencv_normals_and_are_unknown_outside_the_object():
    convert = pack("nodes.convert")
    facing = torch.tensor([0.5, 0.5, 1.0]).expand(1, 4, 4, 3)  # towards the camera
    masks = torch.zeros(1, 4, 4)
    masks[:, 1:3, 1:3] = 1
    normals = convert.normals_from_image(facing, masks)
    torch.testing.assert_close(normals[0, 1, 1], torch.tensor([0.0, 0.0, -1.0]))
    assert not bool(normals[0, 0].any())
