"""Texels, what sampling reads, neighbours on the surface, and the filling of the unseen."""

import math

import pytest
import torch
import torch.nn.functional as F
from mesh_samples import cube, quads, square

from v3d_core.mesh import atlas_links
from v3d_core.mesh.atlas_links import link_texels, seam_edges, seam_rows
from v3d_core.mesh.bake import SurfacePoints
from v3d_core.mesh.fill import fill_unseen
from v3d_core.mesh.fill_kriging import kriged_colours
from v3d_core.mesh.solver import conjugate_gradients
from v3d_core.mesh.taps import Taps
from v3d_core.mesh.texels import bilinear_taps, charts_of_faces, fill_gutter, find_texels
from v3d_core.mesh.visibility import face_normals, sample_texture
from v3d_core.mesh_queries import MeshQueries
from v3d_core.structures import Mesh


def test_texels_of_a_full_atlas_lie_where_interpolation_says():
    places = torch.tensor([[[0.0, 1, 0], [0, 0, 0], [2, 0, 0], [2, 1, 0]]])
    mesh = quads(places, square(0, 0, 1, 1)[None])
    texels = find_texels(mesh, 12, 20)
    assert texels.index.tolist() == list(range(240)) and bool(texels.inside.all())
    y, x = torch.meshgrid(torch.arange(12), torch.arange(20), indexing="ij")
    expected = torch.stack([(x + 0.5) / 20 * 2, 1 - (y + 0.5) / 12, 0 * x], dim=-1)
    torch.testing.assert_close(
        texels.on_surface(mesh, mesh.vertices), expected.reshape(-1, 3), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("seed", range(3))
def test_texels_are_those_near_faces_with_the_nearest_place(seed):
    # the same question in space, where the atlas lies in the plane z = 0
    uvs = torch.rand(18, 2, generator=torch.Generator().manual_seed(seed)) * 0.9 + 0.05
    faces = torch.arange(18).view(-1, 3)
    mesh = Mesh(F.pad(uvs, (0, 1)), faces, uvs=uvs)
    height, width = 30, 40
    texels = find_texels(mesh, height, width)
    flat = F.pad(uvs * torch.tensor([width, height]) - 0.5, (0, 1)).float()
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack([x, y, 0 * x], dim=-1).reshape(-1, 3).float()
    queries = MeshQueries(flat, faces, "torch")
    closest = queries.closest(centres)
    clear = (closest.distance - math.sqrt(2)).abs() > 1e-4
    found = torch.zeros(height * width, dtype=torch.bool)
    found[texels.index] = True
    assert torch.equal(found[clear], closest.distance[clear] <= math.sqrt(2))
    places = texels.on_surface(Mesh(flat, faces), flat)
    distance = (places - centres[texels.index]).norm(dim=-1)
    torch.testing.assert_close(distance, closest.distance[texels.index], atol=1e-4, rtol=0)


def test_overlapping_charts_are_counted():
    mesh = cube()
    assert find_texels(mesh, 48, 48).overlap == 0
    assert mesh.uvs is not None
    twice = Mesh(mesh.vertices, torch.cat([mesh.faces, mesh.faces]), uvs=mesh.uvs)
    assert find_texels(twice, 48, 48).overlap > 0.9


def test_uvs_out_of_range_are_refused_with_their_range():
    mesh = quads(torch.rand(1, 4, 3), square(-0.5, 0, 3, 1)[None])
    with pytest.raises(ValueError, match=r"from -0.5 to 3, .* unwrap the mesh again"):
        find_texels(mesh, 16, 16)


def test_sampling_is_that_of_grid_sample():
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(9, 13, 3, generator=generator)
    uvs = torch.rand(300, 2, generator=generator) * 1.2 - 0.1
    expected = F.grid_sample(
        texture.permute(2, 0, 1)[None], (2 * uvs - 1)[None, None], "bilinear", "border", False
    )[0, :, 0].T  # fmt: skip
    torch.testing.assert_close(sample_texture(texture, uvs), expected, atol=2e-6, rtol=0)


def test_sampling_inside_faces_reads_only_texels_of_the_atlas():
    mesh = cube()
    texels = find_texels(mesh, 32, 32)
    known = torch.zeros(32 * 32)
    known[texels.index] = 1
    weights = torch.rand(5000, 3, generator=torch.Generator().manual_seed(1))
    weights /= weights.sum(-1, keepdim=True)
    assert mesh.uvs is not None
    uvs = (weights[..., None] * mesh.uvs[mesh.faces[torch.arange(5000) % 12]]).sum(1)
    index, weight = bilinear_taps(uvs, 32, 32)
    torch.testing.assert_close((weight * known[index]).sum(-1), torch.ones(5000))


def test_gutter_takes_the_nearest_texel():
    mesh = quads(torch.rand(1, 4, 3), square(0.4, 0.4, 0.6, 0.6)[None])
    texels = find_texels(mesh, 20, 20)
    texture = torch.zeros(400, 1)
    texture[texels.index] = torch.rand(len(texels), 1) + 1
    filled = fill_gutter(texture.view(20, 20, 1), texels).view(-1)
    row, column = torch.arange(400) // 20, torch.arange(400) % 20
    near = (row[:, None] - row[texels.index]) ** 2 + (column[:, None] - column[texels.index]) ** 2
    chosen = (filled[:, None] - texture[texels.index, 0]).abs().argmin(dim=1)
    assert torch.equal(filled[texels.index], texture[texels.index, 0])
    assert torch.equal(near.gather(1, chosen[:, None])[:, 0], near.amin(dim=1))


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_taps_are_one_matrix_in_both_directions(device):
    generator = torch.Generator().manual_seed(2)
    index = torch.randint(0, 30, (50, 8), generator=generator)
    weight = torch.rand(50, 8, generator=generator)
    dense = torch.zeros(50, 30).scatter_add_(1, index, weight)
    taps = Taps(index.to(device), weight.to(device), 30)
    x, y = torch.rand(30, 3, generator=generator), torch.rand(50, 3, generator=generator)
    torch.testing.assert_close(taps.apply(x.to(device)).cpu(), dense @ x)
    out = torch.ones(30, 3, device=device)
    taps.adjoint(y.to(device), out)
    torch.testing.assert_close(out.cpu(), 1 + dense.T @ y)
    if device == "cpu":
        diagonal = torch.zeros(30)
        taps.squares(y[:, 0], diagonal)
        torch.testing.assert_close(diagonal, (dense.square() * y[:, :1]).sum(0))


def test_links_are_a_quadratic_form_that_only_constants_leave_at_zero():
    mesh = cube()
    texels = find_texels(mesh, 20, 20)
    links = link_texels(mesh, texels, 0.3, 2.0)
    matrix = links.apply(torch.eye(400))
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.diagonal(), links.diagonal())
    some = matrix[texels.index][:, texels.index].double()
    eigenvalues = torch.linalg.eigvalsh(some)
    # one constant for the whole surface: seams join the six charts
    assert float(eigenvalues[0].abs()) < 1e-5 and float(eigenvalues[1]) > 1e-4
    torch.testing.assert_close(some.sum(1), torch.zeros(len(some)).double(), atol=1e-5, rtol=0)


