"""The parts of the atlas against brute force and closed forms."""

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree

from v3d_core.mesh.chart_growing import face_pairs, grown_charts, projected_charts
from v3d_core.mesh.chart_overlaps import (
    covered_cells,
    covered_spans,
    faces_at_crossings,
    faces_at_crowded_points,
    faces_on_top,
)
from v3d_core.mesh.chart_packing import pack
from v3d_core.mesh.chart_repair import without_overlaps
from v3d_core.mesh.charts import (
    Charts,
    degenerate_faces,
    face_vectors,
    metric,
    signed_areas,
    welded,
    with_collapsed_faces,
    with_true_scale,
)
from v3d_core.mesh.unwrap_config import UnwrapConfig


def nothing(*_: object) -> None:
    pass


def flat(places: list[list[float]], faces: list[list[int]]) -> Charts:
    index = np.array(faces)
    count = len(places)
    return Charts(index, np.arange(count), np.array(places, float), np.zeros(len(index), np.int64))


def test_cells_of_random_triangles_are_those_that_brute_force_finds():
    triangles = np.random.default_rng(0).uniform(-5, 25, (40, 3, 2))
    found = np.zeros((40, 40, 40), np.bool_)
    for which, row, column in covered_cells(covered_spans(triangles)):
        found[which, row + 10, column + 10] = True
    y, x = np.meshgrid(np.arange(-10, 30) + 0.5, np.arange(-10, 30) + 0.5, indexing="ij")
    for number, (a, b, c) in enumerate(triangles):
        sides = [
            (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])
            for p, q in ((a, b), (b, c), (c, a))
        ]
        inside = np.all([s > 0 for s in sides], axis=0) | np.all([s < 0 for s in sides], axis=0)
        assert (found[number] == inside).all()


def test_faces_that_share_edges_share_no_cell_and_leave_none_out():
    # corners on the middles of cells are the hard case
    side = 9
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) + 0.5
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + side], axis=1),
            np.stack([corner + 1, corner + side + 1, corner + side], axis=1),
        ]
    )
    cover = np.zeros((side, side), np.int64)
    for _, row, column in covered_cells(covered_spans(grid[faces])):
        np.add.at(cover, (row, column), 1)
    assert (cover[: side - 1, : side - 1] == 1).all()


def test_two_triangles_across_each_other_are_found_by_cells_and_by_edges():
    charts = flat([[0, 0], [0, 10], [10, 0], [4, -2], [5, 12], [6, -2]], [[0, 1, 2], [3, 4, 5]])
    assert faces_on_top(charts, 0.5, nothing).sum() == 1
    assert faces_at_crossings(charts, nothing).tolist() == [False, True]  # the smaller one
    apart = flat([[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [3, 0]], [[0, 1, 2], [3, 4, 5]])
    assert not faces_on_top(apart, 0.01, nothing).any()
    assert not faces_at_crossings(apart, nothing).any()


def test_an_overlap_thinner_than_a_cell_is_found_by_its_edges():
    charts = flat([[0, 0], [0, 10], [10, 0], [-5, 4], [1e-9, 5], [-5, 6]], [[0, 1, 2], [3, 4, 5]])
    assert not faces_on_top(charts, 0.5, nothing).any()
    assert faces_at_crossings(charts, nothing).any()


@pytest.mark.parametrize(("corners", "crowded"), [(6, False), (7, True)])
def test_a_fan_of_more_than_a_full_turn_is_crowded(corners, crowded):
    angles = -np.arange(corners + 1) * math.pi / 3
    rim = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    charts = flat([[0, 0], *rim.tolist()], [[0, k + 1, k + 2] for k in range(corners)])
    assert faces_at_crowded_points(charts).any() == crowded


def test_the_metric_of_a_face_laid_flat_is_the_identity():
    rng = np.random.default_rng(1)
    places = rng.uniform(size=(30, 2))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    vertices = np.c_[places, np.zeros(30)] @ turn
    faces = np.arange(30).reshape(-1, 3)
    assert np.allclose(metric(vertices, faces, places, faces), np.eye(2), atol=1e-9)
    stretched = metric(vertices, faces, places * [2, 3], faces)
    assert np.allclose(np.linalg.det(stretched), 36)


def test_true_scale_undoes_any_linear_map_of_a_flat_piece():
    rng = np.random.default_rng(2)
    places = rng.uniform(size=(3, 2))
    vertices = np.c_[places, np.zeros(3)]
    faces = np.array([[0, 1, 2]])
    for matrix in ([[3, 1], [0.2, 0.5]], [[-1, 0], [0, 1]], [[0.01, 0], [0, 0.01]]):
        bent = Charts(faces, np.arange(3), places @ np.array(matrix), np.zeros(1, np.int64))
        result = with_true_scale(bent, vertices, faces)
        assert np.allclose(metric(vertices, faces, result.places, faces), np.eye(2))
        assert signed_areas(result.places, faces)[0] < 0


def test_pairs_leave_out_rims_edges_of_three_faces_and_faces_that_disagree():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [2, 0, 0]], float)
    agree, disagree = [[0, 1, 2], [2, 1, 3]], [[0, 1, 2], [1, 2, 3]]
    pairs, lengths, outlines = face_pairs(vertices, np.array(agree))
    assert pairs.tolist() == [[0, 1]] and lengths[0] == pytest.approx(math.sqrt(2))
    assert outlines.tolist() == pytest.approx([2 + math.sqrt(2)] * 2)
    assert not len(face_pairs(vertices, np.array(disagree))[0])
    assert not len(face_pairs(vertices, np.array([*agree, [1, 2, 4]]))[0])


