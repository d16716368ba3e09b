"""The only translator between ComfyUI's values and v3d_core's.

ComfyUI's world is v3d_core's world (right-handed, +Y up), so meshes and camera positions pass
unchanged; SPLAT is in the splat frame, camera rotations have OpenGL axes, vertex colours are
linear. Values coming in are copied where they need work and never changed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

import torch
from comfy import model_management
from comfy_api.v0_0_2 import Types
from torch import Tensor

from ..v3d_core.cameras import Orbit, flip_camera_yz, flip_splat_frame
from ..v3d_core.images import linear_to_srgb, srgb_to_linear
from ..v3d_core.normals import normals_of_views
from ..v3d_core.structures import Cameras, GaussianSplats, Mesh, Views

CPU = torch.device("cpu")
CORE_DEFAULT_FOV_DEG = 35.0  # RenderSplat's when a camera_info carries none
SMALLEST_SCALE = 1e-8  # world units; a splat flattened to zero still needs a positive scale


# --- pictures -----------------------------------------------------------------------------------


def pictures_from_image(image: Tensor) -> Tensor:  # [V, H, W, 3 or 4]
    """An IMAGE as float32 on the CPU; it may have alpha, be float16, or live on the GPU."""
    if image.ndim != 4 or image.shape[-1] not in (3, 4):
        raise ValueError(
            f"an IMAGE of shape {list(image.shape)} came in, [frames, height, width, 3 or 4] is "
            "needed; convert it to RGB or RGBA first"
        )
    if not image.numel():
        raise ValueError(
            f"an IMAGE of shape {list(image.shape)} came in, which holds no picture; connect at "
            "least one"
        )
    return image.to(CPU, torch.float32)


def mask_to_plain(mask: Tensor) -> Tensor:  # [V, H, W]
    """A MASK as float32 on the CPU, with the frame axis that single masks may lack."""
    plain = mask.to(CPU, torch.float32)
    return plain[None] if plain.ndim == 2 else plain


def normals_from_image(image: Tensor, masks: Tensor, convention: str = "opengl") -> Tensor:
    """OpenCV normals [V, H, W, 3] of a normal map, zero outside the object."""
    return normals_of_views(pictures_from_image(image)[..., :3], masks.to(CPU), convention)


def image_from_views(views: Views) -> Tensor:  # [V, H, W, 3]
    """Straight colours as an IMAGE, white where there is no object at all."""
    colours = torch.where(views.masks[..., None] > 0, views.images, 1.0)
    return to_host(colours)


def colour_from_hex(text: object) -> tuple[float, float, float]:
    """sRGB in [0, 1] of a COLOR widget's #rrggbb; the host lets anything pass there."""
    digits = str(text).strip().removeprefix("#")
    try:
        if len(digits) != 6:
            raise ValueError
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        raise ValueError(f"{text!r} is no colour; write it like #ffffff") from None
    return red / 255, green / 255, blue / 255


def to_host(tensor: Tensor) -> Tensor:
    """A picture or mask where and as ComfyUI keeps what nodes hand on."""
    return tensor.detach().to(
        model_management.intermediate_device(), model_management.intermediate_dtype()
    )


# --- splats -------------------------------------------------------------------------------------


def splats_to_host(splats: GaussianSplats) -> Types.SPLAT:
    """Core's SPLAT with one item: turned into the splat frame, a batch axis in front."""
    device = model_management.intermediate_device()
    flipped = flip_splat_frame(splats.to(device, torch.float32))
    return Types.SPLAT(
        positions=flipped.means.detach()[None],
        scales=flipped.scales.detach()[None],
        rotations=flipped.quats.detach()[None],
        opacities=flipped.opacities.detach()[None, :, None],
        sh=flipped.sh.detach()[None],
    )


def splats_from_host(splat: Types.SPLAT) -> GaussianSplats:
    """The one item of a SPLAT in the world frame, without its padding."""
    items = splat.positions.shape[0]
    if items != 1:
        raise ValueError(f"{items} splats came in one batch but 1 is needed; connect them singly")
    count = splat.positions.shape[1] if splat.counts is None else int(splat.counts[0])
    if count == 0:
        raise ValueError("the splat is empty: it has 0 Gaussians, at least 1 is needed")

    def item(tensor: Tensor) -> Tensor:
        return tensor[0, :count].to(CPU, torch.float32)

    in_splat_frame = GaussianSplats(
        means=item(splat.positions),
        scales=item(splat.scales).clamp_min(SMALLEST_SCALE),
        quats=torch.nn.functional.normalize(item(splat.rotations), dim=-1),
        opacities=item(splat.opacities).reshape(count).clamp(0, 1),
        sh=item(splat.sh),
    )
    return flip_splat_frame(in_splat_frame)


