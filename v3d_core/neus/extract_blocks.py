"""Signed distances on a lattice, held only near the surface, and marching cubes over them.

The lattice is cut into leaves of 4^3 samples. A leaf is evaluated where the distance at its middle
says that the surface may cross it, and where the surface is found to leave its neighbours; of all
others only the sign is kept. So time and memory grow with the surface, not with the volume (apart
from 5 bytes per leaf), and every sample has one value, whoever asks: the mesh cannot tear.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAF = 4  # lattice cells along the side of a leaf
TOP = 32  # lattice cells along the side of the cubes that refining starts from
BLOCK = 64  # lattice cells along the side of what is marched at once: 1 MB
SLACK = 1.5  # how much larger than the true distance the field's may be
FAR = 2.0  # voxels; distances are held up to this, larger ones make no vertex
NEAR = 1e-3  # voxels; smaller ones would give triangles without area

Distances = Callable[[Tensor], Tensor]  # world points [N, 3] -> signed distances [N]
Tick = Callable[[float], None]  # told the finished share of a stage; raising in it cancels

_OFFSETS = [o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)]  # to the 26 neighbours


@dataclass(frozen=True)
class Lattice:
    """Samples at the corners of equal cubic cells.

    Attributes:
        origin: World position of sample (0, 0, 0). [3] float64
        voxel: Side of a cell, world units.
        cells: Number of cells along x, y and z, multiples of `TOP`.
    """

    origin: Tensor
    voxel: float
    cells: tuple[int, int, int]

    @classmethod
    def around(cls, low: Tensor, high: Tensor, resolution: int) -> Lattice:  # [3] twice
        """`resolution` cells along the longest side of a box, and a free cell or two around it."""
        low, high = low.double(), high.double()
        voxel = float((high - low).max()) / resolution
        cells = ((high - low) / voxel).ceil().long() + 3
        x, y, z = (-(-cells // TOP) * TOP).tolist()
        return cls(low - 1.5 * voxel, voxel, (x, y, z))

    def points(self, indices: Tensor) -> Tensor:  # [..., 3] -> [..., 3] float32
        """World positions of samples, or of places between them."""
        return (self.origin + indices.double() * self.voxel).float()


class SparseDistances:
    """Distances of a field at the samples of a lattice, where its surface may be."""

    def __init__(self, distances: Distances, lattice: Lattice, tick: Tick) -> None:
        """Evaluate the field around its surface; `tick` is told several times a second."""
        self.lattice, self._distances = lattice, distances
        coords, signs = refine(distances, lattice, TOP, LEAF, lambda: tick(0.0))
        self._signs = signs.cpu().numpy()
        dims = self._signs.shape
        self._index = np.full(dims, -1, np.int32)  # place of a leaf among the values; -1: not held
        self._coords = np.zeros((0, 3), np.int32)
        self._values = np.zeros((0, LEAF**3), np.float32)
        new = np.concatenate([coords.cpu().numpy().astype(np.int32), self._torn_leaves()])
        new = np.unique(new, axis=0)
        share = 0.0
        while len(new):
            # later rounds only add what the surface was found to leave into
            share, start = (1 + share) / 2, share
            self._add(new, lambda s, a=start, b=share: tick(a + s * (b - a)))
            new = self._entered_from(new)

    def __len__(self) -> int:
        return len(self._values)

    def blocks(self) -> list[tuple[int, int, int]]:
        """Corners (in samples) of the blocks that hold any leaf."""
        corners = np.unique(self._coords // (BLOCK // LEAF), axis=0) * BLOCK
        # the last cells of a block need samples of the next one
        before = np.unique(np.concatenate([corners - BLOCK * np.array(o) for o in _LOWER]), axis=0)
        return [(x, y, z) for x, y, z in before[(before >= 0).all(axis=1)].tolist()]

    def block(self, corner: tuple[int, int, int]) -> np.ndarray:  # [65, 65, 65] at most
        """Distances in voxels, within +-`FAR`, at the samples of a block and its far faces."""
        side = BLOCK // LEAF + 1
        x, y, z = (c // LEAF for c in corner)
        window = np.s_[x : x + side, y : y + side, z : z + side]
        index, signs = self._index[window], self._signs[window]
        held = self._values[np.maximum(index, 0)]
        values = np.where((index >= 0)[..., None], held, FAR * signs[..., None].astype(np.float32))
        a, b, c = index.shape
        cube = values.reshape(a, b, c, LEAF, LEAF, LEAF).transpose(0, 3, 1, 4, 2, 5)
        cube = cube.reshape(LEAF * a, LEAF * b, LEAF * c)
        return np.ascontiguousarray(cube[: BLOCK + 1, : BLOCK + 1, : BLOCK + 1])

    def _add(self, coords: np.ndarray, tick: Tick) -> None:
        # evaluate the samples of these leaves
        lattice, device = self.lattice, self.lattice.origin.device
        inner = torch.cartesian_prod(*[torch.arange(LEAF, device=device)] * 3)
        ends = torch.tensor(lattice.cells, device=device)
        values = np.empty((len(coords), LEAF**3), np.float32)
        batch = batch_size(device) // LEAF**3
        for start in range(0, len(coords), batch):
            some = torch.from_numpy(coords[start : start + batch]).to(device)
            samples = (some[:, None] * LEAF + inner).reshape(-1, 3)
            scaled = self._distances(lattice.points(samples)) / lattice.voxel
            # the outermost samples are air, so that no surface can leave the lattice open
            edge = (samples <= 0).any(dim=-1) | (samples >= ends - 1).any(dim=-1)
            scaled = torch.where(edge, scaled.clamp_min(NEAR), scaled).clamp(-FAR, FAR)
            small = torch.where(scaled < 0, -NEAR, NEAR)
            scaled = torch.where(scaled.abs() < NEAR, small, scaled)
            values[start : start + batch] = scaled.reshape(-1, LEAF**3).cpu().numpy()
            tick(min(1.0, (start + batch) / len(coords)))
        self._index[tuple(coords.T)] = np.arange(len(self), len(self) + len(coords))
        self._coords = np.concatenate([self._coords, coords])
        self._values = np.concatenate([self._values, values])

    def _torn_leaves(self) -> np.ndarray:  # [N, 3]
        # neighbours of opposite sign that refining gave up: the field overstates its distances
        torn = np.zeros(self._signs.shape, bool)
        for axis in range(3):
            lower = [slice(None)] * 3
            upper = [slice(None)] * 3
            lower[axis], upper[axis] = slice(None, -1), slice(1, None)
            a, b = self._signs[tuple(lower)], self._signs[tuple(upper)]
            differs = a * b < 0
            torn[tuple(lower)] |= differs
            torn[tuple(upper)] |= differs
        return np.argwhere(torn).astype(np.int32)

    def _entered_from(self, coords: np.ndarray) -> np.ndarray:  # [N, 3] -> [M, 3]
        """Leaves that are not held though the surface passes from these ones into them."""
        inside = self._values[self._index[tuple(coords.T)]].reshape(-1, LEAF, LEAF, LEAF) < 0
        sides = {}  # for each outer layer: whether it has samples inside, and outside
        for axis, (step, layer) in itertools.product(range(3), ((-1, 0), (1, LEAF - 1))):
            values = inside.take(layer, axis=axis + 1).reshape(len(coords), -1)
            sides[axis, step] = values.any(axis=1), ~values.all(axis=1)
        found = []
        for offset in _OFFSETS:
            layers = [sides[axis, step] for axis, step in enumerate(offset) if step]
            any_inside = np.logical_and.reduce([layer[0] for layer in layers])
            any_outside = np.logical_and.reduce([layer[1] for layer in layers])
            there = coords + np.array(offset, np.int32)
            valid = ((there >= 0) & (there < self._index.shape)).all(axis=1)
            there, any_inside, any_outside = there[valid], any_inside[valid], any_outside[valid]
            place = tuple(there.T)
            crossed = np.where(self._signs[place] > 0, any_inside, any_outside)
            found.append(there[(self._index[place] < 0) & crossed])
        return np.unique(np.concatenate(found), axis=0)


_LOWER = list(itertools.product((0, 1), repeat=3))  # a block and those whose far faces touch it


def batch_size(device: torch.device) -> int:
    """Points evaluated at once: a fraction of a second, and some 100 MB in a field's network."""
    return 1 << 15 if device.type == "cpu" else 1 << 19