def test_links_among_some_texels_are_their_part_of_the_matrix():
    mesh = cube()
    texels = find_texels(mesh, 20, 20)
    links = link_texels(mesh, texels, 0.3, 2.0)
    some = texels.index[torch.rand(len(texels), generator=torch.Generator().manual_seed(6)) < 0.3]
    part = links.among(some)(torch.eye(len(some)))
    torch.testing.assert_close(part, links.apply(torch.eye(400))[some][:, some])


def test_the_form_is_the_same_in_bands_of_rows(monkeypatch):
    mesh = cube()
    links = link_texels(mesh, find_texels(mesh, 20, 20), 0.3, 2.0)
    values = torch.rand(400, 3, generator=torch.Generator().manual_seed(7))
    whole = links.apply(values)
    for texels_at_once in (1, 60, 400):
        monkeypatch.setattr(atlas_links, "TEXELS_AT_ONCE", texels_at_once)
        torch.testing.assert_close(links.apply(values), whole, atol=1e-6, rtol=0)


def test_a_cube_of_six_charts_has_twelve_seams_that_meet_in_space():
    mesh = cube()
    first, second = seam_edges(mesh)
    assert len(first) == 12 and len(charts_of_faces(mesh).unique()) == 6
    assert torch.equal(mesh.vertices[first], mesh.vertices[second])
    # what varies with the place alone agrees across seams, up to the rim's half texel
    texels = find_texels(mesh, 256, 256)
    atlas = torch.zeros(256 * 256, 3)
    atlas[texels.index] = texels.on_surface(mesh, mesh.vertices)
    across = seam_rows(mesh, 256, 256).apply(atlas)
    texel = 1 / (0.27 * 256)  # world units
    assert float(across.abs().max()) < 1.5 * texel


