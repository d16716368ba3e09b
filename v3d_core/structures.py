"""The values that travel between stages: small frozen dataclasses of tensors, checked when made.

Frames and units are those of `docs/conventions.md`: world is right-handed with +Y up, cameras
have OpenCV axes (x right, y down, z forward), pixel (0, 0) has its centre at (0.5, 0.5).
Consumers never change the tensors inside; they make new values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T", "Cameras", "Views", "GaussianSplats", "Mesh")

UNIT_QUAT_TOLERANCE = 1e-3  # |q| - 1 that float16 storage can leave behind
ORTHONORMAL_TOLERANCE = 1e-3  # |R R^T - I|; transforms.json files often carry 4 to 6 decimals
MASK_RANGE_TOLERANCE = 1e-4  # resampling in float32 may overshoot [0, 1] by rounding


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_shape(owner: str, name: str, tensor: Tensor, shape: Sequence[int | str]) -> None:
    """Raise unless `tensor` has `shape`; a string in it stands for any size."""
    actual = tuple(tensor.shape)
    fits = len(actual) == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, actual, strict=True)
    )
    expected = ", ".join(str(size) for size in shape)
    _require(fits, f"{owner}.{name}: expected shape [{expected}], got {list(actual)}")


def _require_finite(owner: str, name: str, tensor: Tensor) -> None:
    bad = int((~torch.isfinite(tensor)).sum())
    _require(
        bad == 0,
        f"{owner}.{name}: {bad} of {tensor.numel()} values are NaN or infinite; "
        "repair the input before fitting",
    )


def _moved(value: _T, *args, **kwargs) -> _T:
    """Copy of a dataclass with every tensor (and nested value) passed through `.to`."""
    changes = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if isinstance(item, Tensor):
            moved = item.to(*args, **kwargs)
            # an integer tensor follows to a device but never to a float dtype
            changes[field.name] = moved if item.is_floating_point() else moved.to(item.dtype)
        elif isinstance(item, Cameras):
            changes[field.name] = item.to(*args, **kwargs)
    return dataclasses.replace(value, **changes)


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras that share one picture size.

    Attributes:
        camera_to_world: Rigid transforms with OpenCV axes; the last column is the camera centre
            in world units. [V, 4, 4]
        K: Intrinsics in pixels, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]. [V, 3, 3]
        width: Picture width in pixels.
        height: Picture height in pixels.
    """

    camera_to_world: Tensor  # [V, 4, 4]
    K: Tensor  # [V, 3, 3]
    width: int
    height: int

    def __post_init__(self) -> None:
        c2w, K = self.camera_to_world, self.K
        _require_shape("Cameras", "camera_to_world", c2w, ("V", 4, 4))
        _require_shape("Cameras", "K", K, ("V", 3, 3))
        _require(len(c2w) >= 1, "Cameras: at least 1 camera is needed, got 0")
        _require(len(c2w) == len(K), f"Cameras: {len(c2w)} poses but {len(K)} intrinsics")
        _require(
            self.width >= 1 and self.height >= 1,
            f"Cameras: picture size must be positive, got {self.width}x{self.height}",
        )
        _require_finite("Cameras", "camera_to_world", c2w)
        _require_finite("Cameras", "K", K)
        rotation = c2w[:, :3, :3].double()
        identity = torch.eye(3, dtype=torch.float64, device=c2w.device)
        skew = float((rotation @ rotation.transpose(1, 2) - identity).abs().amax())
        _require(
            skew < ORTHONORMAL_TOLERANCE,
            f"Cameras.camera_to_world: rotation part is off orthonormal by {skew:.2g} (at most "
            f"{ORTHONORMAL_TOLERANCE:g}); remove scale or shear from the poses",
        )
        _require(
            bool((torch.linalg.det(rotation) > 0).all()),
            "Cameras.camera_to_world: a pose is mirrored (determinant -1); "
            "convert the axes so that x is right, y is down and z is forward",
        )
        focal = torch.stack([K[:, 0, 0], K[:, 1, 1]])
        _require(bool((focal > 0).all()), "Cameras.K: focal lengths must be positive")

    def __len__(self) -> int:
        return len(self.camera_to_world)

    def __getitem__(self, index: slice | Sequence[int] | Tensor | int) -> Cameras:
        """The chosen cameras as a new `Cameras` (an int gives one camera)."""
        if isinstance(index, int):
            index = [index]
        return dataclasses.replace(
            self, camera_to_world=self.camera_to_world[index], K=self.K[index]
        )

    @property
    def world_to_camera(self) -> Tensor:  # [V, 4, 4]
        """Inverse poses, computed from the rigid form rather than by a matrix solve."""
        rotation = self.camera_to_world[:, :3, :3].transpose(1, 2)
        inverse = torch.zeros_like(self.camera_to_world)
        inverse[:, :3, :3] = rotation
        inverse[:, :3, 3:] = -rotation @ self.camera_to_world[:, :3, 3:]
        inverse[:, 3, 3] = 1
        return inverse

    @property
    def centres(self) -> Tensor:  # [V, 3]
        """Camera centres in world units."""
        return self.camera_to_world[:, :3, 3]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.camera_to_world.device

    def to(self, *args, **kwargs) -> Cameras:
        """Copy on another device or in another floating-point dtype."""
        return _moved(self, *args, **kwargs)


