"""The splat .ply: round trips, other people's readers, and hostile headers."""

import errno
import os

import numpy as np
import pytest
import torch

from v3d_core.cameras import flip_splat_frame
from v3d_core.formats.atomic import OutputError
from v3d_core.formats.ply import read_splat_ply, write_splat_ply
from v3d_core.structures import GaussianSplats


def random_splats(count: int = 200, degree: int = 0, seed: int = 0) -> GaussianSplats:
    generator = torch.Generator().manual_seed(seed)
    bases = (degree + 1) ** 2

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return GaussianSplats(
        means=normal(count, 3),
        scales=(normal(count, 3) * 2 - 3).exp(),
        quats=torch.nn.functional.normalize(normal(count, 4), dim=-1),
        opacities=torch.sigmoid(normal(count) * 5),
        sh=normal(count, bases, 3),
    )


def edited(path, old: bytes, new: bytes):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "splat.ply"
    write_splat_ply(path, random_splats())
    return path


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_reading_and_writing_again_gives_the_same_bytes(tmp_path, degree):
    splats = random_splats(20_000, degree)
    first, second = tmp_path / "a.ply", tmp_path / "b.ply"
    write_splat_ply(first, splats)
    back = read_splat_ply(first)
    write_splat_ply(second, back)
    assert first.read_bytes() == second.read_bytes()
    for name in ("means", "sh"):
        assert torch.equal(getattr(back, name), getattr(splats, name))
    torch.testing.assert_close(back.scales, splats.scales)
    torch.testing.assert_close(back.quats, splats.quats)
    torch.testing.assert_close(back.opacities, splats.opacities, atol=2e-6, rtol=0)


@pytest.mark.parametrize("degree", [0, 3])
def test_other_software_reads_the_values_of_the_standard(tmp_path, degree):
    plyfile = pytest.importorskip("plyfile")
    splats = random_splats(50, degree)
    path = tmp_path / "splat.ply"
    write_splat_ply(path, splats)
    vertices = plyfile.PlyData.read(str(path))["vertex"]
    flipped = flip_splat_frame(splats)
    assert vertices["x"].tolist() == flipped.means[:, 0].tolist()
    np.testing.assert_array_equal(vertices["y"], -splats.means[:, 1])
    np.testing.assert_array_equal(vertices["f_dc_2"], flipped.sh[:, 0, 2])
    np.testing.assert_allclose(np.exp(vertices["scale_1"]), splats.scales[:, 1], rtol=1e-6)
    margin = 2.0**-20
    logits = torch.logit(splats.opacities.double().clamp(margin, 1 - margin))
    np.testing.assert_allclose(vertices["opacity"], logits, rtol=1e-6)
    np.testing.assert_array_equal(vertices["rot_0"], flipped.quats[:, 0])
    if degree:  # channel-major: f_rest_15 is the first green coefficient above DC
        np.testing.assert_array_equal(vertices["f_rest_15"], flipped.sh[:, 1, 1])
    assert not vertices["nx"].any()


def test_trimesh_opens_it_as_a_point_cloud(file):
    trimesh = pytest.importorskip("trimesh")
    cloud = trimesh.load(file)
    np.testing.assert_array_equal(cloud.vertices, flip_splat_frame(random_splats()).means)


def test_padding_to_degree_3_keeps_the_colours(tmp_path):
    splats = random_splats(degree=1)
    write_splat_ply(tmp_path / "a.ply", splats, pad_sh_degree_3=True)
    back = read_splat_ply(tmp_path / "a.ply")
    assert back.sh_degree == 3
    assert torch.equal(back.sh[:, :4], splats.sh) and not back.sh[:, 4:].any()


def test_opacities_0_and_1_stay_finite_and_in_place(tmp_path):
    splats = random_splats(2)
    splats = GaussianSplats(
        splats.means, splats.scales, splats.quats, torch.tensor([0.0, 1.0]), splats.sh
    )
    write_splat_ply(tmp_path / "a.ply", splats)
    back = read_splat_ply(tmp_path / "a.ply").opacities
    torch.testing.assert_close(back, torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)


def test_no_splats_at_all_is_a_valid_file(tmp_path):
    write_splat_ply(tmp_path / "a.ply", random_splats(3)[:0])
    assert len(read_splat_ply(tmp_path / "a.ply")) == 0