def test_conjugate_gradients_solve_several_columns():
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(12, 12, generator=generator).double()
    matrix = root @ root.T + torch.eye(12)
    right = torch.randn(12, 3, generator=generator).double()
    right[:, 2] = 0
    inverse = 1 / matrix.diagonal()[:, None]
    found = conjugate_gradients(lambda v: matrix @ v, right, inverse, torch.zeros_like(right), 40)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right))


def strip(count):
    """Unit squares in a row in space, in the atlas in reverse order."""
    places = torch.stack(
        [torch.tensor([[i, 1.0, 0], [i, 0, 0], [i + 1, 0, 0], [i + 1, 1, 0]]) for i in range(count)]
    )
    width = 1 / count
    order = [(3 * i + 1) % count for i in range(count)]
    atlas = [square(k * width + 0.02, 0.1, (k + 1) * width - 0.02, 0.6) for k in order]
    return quads(places, torch.stack(atlas))


def prepared(mesh, resolution):
    texels = find_texels(mesh, resolution, resolution)
    normals = face_normals(MeshQueries(mesh.vertices, mesh.faces))
    return texels, SurfacePoints.of(mesh, texels, normals), link_texels(mesh, texels, 1.0, 1.0)


def test_unseen_texels_follow_the_surface_and_not_the_atlas():
    # squares 0 and 1 are red, 3 and 4 green; 2 lies between them in space, elsewhere in the atlas
    mesh = strip(5)
    texels, points, links = prepared(mesh, 100)
    x = points.positions[:, 0]
    truth = torch.where(x[:, None] < 2.5, torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]))
    square_of = texels.face // 2
    seen = square_of != 2
    colours = torch.where(seen[:, None], truth, torch.tensor([0.0, 0, 1]))
    guessed = kriged_colours(colours, seen.float(), points)
    filled = fill_unseen(colours, seen, guessed, texels, links)
    assert torch.equal(filled[seen], colours[seen])
    new = filled[~seen]
    assert float(new[:, 2].abs().max()) < 1e-4  # what was there before is gone
    # a membrane between two ends: a ramp
    ramp = 3 - x[~seen]
    assert float((new[:, 0] - ramp).abs().max()) < 0.12


def test_filling_stays_within_what_was_seen_and_guessed():
    mesh = cube()
    texels, points, links = prepared(mesh, 64)
    seen = points.positions[:, 0] > 0
    colours = torch.rand(len(texels), 3, generator=torch.Generator().manual_seed(4))
    filled = fill_unseen(colours, seen, colours.flip(0), texels, links)
    assert float(filled.min()) > -0.02 and float(filled.max()) < 1.02
    plain = torch.full_like(colours, 0.3)
    kept = fill_unseen(plain, seen, plain, texels, links)
    torch.testing.assert_close(kept, plain, atol=1e-4, rtol=0)
    assert fill_unseen(plain, torch.ones_like(seen), plain, texels, links) is plain
