"""Signed distances on a lattice, held only near the surface, and marching cubes over them.

The lattice is cut into leaves of 4^3 samples. A leaf is evaluated where the distance at its middle
says that the surface may cross it, and where the surface is found to leave its neighbours; of all
others only the sign is kept. So time and memory grow with the surface, not with the volume (apart
from 5 bytes per leaf), and every sample has one value, whoever asks: the mesh cannot tear.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAF = 4  # lattice cells along the side of a leaf
TOP = 32  # lattice cells along the side of the cubes that refining starts from
BLOCK = 32  # lattice cells along the side of what is marched at once: small ones skip more air
BATCH = 8  # blocks put together at once: 1 MB
BATCH_ON_CUDA = 256  # few launches for some 200 MB of temporaries
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
    """Distances of a field at the samples of a lattice, where its surface may be.

    All of it lies where the field computes: on CUDA only what is marched crosses the bus.
    """

    def __init__(self, distances: Distances, lattice: Lattice, tick: Tick) -> None:
        """Evaluate the field around its surface; `tick` is told several times a second."""
        self.lattice, self._distances = lattice, distances
        device = lattice.origin.device
        coords, self._signs = refine(distances, lattice, TOP, LEAF, lambda: tick(0.0))
        self._dims = torch.tensor(self._signs.shape, device=device)
        # place of a leaf among the values; -1: not held
        self._index = torch.full(self._signs.shape, -1, dtype=torch.int32, device=device)
        self._coords = coords[:0]
        self._values = torch.zeros(0, LEAF**3, device=device)
        new = self._sorted(torch.cat([coords, self._torn_leaves()]))
        share = 0.0
        while len(new):
            # later rounds only add what the surface was found to leave into
            share, start = (1 + share) / 2, share
            self._add(new, lambda s, a=start, b=share: tick(a + s * (b - a)))
            new = self._entered_from(new)

    def __len__(self) -> int:
        return len(self._values)

    def crossed_blocks(self, tick: Tick) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
        """Corners, in samples, and distances of the blocks that the surface passes through.

        Distances are in voxels, within +-`FAR`, at the samples of a block and its far faces.
        [BLOCK + 1, BLOCK + 1, BLOCK + 1]
        """
        corners = self._corners()
        done, batch = 0, BATCH_ON_CUDA if corners.is_cuda else BATCH
        for some in corners.split(batch):
            values = self._blocks(some)
            flat = values.flatten(1)
            crossed = (flat.amin(dim=1) < 0) & (flat.amax(dim=1) > 0)
            tick(done / len(corners))
            places, cubes = some[crossed].tolist(), values[crossed].cpu().numpy()
            for (x, y, z), cube in zip(places, cubes, strict=True):
                yield (x, y, z), cube
                tick(done / len(corners))
            done += len(some)

    def _corners(self) -> Tensor:  # [N, 3]
        # of the blocks that hold any leaf; their last cells need samples of the next ones
        side = BLOCK // LEAF
        lower = torch.cartesian_prod(*[torch.arange(2, device=self._coords.device)] * 3)
        own = self._sorted(self._coords // side)
        before = (own[:, None] - lower).reshape(-1, 3)
        return self._sorted(before[(before >= 0).all(dim=-1)]) * BLOCK

    def _blocks(self, corners: Tensor) -> Tensor:  # [N, 3] -> [N, BLOCK + 1, ...]
        side, device = BLOCK // LEAF + 1, corners.device
        window = torch.cartesian_prod(*[torch.arange(side, device=device)] * 3)
        leaves = corners[:, None] // LEAF + window  # [N, side^3, 3]
        beyond = (leaves >= self._dims).any(dim=-1)
        place = leaves.minimum(self._dims - 1).unbind(-1)
        index = self._index[place]
        signs = self._signs[place].masked_fill(beyond, 1)  # beyond the lattice is air
        values = self._values[index.clamp_min(0).long()]
        known = (index >= 0) & ~beyond
        values = torch.where(known[..., None], values, FAR * signs[..., None].float())
        cubes = values.view(-1, side, side, side, LEAF, LEAF, LEAF).permute(0, 1, 4, 2, 5, 3, 6)
        cubes = cubes.reshape(-1, *[LEAF * side] * 3)
        return cubes[:, : BLOCK + 1, : BLOCK + 1, : BLOCK + 1]

    def _sorted(self, places: Tensor) -> Tensor:  # [N, 3] -> [M, 3]
        # each place of the grid of leaves once, x slowest
        _, rows, columns = self._signs.shape
        codes = ((places[:, 0] * rows + places[:, 1]) * columns + places[:, 2]).unique()
        row = codes // columns
        return torch.stack([row // rows, row % rows, codes % columns], dim=-1)

    def _add(self, coords: Tensor, tick: Tick) -> None:
        # evaluate the samples of these leaves
        lattice, device = self.lattice, self.lattice.origin.device
        inner = torch.cartesian_prod(*[torch.arange(LEAF, device=device)] * 3)
        ends = torch.tensor(lattice.cells, device=device)
        values = torch.empty(len(coords), LEAF**3, device=device)
        batch = batch_size(device) // LEAF**3
        for start in range(0, len(coords), batch):
            some = coords[start : start + batch]
            samples = (some[:, None] * LEAF + inner).reshape(-1, 3)
            scaled = self._distances(lattice.points(samples)) / lattice.voxel
            # the outermost samples are air, so that no surface can leave the lattice open
            edge = (samples <= 0).any(dim=-1) | (samples >= ends - 1).any(dim=-1)
            scaled = torch.where(edge, scaled.clamp_min(NEAR), scaled).clamp(-FAR, FAR)
            small = torch.where(scaled < 0, -NEAR, NEAR)
            scaled = torch.where(scaled.abs() < NEAR, small, scaled)
            values[start : start + batch] = scaled.reshape(-1, LEAF**3)
            tick(min(1.0, (start + batch) / len(coords)))
        numbers = torch.arange(len(coords), dtype=torch.int32, device=device) + len(self)
        self._index[coords.unbind(-1)] = numbers
        self._coords = torch.cat([self._coords, coords])
        self._values = torch.cat([self._values, values])

    def _torn_leaves(self) -> Tensor:  # [N, 3]
        # neighbours of opposite sign that refining gave up: the field overstates its distances
        torn = torch.zeros_like(self._signs, dtype=torch.bool)
        for axis, size in enumerate(self._signs.shape):
            lower, upper = (self._signs.narrow(axis, start, size - 1) for start in (0, 1))
            differs = lower * upper < 0
            for start in (0, 1):
                torn.narrow(axis, start, size - 1).logical_or_(differs)
        return torch.nonzero(torn)

    def _entered_from(self, coords: Tensor) -> Tensor:  # [N, 3] -> [M, 3]
        """Leaves that are not held though the surface passes from these ones into them."""
        inside = self._values[self._index[coords.unbind(-1)].long()].view(-1, LEAF, LEAF, LEAF) < 0
        sides = {}  # for each outer layer: whether it has samples inside, and outside
        for axis, (step, layer) in itertools.product(range(3), ((-1, 0), (1, LEAF - 1))):
            values = inside.select(axis + 1, layer).flatten(1)
            sides[axis, step] = torch.stack([values.any(dim=1), ~values.all(dim=1)])
        found = []
        for offset in _OFFSETS:
            layers = [sides[axis, step] for axis, step in enumerate(offset) if step]
            any_inside, any_outside = torch.stack(layers).all(dim=0)
            there = coords + coords.new_tensor(offset)
            valid = ((there >= 0) & (there < self._dims)).all(dim=1)
            place = there.clamp_min(0).minimum(self._dims - 1).unbind(-1)
            crossed = torch.where(self._signs[place] > 0, any_inside, any_outside)
            found.append(there[valid & (self._index[place] < 0) & crossed])
        return self._sorted(torch.cat(found))


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
    for corner, values in samples.crossed_blocks(tick):
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