@dataclass(frozen=True)
class Views:
    """Posed pictures of one object.

    Attributes:
        images: sRGB colours in [0, 1], straight (not premultiplied by the mask). [V, H, W, 3]
        masks: Coverage of the object, 1 = object, 0 = background. [V, H, W]
        cameras: One camera per picture, of the same picture size.
        names: File stems the pictures came from, or empty; savers keep them.
        normals: Unit surface normals in OpenCV camera axes, zero where unknown, or None. [V, H, W, 3]
    """

    images: Tensor  # [V, H, W, 3]
    masks: Tensor  # [V, H, W]
    cameras: Cameras
    names: tuple[str, ...] = ()
    normals: Tensor | None = None  # [V, H, W, 3]

    def __post_init__(self) -> None:
        _require_shape("Views", "images", self.images, ("V", "H", "W", 3))
        count, height, width, _ = self.images.shape
        _require(
            count == len(self.cameras),
            f"Views: {count} images but {len(self.cameras)} cameras; connect the cameras that "
            "belong to these images, or set the orbit's number of views to the number of images",
        )
        _require_shape("Views", "masks", self.masks, (count, height, width))
        _require(
            (width, height) == (self.cameras.width, self.cameras.height),
            f"Views: images are {width}x{height} but the cameras are made for "
            f"{self.cameras.width}x{self.cameras.height}",
        )
        if self.normals is not None:
            _require_shape("Views", "normals", self.normals, (count, height, width, 3))
            _require_finite("Views", "normals", self.normals)
        _require(
            len(self.names) in (0, count), f"Views: {count} images but {len(self.names)} names"
        )
        _require_finite("Views", "images", self.images)
        _require_finite("Views", "masks", self.masks)
        low, high = float(self.masks.min()), float(self.masks.max())
        _require(
            low >= -MASK_RANGE_TOLERANCE and high <= 1 + MASK_RANGE_TOLERANCE,
            f"Views.masks: values must lie in [0, 1], got {low:g} to {high:g}",
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Sequence[int] | Tensor | int) -> Views:
        """The chosen views as a new `Views` (an int gives one view)."""
        if isinstance(index, int):
            index = [index]
        chosen = torch.arange(len(self))[index].tolist()
        return Views(
            images=self.images[chosen],
            masks=self.masks[chosen],
            cameras=self.cameras[chosen],
            names=tuple(self.names[i] for i in chosen) if self.names else (),
            normals=None if self.normals is None else self.normals[chosen],
        )

    @property
    def device(self) -> torch.device:
        """Where the pictures live."""
        return self.images.device

    def to(self, *args, **kwargs) -> Views:
        """Copy on another device or in another floating-point dtype."""
        return _moved(self, *args, **kwargs)