def box() -> tuple[np.ndarray, np.ndarray]:
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = [[a, b, c] for a, b, c, d in sides] + [[a, c, d] for a, b, c, d in sides]
    return corners, np.array(faces)


def test_a_box_is_cut_into_its_six_sides():
    vertices, faces = box()
    charts = grown_charts(vertices, faces, 40, nothing)
    assert charts.count == 6
    assert (charts.labels[:6] == charts.labels[6:]).all()  # both halves of each side
    assert np.allclose(metric(vertices, faces, charts.places, charts.faces), np.eye(2))


@pytest.mark.parametrize("tilt", [20, 55, 75])
def test_no_face_leans_more_than_the_bound(tilt):
    rng = np.random.default_rng(3)
    side = 30
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    vertices = np.stack([x, y, 2 * rng.normal(size=x.shape)], axis=-1).reshape(-1, 3)
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    faces = np.stack([corner, corner + 1, corner + side], axis=1)
    faces = np.concatenate([faces, np.stack([corner + 1, corner + side + 1, corner + side], 1)])
    charts = grown_charts(vertices, faces, tilt, nothing)
    normals, areas = face_vectors(vertices, faces)
    means = np.zeros((charts.count, 3))
    np.add.at(means, charts.labels, normals * areas[:, None])
    means /= np.linalg.norm(means, axis=1)[:, None]
    cosines = (normals * means[charts.labels]).sum(axis=1)
    assert cosines.min() >= math.cos(math.radians(tilt)) - 1e-9
    assert (signed_areas(charts.places, charts.faces) < 0).all()


def test_a_chart_that_is_folded_over_is_taken_apart():
    vertices, faces = box()
    one = projected_charts(vertices, faces, (vertices[faces].mean(axis=1)[:, 0] > 0.9).astype(int))
    charts = without_overlaps(one, vertices, faces, UnwrapConfig(), nothing)
    assert not faces_on_top(charts, 1e-3, nothing).any()
    assert (signed_areas(charts.places, charts.faces) < 0).all()
    assert (charts.sources[charts.faces] == faces).all()