def refine(
    distances: Distances,
    lattice: Lattice,
    top: int,
    leaf: int,
    tick: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Cubes of lattice cells that the surface may cross, found from coarse to fine.

    A cube is halved while the distance at its middle is at most `SLACK` times half its diagonal.

    Args:
        distances: The field.
        lattice: Its cells; their numbers must be multiples of `top`.
        top: Cells along the side of the first cubes.
        leaf: Cells along the side of the last ones; `top` is a power of two times it.
        tick: Called several times a second; raising in it cancels.

    Returns:
        Places of the last cubes [N, 3], counted in cubes, and the sign (1 outside, -1 inside) at
        the middle of the smallest cube around each place, [X, Y, Z] int8.
    """
    device = lattice.origin.device
    size = top
    dims = [count // size for count in lattice.cells]
    coords = torch.cartesian_prod(*[torch.arange(count, device=device) for count in dims])
    signs = torch.ones(dims, dtype=torch.int8, device=device)
    halves = torch.cartesian_prod(*[torch.arange(2, device=device)] * 3)
    while True:
        reach = SLACK * math.sqrt(3) / 2 * size * lattice.voxel
        crossed = []
        for some in coords.split(batch_size(device)):
            values = distances(lattice.points((some + 0.5) * size))
            signs[some.unbind(-1)] = torch.where(values < 0, -1, 1).to(torch.int8)
            crossed.append(some[values.abs() <= reach])
            tick()
        coords = torch.cat(crossed)
        if size == leaf:
            return coords, signs
        size //= 2
        coords = (coords[:, None] * 2 + halves).reshape(-1, 3)
        for axis in range(3):
            signs = signs.repeat_interleave(2, dim=axis)


def march(samples: SparseDistances, tick: Tick) -> tuple[Tensor, Tensor]:  # [N, 3], [M, 3]
    """Marching cubes (Lewiner et al. 2003) block by block, welded by the lattice edges.

    Returns:
        World positions, and faces that look outward; both on the CPU.
    """
    from skimage.measure import marching_cubes

    lattice = samples.lattice
    _, rows, columns = (count + 1 for count in lattice.cells)
    keys, places, faces, count = [], [], [], 0
    corners = samples.blocks()
    for number, corner in enumerate(corners):
        values = samples.block(corner)
        tick(number / len(corners))
        if min(values.shape) < 2 or values.min() >= 0 or values.max() <= 0:
            continue
        local, triangles, _, _ = marching_cubes(values, 0.0)
        whole = np.floor(local)
        broken = local > whole
        at = whole.astype(np.int64) + corner
        # on one lattice edge each; the points that some cases put inside a cell count as a fourth
        edge = np.where(broken.sum(axis=1) == 1, broken.argmax(axis=1), 3)
        keys.append(((at[:, 0] * rows + at[:, 1]) * columns + at[:, 2]) * 4 + edge)
        places.append(local + np.array(corner, np.float32))
        faces.append(triangles.astype(np.int32) + np.int32(count))
        count += len(local)
    if not faces:
        return torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)
    # lists are emptied as soon as they are joined: here the mesh takes most room
    _, first, index = np.unique(_joined(keys), return_index=True, return_inverse=True)
    vertices = torch.from_numpy(_joined(places)[first])
    index = index.reshape(-1).astype(np.int32)
    welded = torch.from_numpy(index[_joined(faces)])
    origin = Lattice(lattice.origin.cpu(), lattice.voxel, lattice.cells)
    return origin.points(vertices), welded.long()


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    whole = np.concatenate(parts)
    parts.clear()
    return whole
