"""Over-used edges come apart and nothing else changes."""

import numpy as np
import pytest
import torch
import trimesh

from v3d_core.mesh_manifold import drop_fins, split_shared_edges
from v3d_core.structures import Mesh


def two_cubes_at_an_edge(colours: bool = False) -> Mesh:
    """Two unit cubes that touch along the edge x = y = 1 only, welded there."""
    first = trimesh.creation.box(bounds=[[0, 0, 0], [1, 1, 1]])
    second = trimesh.creation.box(bounds=[[1, 1, 0], [2, 2, 1]])
    welded = trimesh.util.concatenate(first, second)
    welded.merge_vertices()
    vertices = torch.tensor(np.array(welded.vertices), dtype=torch.float32)
    faces = torch.tensor(np.array(welded.faces), dtype=torch.int64)
    tint = vertices / 2 if colours else None
    return Mesh(vertices, faces, vertex_colours=tint)


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)


def test_touching_bodies_become_two_watertight_ones():
    mesh = two_cubes_at_an_edge()
    assert not as_trimesh(mesh).is_watertight and len(mesh.vertices) == 14
    split = split_shared_edges(mesh)
    apart = as_trimesh(split)
    assert apart.is_watertight and apart.is_winding_consistent
    assert len(split.vertices) == 16
    bodies = apart.split()
    assert sorted(body.volume for body in bodies) == pytest.approx([1.0, 1.0])


def test_positions_and_colours_of_every_corner_stay():
    mesh = two_cubes_at_an_edge(colours=True)
    split = split_shared_edges(mesh)
    assert torch.equal(split.vertices[split.faces], mesh.vertices[mesh.faces])
    assert torch.equal(split.vertex_colours[split.faces], mesh.vertex_colours[mesh.faces])


def test_a_body_that_pinches_itself_along_an_edge_stays_one_body():
    """Three cubes in an L plus one across the corner: the shared edge belongs to one body."""
    solid = np.zeros((4, 4, 4), bool)
    for cell in ((1, 1, 1), (2, 2, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2)):
        solid[cell] = True
    mesh = cubes_surface(solid)
    assert not as_trimesh(mesh).is_watertight
    apart = as_trimesh(split_shared_edges(mesh))
    assert apart.is_watertight and apart.is_winding_consistent
    assert apart.volume == pytest.approx(5.0)


def cubes_surface(solid: np.ndarray) -> Mesh:
    """Outward quads between solid and empty cells, vertices welded."""
    corners: dict[tuple[int, int, int], int] = {}
    faces = []
    for cell in np.argwhere(solid):
        for axis in range(3):
            for side in (0, 1):
                neighbour = cell.copy()
                neighbour[axis] += 2 * side - 1
                if solid[tuple(neighbour)]:
                    continue
                u, v = (axis + 1) % 3, (axis + 2) % 3
                quad = []
                for du, dv in ((0, 0), (1, 0), (1, 1), (0, 1)):
                    point = cell.copy()
                    point[axis] += side
                    point[u] += du
                    point[v] += dv
                    quad.append(corners.setdefault(tuple(point.tolist()), len(corners)))
                quad = quad if side else quad[::-1]
                faces += [[quad[0], quad[1], quad[2]], [quad[0], quad[2], quad[3]]]
    return Mesh(torch.tensor(list(corners), dtype=torch.float32), torch.tensor(faces))


def test_a_clean_mesh_is_returned_as_it_is():
    ball = trimesh.creation.icosphere(subdivisions=2)
    mesh = Mesh(
        torch.tensor(np.array(ball.vertices), dtype=torch.float32),
        torch.tensor(np.array(ball.faces), dtype=torch.int64),
    )
    assert split_shared_edges(mesh) is mesh


def test_random_touching_cells_are_always_taken_apart():
    """Any heap of cells: cubes touch at edges and corners in every way, also round a hole."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        solid = np.zeros((6, 6, 6), bool)
        solid[1:-1, 1:-1, 1:-1] = generator.random((4, 4, 4)) < 0.4
        mesh = cubes_surface(solid)
        apart = as_trimesh(split_shared_edges(mesh))
        assert apart.is_watertight and apart.is_winding_consistent
        assert apart.volume == pytest.approx(float(solid.sum()))


def test_faces_back_to_back_go_and_single_ones_stay():
    ball = trimesh.creation.icosphere(subdivisions=1)
    vertices = torch.tensor(np.array(ball.vertices), dtype=torch.float32)
    faces = torch.tensor(np.array(ball.faces), dtype=torch.int64)
    tip = torch.tensor([[0.0, 0.0, 3.0]])
    a, b = faces[0, :2].tolist()
    fin = torch.tensor([[a, b, len(vertices)], [b, a, len(vertices)]])
    finned = Mesh(torch.cat([vertices, tip]), torch.cat([faces, fin]))
    assert not as_trimesh(finned).is_watertight
    for clean in (drop_fins(finned), split_shared_edges(finned)):
        assert torch.equal(clean.faces, faces) and len(clean.vertices) == len(vertices)
        assert as_trimesh(clean).is_watertight