@dataclass(frozen=True)
class GaussianSplats:
    """3D Gaussians in activated form, world frame (Kerbl et al. 2023).

    Attributes:
        means: Centres, world units. [N, 3]
        scales: Standard deviation along each local axis, world units, > 0. [N, 3]
        quats: Unit rotations wxyz, local to world. [N, 4]
        opacities: Peak opacity in [0, 1]. [N]
        sh: Spherical-harmonic coefficients of the sRGB colour in standard 3DGS order,
            K = (degree + 1)^2; colour = 0.2821 * sh[:, 0] + 0.5 for degree 0. [N, K, 3]
    """

    means: Tensor  # [N, 3]
    scales: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    opacities: Tensor  # [N]
    sh: Tensor  # [N, K, 3]

    def __post_init__(self) -> None:
        _require_shape("GaussianSplats", "means", self.means, ("N", 3))
        count = len(self.means)
        _require_shape("GaussianSplats", "scales", self.scales, (count, 3))
        _require_shape("GaussianSplats", "quats", self.quats, (count, 4))
        _require_shape("GaussianSplats", "opacities", self.opacities, (count,))
        _require_shape("GaussianSplats", "sh", self.sh, (count, "K", 3))
        _require(
            self.sh.shape[1] in (1, 4, 9, 16),
            f"GaussianSplats.sh: K must be 1, 4, 9 or 16 (degree 0 to 3), got {self.sh.shape[1]}",
        )
        for name in ("means", "scales", "quats", "opacities", "sh"):
            _require_finite("GaussianSplats", name, getattr(self, name))
        if count:
            _require(bool((self.scales > 0).all()), "GaussianSplats.scales must be positive")
            off = float((self.quats.norm(dim=-1) - 1).abs().max())
            _require(
                off < UNIT_QUAT_TOLERANCE,
                f"GaussianSplats.quats must have length 1, one is off by {off:.2g}",
            )
            low, high = float(self.opacities.min()), float(self.opacities.max())
            _require(
                low >= 0 and high <= 1,
                f"GaussianSplats.opacities must lie in [0, 1], got {low:g} to {high:g}",
            )

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, index: slice | Tensor) -> GaussianSplats:
        """The chosen Gaussians (slice, index list or boolean mask)."""
        return GaussianSplats(
            self.means[index],
            self.scales[index],
            self.quats[index],
            self.opacities[index],
            self.sh[index],
        )

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return {1: 0, 4: 1, 9: 2, 16: 3}[self.sh.shape[1]]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.means.device

    def to(self, *args, **kwargs) -> GaussianSplats:
        """Copy on another device or in another floating-point dtype."""
        return _moved(self, *args, **kwargs)


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh in the world frame, counter-clockwise seen from outside.

    Attributes:
        vertices: Positions, world units. [N, 3]
        faces: Vertex indices. [M, 3] int64
        normals: Unit vertex normals, or None. [N, 3]
        uvs: Texture coordinates per vertex; (0, 0) is the upper left texel corner. [N, 2]
        vertex_colours: sRGB in [0, 1], or None; writers convert where a format wants linear. [N, 3]
        texture: Base colour, sRGB in [0, 1], row 0 on top, or None. [H, W, 3]
    """

    vertices: Tensor  # [N, 3]
    faces: Tensor  # [M, 3]
    normals: Tensor | None = None  # [N, 3]
    uvs: Tensor | None = None  # [N, 2]
    vertex_colours: Tensor | None = None  # [N, 3]
    texture: Tensor | None = None  # [H, W, 3]

    def __post_init__(self) -> None:
        _require_shape("Mesh", "vertices", self.vertices, ("N", 3))
        _require_shape("Mesh", "faces", self.faces, ("M", 3))
        count = len(self.vertices)
        _require(
            self.faces.dtype == torch.int64, f"Mesh.faces must be int64, got {self.faces.dtype}"
        )
        _require_finite("Mesh", "vertices", self.vertices)
        if len(self.faces):
            low, high = int(self.faces.min()), int(self.faces.max())
            _require(
                low >= 0 and high < count,
                f"Mesh.faces index vertices {low} to {high}, but there are {count} vertices",
            )
        for name, columns in (("normals", 3), ("uvs", 2), ("vertex_colours", 3)):
            tensor = getattr(self, name)
            if tensor is not None:
                _require_shape("Mesh", name, tensor, (count, columns))
                _require_finite("Mesh", name, tensor)
        if self.texture is not None:
            _require_shape("Mesh", "texture", self.texture, ("H", "W", 3))
            _require(self.uvs is not None, "Mesh.texture needs uvs")

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.vertices.device

    def to(self, *args, **kwargs) -> Mesh:
        """Copy on another device or in another floating-point dtype."""
        return _moved(self, *args, **kwargs)
