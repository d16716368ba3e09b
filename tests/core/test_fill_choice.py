"""What no view saw, guessed two ways: the guess that would have known what was hardly seen is taken."""

import dataclasses

import pytest
import torch
import trimesh

from v3d_core.mesh.atlas_links import link_texels
from v3d_core.mesh.bake import SurfacePoints
from v3d_core.mesh.fill import cell_means, fill_unseen
from v3d_core.mesh.fill_choice import HIDDEN_WEIGHT, fill_by_trial, surface_means
from v3d_core.mesh.texels import find_texels
from v3d_core.mesh.unwrap import unwrap
from v3d_core.mesh.unwrap_config import UnwrapConfig
from v3d_core.mesh.visibility import face_normals
from v3d_core.mesh_queries import MeshQueries
from v3d_core.structures import Mesh

PITCH, WIDTH = 0.12, 0.1


@pytest.fixture(scope="module")
def bars():
    """Four bars side by side that do not touch; mesh, texels, places, links."""
    parts = [trimesh.creation.box((WIDTH, 0.1, 0.4)) for _ in range(4)]
    for k, part in enumerate(parts):
        part.apply_translation((k * PITCH, 0.0, 0.0))
    shape = trimesh.util.concatenate(parts).subdivide().subdivide().subdivide()
    vertices, faces = (torch.from_numpy(x.copy()) for x in (shape.vertices, shape.faces))
    # charts of our own: how close xatlas packs its charts changes with the CPU
    mesh = unwrap(Mesh(vertices.float(), faces.long()), UnwrapConfig(engine="charts"))
    texels = find_texels(mesh, 128, 128)
    normals = face_normals(MeshQueries(mesh.vertices, mesh.faces))
    return mesh, texels, SurfacePoints.of(mesh, texels, normals), link_texels(mesh, texels, 1, 1)


def error(found, truth, some):
    return float((found - truth)[some].square().mean().sqrt())


def bar_of(points):
    return (points.positions[:, 0] / PITCH).round()


def seen_from_the_side(points):
    """Faces below are unseen but for a rim that is seen at a flat angle."""
    below = points.normals[:, 1] < -0.5
    across = (points.positions[:, 0] - PITCH * bar_of(points)).abs()
    rim = below & (across > 0.4 * WIDTH)
    weights = torch.where(below, 0.0, 1.0)
    weights[rim] = HIDDEN_WEIGHT / 2
    return weights, weights > 0


def test_parts_of_their_own_colour_keep_it_below(bars):
    mesh, texels, points, links = bars
    truth = 0.1 + 0.8 * (bar_of(points)[:, None] % 2).expand(-1, 3)
    weights, seen = seen_from_the_side(points)
    colours = torch.where(seen[:, None], truth, 0.5)
    filled = fill_by_trial(colours, weights, seen, mesh, points, texels, links)
    assert torch.equal(filled[seen], colours[seen])
    assert error(filled, truth, ~seen) < 0.02
    cells = fill_unseen(colours, seen & (weights > HIDDEN_WEIGHT), points, texels, links)
    assert error(cells, truth, ~seen) > 0.2  # there they take the next bar's


def test_what_does_better_on_the_hardly_seen_is_taken(bars):
    mesh, texels, points, links = bars
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        truth = torch.rand(len(texels), 3, generator=random)
        weights, seen = seen_from_the_side(points)
        clear = seen & (weights > HIDDEN_WEIGHT)
        hidden = seen & ~clear
        guesses = [
            lambda known, truth=truth: cell_means(truth, known, points),
            lambda known, truth=truth, w=weights: surface_means(truth, w * known, mesh, texels),
        ]
        tried = [fill_unseen(truth, clear, points, texels, links, guess=g) for g in guesses]
        errors = [error(one, truth, hidden) for one in tried]
        best = guesses[errors.index(min(errors))]
        expected = fill_unseen(truth, seen, points, texels, links, guess=best)
        found = fill_by_trial(truth, weights, seen, mesh, points, texels, links)
        torch.testing.assert_close(found, expected)


def test_along_the_surface_colours_are_harmonic():
    """On a flat strip known at both ends, a straight line; faces that lie apart do not matter."""
    x = torch.linspace(0, 1, 21)
    vertices = torch.cat([torch.stack([x, torch.full_like(x, y), 0 * x], -1) for y in (0.0, 0.1)])
    k = torch.arange(20)
    faces = torch.cat(
        [torch.stack([k, k + 1, k + 21], -1), torch.stack([k + 1, k + 22, k + 21], -1)]
    )
    mesh = Mesh(vertices, faces, uvs=vertices[:, :2] * 0.9 + 0.02)
    texels = find_texels(mesh, 64, 64)
    place = texels.on_surface(mesh, vertices)[:, :1]
    ends = ((place < 0.049) | (place > 0.951))[:, 0]
    found = surface_means(place.expand(-1, 3), ends.float(), mesh, texels)
    assert (
        float((found - place)[~ends].abs().max()) < 0.05
    )  # an edge: ends take the mean of the texels in their faces
    torn = dataclasses.replace(
        mesh,
        vertices=vertices[faces].reshape(-1, 3),
        faces=torch.arange(3 * len(faces)).view(-1, 3),
        uvs=mesh.uvs[faces].reshape(-1, 2),
    )
    torch.testing.assert_close(
        surface_means(place.expand(-1, 3), ends.float(), torn, find_texels(torn, 64, 64)),
        found, atol=1e-3, rtol=0,
    )  # fmt: skip


def test_one_colour_stays_and_with_everything_seen_nothing_changes(bars):
    mesh, texels, points, links = bars
    weights, seen = seen_from_the_side(points)
    plain = torch.full((len(texels), 3), 0.3)
    filled = fill_by_trial(plain, weights, seen, mesh, points, texels, links)
    torch.testing.assert_close(filled, plain, atol=1e-4, rtol=0)
    every = torch.ones_like(seen)
    assert fill_by_trial(plain, weights, every, mesh, points, texels, links) is plain
