"""COLMAP export: an independent reader gets our pixels back, and so does pycolmap."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from v3d_core.cameras import Orbit, look_at, orbit_cameras, project_points
from v3d_core.formats.colmap import rotation_to_quat, write_colmap_text
from v3d_core.structures import Cameras, Views

WIDTH, HEIGHT = 40, 30


def ball_views(varied: bool = False) -> Views:
    """A ball of radius 0.4 at the origin; with `varied`, odd poses and intrinsics per view."""
    cameras = orbit_cameras(Orbit(num_views=6, elevation_deg=20), WIDTH, HEIGHT)
    if varied:
        positions = torch.tensor([[2.0, 1, 0.5], [-1.5, -1, 1], [0.3, 2, -1]])
        poses = look_at(positions, torch.zeros(3), torch.tensor([0.3, 1, 0.2]))
        K = cameras.K[:3] * torch.tensor([1.0, 1.1, 0.9])[:, None, None]
        K[:, 2, 2] = 1
        K[:, 0, 2] += torch.tensor([0.0, 1.5, -2])
        cameras = Cameras(poses, K, WIDTH, HEIGHT)
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    centre, _ = project_points(torch.zeros(1, 3), cameras)
    distance = torch.hypot(x - centre[:, 0, 0, None, None], y - centre[:, 0, 1, None, None])
    masks = (distance < 5).float()
    names = tuple(f"r_{i:03d}" for i in range(len(cameras)))
    return Views(torch.full((len(cameras), HEIGHT, WIDTH, 3), 0.25), masks, cameras, names)


def rows(path) -> list[list[str]]:
    """Lines of a COLMAP text file without comments, as words."""
    lines = path.read_text().split("\n")
    return [line.split() for line in lines if not line.startswith("#")]


def rotation(w: float, x: float, y: float, z: float) -> np.ndarray:
    """The matrix of a unit quaternion, written out."""
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


@pytest.mark.parametrize("varied", [False, True])
def test_an_independent_reader_projects_points_onto_our_pixels(tmp_path, varied):
    views = ball_views(varied)
    write_colmap_text(tmp_path, views)
    cameras = {row[0]: row for row in rows(tmp_path / "sparse/0/cameras.txt") if row}
    assert len(cameras) == (3 if varied else 1)
    lines = rows(tmp_path / "sparse/0/images.txt")
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (20, 3))
    expected, _ = project_points(torch.from_numpy(points).float(), views.cameras)
    for view in range(len(views)):
        line, features = lines[2 * view], lines[2 * view + 1]
        assert features == [] and line[9] == f"r_{view:03d}.png"
        _, model, width, height, *parameters = cameras[line[8]]
        assert (model, int(width), int(height)) == ("PINHOLE", WIDTH, HEIGHT)
        fx, fy, cx, cy = map(float, parameters)
        quat, shift = np.array(line[1:5], float), np.array(line[5:8], float)
        x, y, z = (points @ rotation(*quat).T + shift).T
        pixels = np.stack([fx * x / z + cx, fy * y / z + cy], axis=1)
        np.testing.assert_allclose(pixels, expected[view], atol=1e-3)


def test_pycolmap_reads_the_same_model(tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    views = ball_views(varied=True)
    write_colmap_text(tmp_path, views)
    model = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    assert (len(model.cameras), len(model.images)) == (3, 3)
    assert len(model.points3D) == len(rows(tmp_path / "sparse/0/points3D.txt")) - 1
    point = np.array([0.1, -0.2, 0.3])
    expected, _ = project_points(torch.from_numpy(point)[None].float(), views.cameras)
    for image in model.images.values():
        view = views.names.index(os.path.splitext(image.name)[0])
        np.testing.assert_allclose(image.project_point(point), expected[view, 0], atol=1e-3)


def test_start_points_lie_inside_every_mask_and_have_the_objects_colour(tmp_path):
    views = ball_views()
    write_colmap_text(tmp_path, views)
    table = np.array([row for row in rows(tmp_path / "sparse/0/points3D.txt") if row], float)
    assert 100 < len(table) <= 5000
    pixels, _ = project_points(torch.from_numpy(table[:, 1:4]).float(), views.cameras)
    column, row = pixels.long().unbind(-1)
    assert all(float(mask[r, c].min()) == 1 for mask, r, c in zip(views.masks, row, column))
    assert (table[:, 4:7] == 64).all()


def test_given_points_and_colours_are_kept(tmp_path):
    points, colours = torch.tensor([[1.0, 2, 3]]), torch.tensor([[0.0, 0.5, 1]])
    write_colmap_text(tmp_path, ball_views(), points, colours)
    lines = [row for row in rows(tmp_path / "sparse/0/points3D.txt") if row]
    assert lines == [["1", "1", "2", "3", "0", "128", "255", "0"]]


def test_pictures_are_over_white_or_rgba_and_masks_follow_colmaps_names(tmp_path):
    views = ball_views()
    write_colmap_text(tmp_path / "white", views)
    write_colmap_text(tmp_path / "alpha", views, rgba=True)
    picture = np.asarray(Image.open(tmp_path / "white/images/r_000.png"))
    mask = np.asarray(Image.open(tmp_path / "white/masks/r_000.png.png"))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(picture[..., 0], np.where(mask, 64, 255))
    rgba = np.asarray(Image.open(tmp_path / "alpha/images/r_000.png"))
    np.testing.assert_array_equal(rgba[..., 3], mask)


def test_quaternions_are_right_in_all_four_forms():
    generator = torch.Generator().manual_seed(0)
    quats = torch.nn.functional.normalize(torch.randn(500, 4, generator=generator).double(), dim=-1)
    quats = torch.cat([quats, torch.eye(4, dtype=torch.float64)])
    matrices = torch.from_numpy(np.stack([rotation(*q) for q in quats.tolist()]))
    back = rotation_to_quat(matrices)
    # q and -q are one rotation
    torch.testing.assert_close((back * quats).sum(-1).abs(), torch.ones(504, dtype=torch.float64))
    assert bool((back[:, 0] >= 0).all())


def test_wrong_points_and_names_are_refused(tmp_path):
    views = ball_views()
    with pytest.raises(ValueError, match="0 points given"):
        write_colmap_text(tmp_path, views, torch.zeros(0, 3))
    with pytest.raises(ValueError, match="2 points but 1 colours"):
        write_colmap_text(tmp_path, views, torch.zeros(2, 3), torch.zeros(1, 3))
    for name in ("../up", "with space"):
        named = Views(views.images[:1], views.masks[:1], views.cameras[0], (name,))
        with pytest.raises(ValueError, match="cannot be a picture name"):
            write_colmap_text(tmp_path, named)
    assert os.listdir(tmp_path) == []


def test_a_cancelled_export_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_colmap_text(tmp_path, ball_views())
    assert os.listdir(tmp_path) == []