# --- meshes -------------------------------------------------------------------------------------


def mesh_to_host(mesh: Mesh, unlit: bool | None = None) -> Types.MESH:
    """Core's MESH with one item; see `meshes_to_host`."""
    return meshes_to_host([mesh], unlit)


def meshes_to_host(meshes: Sequence[Mesh], unlit: bool | None = None) -> Types.MESH:
    """Core's MESH of a batch: padded, with counts where sizes differ; vertex colours leave linear.

    `unlit` None: yes if there are any colours, since those fitted from pictures contain the light;
    without it core writes vertex-coloured GLB files without a material, which viewers show as
    black metal. Keywords only: newer hosts have more arguments in between. Normals go along where
    the host keeps them.
    """
    device = model_management.intermediate_device()
    colours = [None if m.vertex_colours is None else m.vertex_colours.float() for m in meshes]
    linear = [None if colour is None else srgb_to_linear(colour) for colour in colours]
    coloured = colours[0] is not None or meshes[0].texture is not None
    sizes = {(len(m.vertices), len(m.faces)) for m in meshes}
    counts = {}
    if len(sizes) > 1:
        counts["vertex_counts"] = torch.tensor([len(m.vertices) for m in meshes], device=device)
        counts["face_counts"] = torch.tensor([len(m.faces) for m in meshes], device=device)
    if "normals" in inspect.signature(Types.MESH).parameters:
        normals = [m.normals for m in meshes]
        counts["normals"] = (
            None if any(n is None for n in normals) else _batch("normals", normals, device)
        )
    return Types.MESH(
        vertices=_batch("vertices", [m.vertices.float() for m in meshes], device),
        faces=_batch("faces", [m.faces for m in meshes], device),
        uvs=_batch("uvs", [m.uvs for m in meshes], device),
        vertex_colors=_batch("vertex colours", linear, device),
        texture=_batch("texture", [m.texture for m in meshes], device, same_size=True),
        unlit=coloured if unlit is None else unlit,
        **counts,
    )


def _batch(
    name: str, items: Sequence[Tensor | None], device: torch.device, same_size: bool = False
) -> Tensor | None:
    """One tensor of all items, shorter ones padded with zeros at the end."""
    present = [item.detach().to(device) for item in items if item is not None]
    if not present:
        return None
    if len(present) < len(items):
        raise ValueError(f"{len(present)} of {len(items)} meshes have {name}; all or none must")
    shapes = [list(item.shape) for item in present]
    if same_size and shapes.count(shapes[0]) < len(shapes):
        raise ValueError(f"the {name}s of a batch must have one size, these have {shapes}")
    length = max(len(item) for item in present)
    padded = [torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])]) for x in present]
    return torch.stack(padded)


def meshes_from_host(mesh: Types.MESH) -> list[Mesh]:
    """All items of a MESH of any node, without their padding; empty ones are an error.

    Faces may be int32, vertex colours may have alpha, tensors may be float16 or on the GPU. A
    texture without uvs is left out, as core's own saver does.
    """
    count = mesh.vertices.shape[0]
    items = []
    for index in range(count):
        try:
            items.append(_mesh_item(mesh, index))
        except ValueError as error:
            raise ValueError(f"mesh {index} of {count}: {error}") from error
        if not len(items[-1].faces):
            raise ValueError(
                f"mesh {index} of {count} is empty: {len(items[-1].vertices)} vertices, 0 faces"
            )
    return items


def is_unlit(mesh: Types.MESH) -> bool:
    """Whether a MESH asks for colours as they are, without a viewer's lights."""
    return bool(getattr(mesh, "unlit", False))