def test_faces_without_area_lie_on_a_point_of_a_neighbour():
    vertices, faces = box()
    faces = np.concatenate([faces, [[0, 0, 1], [0, 1, 0]]])
    thin = degenerate_faces(vertices, faces)
    assert thin.tolist() == [False] * 12 + [True] * 2
    charts = grown_charts(vertices, faces[:12], 40, nothing)
    whole = Charts(
        np.concatenate([charts.faces, np.zeros((2, 3), np.int64)]),
        charts.sources,
        charts.places,
        np.r_[charts.labels, -1, -1],
    )
    whole = with_collapsed_faces(whole, faces, len(vertices))
    assert (whole.sources[whole.faces] == faces).all()
    assert np.allclose(signed_areas(whole.places, whole.faces)[12:], 0)
    assert whole.count == 6


def test_welding_joins_what_lies_at_one_place_bit_for_bit():
    positions = np.array([[0.0, 0, 0], [1, 0, 0], [-0.0, 0, 0], [1 + 1e-15, 0, 0]])
    unique, faces = welded(positions, np.array([[0, 1, 2], [2, 3, 1]]))
    assert len(unique) == 3
    assert faces[0, 0] == faces[0, 2] == faces[1, 0] and faces[1, 1] != faces[1, 2]
    assert (unique[faces] == positions[[[0, 1, 2], [2, 3, 1]]]).all()


def rectangles(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # places, charts and edges of upright rectangles, each turned by its own angle
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    angles = np.random.default_rng(5).uniform(0, 7, len(sizes))
    turns = np.stack([np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)], axis=1)
    places = np.einsum("cpi,cij->cpj", unit[None] * sizes[:, None], turns.reshape(-1, 2, 2))
    edges = np.stack([np.arange(4), np.roll(np.arange(4), -1)], axis=1)
    edges = (edges[None] + 4 * np.arange(len(sizes))[:, None, None]).reshape(-1, 2)
    return places.reshape(-1, 2), np.repeat(np.arange(len(sizes)), 4), edges


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("resolution", [128, 2048])
def test_packed_charts_keep_their_shape_one_scale_and_their_distance(resolution, padding):
    sizes = np.random.default_rng(4).uniform(1, 10, (60, 2))
    places, labels, edges = rectangles(sizes)
    packed = pack(places, labels, edges, resolution, padding, nothing)
    assert packed.min() >= padding // 2 and packed.max() <= resolution - padding // 2
    before, after = places.reshape(-1, 4, 2), packed.reshape(-1, 4, 2)
    gram = [(m - m[:, :1]) @ (m - m[:, :1]).transpose(0, 2, 1) for m in (before, after)]
    scale = gram[1].sum() / gram[0].sum()
    assert np.allclose(gram[1], scale * gram[0], atol=1e-6 * gram[1].max())
    areas = [signed_areas(m, np.arange(len(m)).reshape(-1, 4)[:, :3]) for m in (places, packed)]
    assert (np.sign(areas[0]) == np.sign(areas[1])).all()  # turned, never mirrored
    box = (after.max(axis=1) - after.min(axis=1)).prod(axis=1)
    assert np.allclose(box, scale * sizes.prod(axis=1), rtol=0.1)  # all stand upright
    steps = np.linspace(0, 1, 200)[:, None, None]
    rims = (packed[edges[:, 0]] * (1 - steps) + packed[edges[:, 1]] * steps).transpose(1, 0, 2)
    rims = rims.reshape(len(sizes), -1, 2)
    for number, rim in enumerate(rims):
        others = cKDTree(np.delete(rims, number, axis=0).reshape(-1, 2))
        assert others.query(rim, p=np.inf)[0].min() >= padding


def test_equal_squares_fill_the_texture():
    places, labels, edges = rectangles(np.ones((64, 2)))
    packed = pack(places, labels, edges, 1024, 0, nothing)
    assert np.abs(signed_areas(packed, np.arange(256).reshape(-1, 4)[:, :3])).sum() > 0.3 * 1024**2


def test_too_many_charts_for_the_texels_are_an_error():
    places, labels, edges = rectangles(np.ones((300, 2)))
    with pytest.raises(ValueError, match="300 charts with 8 texels"):
        pack(places, labels, edges, 64, 8, nothing)