def test_foreign_types_extra_properties_and_elements_are_tolerated(file):
    reference = read_splat_ply(file)
    data = file.read_bytes()
    start = data.index(b"end_header\n") + 11
    names = [line.split()[-1].decode() for line in data[:start].split(b"\n") if b"property" in line]
    table = np.frombuffer(data[start:], "<f4").reshape(-1, len(names))
    dtype = [("label", "u1")] + [(n, "<f8" if n == "x" else "<f4") for n in names]
    rows = np.zeros(len(table), dtype)
    for column, name in enumerate(names):
        rows[name] = table[:, column]
    header = "ply\r\nformat binary_little_endian 1.0\r\ncomment by somebody\r\nelement camera 2\r\n"
    header += f"property float f\r\nelement vertex {len(rows)}\r\nproperty uchar label\r\n"
    header += "".join(f"property {'double' if n == 'x' else 'float32'} {n}\r\n" for n in names)
    header += "element face 1\r\nproperty list uchar int vertex_indices\r\nend_header\r\n"
    file.write_bytes(header.encode() + bytes(8) + rows.tobytes() + bytes([0]))
    back = read_splat_ply(file)
    assert torch.equal(back.means, reference.means) and torch.equal(back.sh, reference.sh)


def test_rotations_that_are_not_unit_are_normalised(file):
    splats = random_splats()
    data = bytearray(file.read_bytes())
    table = np.frombuffer(data, "<f4", offset=data.index(b"end_header\n") + 11).reshape(200, -1)
    table[:, -4:] *= 7
    file.write_bytes(data)
    torch.testing.assert_close(read_splat_ply(file).quats, splats.quats)


@pytest.mark.parametrize("column, value", [(0, np.nan), (6, np.inf), (-4, 0.0), (-5, 1e6)])
def test_invalid_gaussians_are_counted_and_refused_or_dropped(file, column, value):
    data = bytearray(file.read_bytes())
    table = np.frombuffer(data, "<f4", offset=data.index(b"end_header\n") + 11).reshape(200, -1)
    table[3:5, column] = value
    if column == -4:
        table[3:5, -4:] = 0
    file.write_bytes(data)
    with pytest.raises(ValueError, match="2 of 200 Gaussians have NaN"):
        read_splat_ply(file)
    assert len(read_splat_ply(file, drop_invalid=True)) == 198


def test_a_truncated_file_names_both_byte_numbers(file):
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"200 Gaussians of 68 bytes need 13600 bytes, 13500 are"):
        read_splat_ply(file)


@pytest.mark.parametrize(
    "old, new, message",
    [
        (b"vertex 200", b"vertex -200", "'-200' as number of 'vertex'"),
        (b"vertex 200", b"vertex 999999999999", "need 67999999999932 bytes, 13600 are there"),
        (b"vertex 200", b"vertex " + b"9" * 5000, "as number of 'vertex'"),
        (b"vertex 200", b"vertex 2e2", "'2e2' as number"),
        (b"element vertex", b"element points", "no element 'vertex'"),
        (b"binary_little_endian", b"ascii", "'format ascii 1.0' is not supported"),
        (b"binary_little_endian", b"binary_big_endian", "is not supported"),
        (b"format binary_little_endian 1.0\n", b"", "no 'format' line"),
        (b"ply\n", b"PLY\n", "not a .ply file"),
        (b"end_header\n", b"", "no end of the .ply header in the first"),
        (b"property float opacity\n", b"", r"not a 3D Gaussian splat \(missing: opacity\)"),
        (b"property float nx", b"property float x", "'x' stands twice"),
        (b"property float nx", b"property float f_rest_0", "1 f_rest properties"),
        (b"property float nx", b"property list uchar int nx", "list property 'nx'"),
        (b"property float nx", b"property quad nx", "unknown property 'quad nx'"),
        (b"property float nx", b"rubbish", "unknown line in the .ply header: 'rubbish'"),
        (b"element vertex", b"property float q\nelement vertex", "unknown line"),
        (
            b"element vertex",
            b"element face 9\nproperty list uchar int i\nelement vertex",
            "element 'face' with lists stands before",
        ),
        (
            b"element vertex",
            b"element blob 999999999999\nproperty double q\nelement vertex",
            "need 13600 bytes, 0 are there",
        ),
    ],
)
def test_hostile_headers_are_refused_with_a_reason(file, old, new, message):
    with pytest.raises(ValueError, match=message):
        read_splat_ply(edited(file, old, new))


def test_an_endless_header_is_not_read_to_its_end(file):
    file.write_bytes(b"ply\n" + b"comment x\n" * 1_000_000)
    with pytest.raises(ValueError, match=r"no end of the .ply header in the first 65536 bytes"):
        read_splat_ply(file)


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match=r"splat\.ply: the disk is full"):
        write_splat_ply(tmp_path / "splat.ply", random_splats())
    assert os.listdir(tmp_path) == []