def _mesh_item(mesh: Types.MESH, index: int) -> Mesh:
    vertex_counts = getattr(mesh, "vertex_counts", None)
    face_counts = getattr(mesh, "face_counts", None)
    vertices = slice(None if vertex_counts is None else int(vertex_counts[index]))
    faces = slice(None if face_counts is None else int(face_counts[index]))

    def item(name: str, part: slice) -> Tensor | None:
        tensor = getattr(mesh, name, None)
        if tensor is None:
            return None
        if len(tensor) <= index:
            raise ValueError(f"{name} are there for {len(tensor)} meshes only")
        return tensor[index][part].to(CPU, torch.float32)

    colours, uvs = item("vertex_colors", vertices), item("uvs", vertices)
    texture = None if uvs is None else item("texture", slice(None))
    return Mesh(
        vertices=mesh.vertices[index][vertices].to(CPU, torch.float32),
        faces=mesh.faces[index][faces].to(CPU, torch.int64),
        normals=item("normals", vertices),
        uvs=uvs,
        vertex_colours=None if colours is None else linear_to_srgb(colours[:, :3].clamp(0, 1)),
        texture=None if texture is None else texture[..., :3].clamp(0, 1),
    )


# --- cameras ------------------------------------------------------------------------------------


def camera_info_from_cameras(cameras: Cameras, index: int) -> dict:
    """One camera as core's LOAD3D_CAMERA; it has no place for an off-centre principal point."""
    opengl = flip_camera_yz(cameras.camera_to_world[index].to(CPU, torch.float64))
    position, backward = opengl[:3, 3], opengl[:3, 2]
    # the point of the optical axis nearest to the origin is what viewers turn around
    distance = max(float(position @ backward), 1e-3)
    x, y, z, w = _quaternion_xyzw(opengl[:3, :3])
    focal = float(cameras.K[index, 1, 1])
    return {
        "position": _xyz(position),
        "target": _xyz(position - distance * backward),
        "quaternion": {"x": x, "y": y, "z": z, "w": w},
        "fov": math.degrees(2 * math.atan(cameras.height / (2 * focal))),
        "aspect": cameras.width / cameras.height,
        "zoom": 1.0,
        "cameraType": "perspective",
    }


def orbit_from_camera_info(camera_info: dict, orbit: Orbit) -> Orbit:
    """`orbit` started at a LOAD3D_CAMERA: its azimuth, elevation, distance and field of view.

    What the camera looks at becomes the origin of the world, because orbits go around it.
    """
    if str(camera_info.get("cameraType", "")).lower().startswith("ortho"):
        raise ValueError("the start camera is orthographic; orbits need a perspective camera")
    position, target = _vector(camera_info, "position"), _vector(camera_info, "target")
    x, y, z = (p - t for p, t in zip(position, target, strict=True))
    radius = math.sqrt(x * x + y * y + z * z)
    if radius < 1e-6:
        raise ValueError(f"the start camera stands at its own target {target}; move it away")
    fov = math.radians(float(camera_info.get("fov") or CORE_DEFAULT_FOV_DEG))
    zoom = float(camera_info.get("zoom") or 1.0)
    step = 360.0 / orbit.num_views if orbit.azimuth_step_deg is None else orbit.azimuth_step_deg
    return Orbit(
        num_views=orbit.num_views,
        radius=radius,
        elevation_deg=math.degrees(math.asin(y / radius)),
        azimuth_start_deg=math.degrees(math.atan2(x, z)),
        azimuth_step_deg=step,
        fov_y_deg=math.degrees(2 * math.atan(math.tan(fov / 2) / zoom)),
    )


def _vector(camera_info: dict, key: str) -> tuple[float, float, float]:
    part = camera_info.get(key) or {}
    x, y, z = (float(part.get(axis, 0.0)) for axis in "xyz")
    return x, y, z


def _xyz(vector: Tensor) -> dict[str, float]:
    return {axis: float(value) for axis, value in zip("xyz", vector, strict=True)}


def _quaternion_xyzw(rotation: Tensor) -> tuple[float, float, float, float]:
    """Unit quaternion of a rotation matrix, w >= 0, from its largest component (Shepperd 1978)."""
    r = rotation.tolist()
    trace = r[0][0] + r[1][1] + r[2][2]
    squares = [1 + 2 * r[i][i] - trace for i in range(3)] + [1 + trace]  # 4 x^2, 4 y^2, ...
    largest = max(range(4), key=squares.__getitem__)
    q = [
        [squares[0], r[0][1] + r[1][0], r[0][2] + r[2][0], r[2][1] - r[1][2]],
        [r[0][1] + r[1][0], squares[1], r[1][2] + r[2][1], r[0][2] - r[2][0]],
        [r[0][2] + r[2][0], r[1][2] + r[2][1], squares[2], r[1][0] - r[0][1]],
        [r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1], squares[3]],
    ][largest]
    norm = math.copysign(math.sqrt(sum(part * part for part in q)), q[3])
    x, y, z, w = (part / norm for part in q)
    return x, y, z, w
