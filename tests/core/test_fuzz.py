"""Readers of files meet broken ones: thousands of mutations of valid files, none crashes or hangs.

Every reader may refuse (ValueError or OSError, whose text names the file) or succeed; it may raise
nothing else. `V3D_FUZZ=2000` tries so many of each kind, from another seed each time:
`V3D_FUZZ=2000 V3D_FUZZ_SEED=7 python -m pytest tests/core/test_fuzz.py`. `fuzz_coverage.py` beside
this looks for inputs that reach new lines instead.
"""

import os
import random
import re
import signal
import sys
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_fields import small_field

from v3d_core.backends import MissingPackageError
from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.formats.mesh_files import write_mesh
from v3d_core.formats.mesh_read import read_mesh
from v3d_core.formats.pictures import read_pictures
from v3d_core.formats.ply import read_splat_ply, write_splat_ply
from v3d_core.formats.transforms import cameras_for, read_transforms
from v3d_core.formats.video import decode_video, write_video
from v3d_core.formats.views import load_views, save_views
from v3d_core.formats.weights import open_weights, write_safetensors
from v3d_core.neus.store import load_field, save_field
from v3d_core.structures import GaussianSplats, Mesh, Views

TRIES = int(os.environ.get("V3D_FUZZ", "30"))
SEED = int(os.environ.get("V3D_FUZZ_SEED", "0"))
SECONDS = 20  # for one file of a few kilobytes, on a busy machine
REFUSALS = (ValueError, OSError, MissingPackageError)
ODD_NUMBERS = (b"-1", b"0", b"1e999", b"nan", b"99999999999999999999", b"2147483648", b"1e-320")


def seeded():
    return torch.Generator().manual_seed(0)


def small_mesh(texture=True):
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    if not texture:
        return Mesh(corners, faces, vertex_colours=torch.rand(4, 3, generator=seeded()))
    return Mesh(
        corners,
        faces,
        uvs=torch.rand(4, 2, generator=seeded()),
        texture=torch.rand(8, 8, 3, generator=seeded()),
    )


def small_splats():
    rand = lambda *size: torch.rand(*size, generator=seeded())  # noqa: E731
    return GaussianSplats(
        means=rand(6, 3),
        scales=rand(6, 3) + 0.01,
        quats=torch.nn.functional.normalize(rand(6, 4) + 0.1, dim=-1),
        opacities=rand(6),
        sh=rand(6, 4, 3),
    )


def small_views(size=16):
    images = torch.rand(3, size, size, 3, generator=seeded())
    masks = torch.zeros(3, size, size)
    masks[:, 4:12, 4:12] = 1
    return Views(images, masks, orbit_cameras(Orbit(num_views=3), size, size))


def read_transforms_and_cameras(path):
    cameras_for(read_transforms(path), 16, 16)


def read_all_weights(path):
    with open_weights(path) as file:
        for name in file:
            file.read(name)


def read_picture(path):
    read_pictures([path])


def read_folder(path):
    """The file is a data set's transforms.json; its pictures are beside it."""
    load_views(path.parent)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Valid files by kind: path, and what reads it."""
    return write_originals(tmp_path_factory.mktemp("valid"))


def write_originals(folder):
    """Valid files of all kinds in a folder: path, and what reads it."""
    for suffix in ("glb", "obj", "ply", "stl"):
        write_mesh(folder / f"mesh.{suffix}", small_mesh(texture=suffix in ("glb", "obj")))
    write_splat_ply(folder / "splats.ply", small_splats())
    save_views(folder / "views", small_views())
    write_video(folder / "video.mp4", torch.rand(4, 32, 32, 3, generator=seeded()), 6)
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}
    layout = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    write_safetensors(folder / "w.safetensors", tensors, layout, {"made": "by a test"})
    torch.save({"state_dict": tensors}, folder / "w.ckpt")
    torch.save({"state_dict": tensors}, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_field(folder / "field.safetensors", small_field())
    picture = sorted((folder / "views").glob("*.png"))[0]
    return {
        "glb": (folder / "mesh.glb", read_mesh),
        "obj": (folder / "mesh.obj", read_mesh),
        "mesh_ply": (folder / "mesh.ply", read_mesh),
        "stl": (folder / "mesh.stl", read_mesh),
        "splat_ply": (folder / "splats.ply", read_splat_ply),
        "transforms": (folder / "views" / "transforms.json", read_transforms_and_cameras),
        "data_set": (folder / "views" / "transforms.json", read_folder),
        "picture": (picture, read_picture),
        "video": (folder / "video.mp4", decode_video),
        "safetensors": (folder / "w.safetensors", read_all_weights),
        "pickle": (folder / "w.ckpt", read_all_weights),
        "old_pickle": (folder / "old.pt", read_all_weights),
        "field": (folder / "field.safetensors", load_field),
    }


KINDS = (
    "glb obj mesh_ply stl splat_ply transforms data_set picture video safetensors pickle old_pickle "
    "field"
).split()


def mutate(data: bytes, dice: random.Random) -> bytes:
    """One to four changes: bits, ends, repeats, foreign bytes, numbers in text."""
    for _ in range(dice.randint(1, 4)):
        kind = dice.randrange(6)
        place = dice.randrange(max(1, len(data)))
        if kind == 0 and data:
            data = data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
        elif kind == 1:
            data = data[:place]
        elif kind == 2:
            piece = data[place : place + dice.randrange(1, 64)]
            data = data[:place] + piece * dice.randint(2, 9) + data[place + len(piece) :]
        elif kind == 3:
            data = data[:place] + dice.randbytes(dice.randint(1, 16)) + data[place:]
        elif kind == 4:
            data = data[:place] + b"\xff" * 4 + data[place + 4 :]
        else:
            numbers = list(re.finditer(rb"-?\d+(?:\.\d+)?", data[:4096]))
            if numbers:
                found = dice.choice(numbers)
                data = data[: found.start()] + dice.choice(ODD_NUMBERS) + data[found.end() :]
    return data


@contextmanager
def limited(what):
    """An error after `SECONDS`, where the system has alarms."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def late(*_):
        raise TimeoutError(f"{what} took over {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def meets(path: Path, read) -> str:
    """How a reader took a file; raises what it must not raise."""
    try:
        with warnings.catch_warnings(), limited(path):
            warnings.simplefilter("ignore")
            read(path)
    except TimeoutError:  # an OSError, but no refusal
        raise
    except REFUSALS as error:
        return f"refused: {error}"
    return "read"


def folder_state(folder: Path):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_read_or_refused(kind, originals, tmp_path):
    original, read = originals[kind]
    for neighbour in original.parent.iterdir():  # pictures of a data set, materials of an .obj
        if neighbour.is_file() and neighbour != original:
            (tmp_path / neighbour.name).write_bytes(neighbour.read_bytes())
    path, data = tmp_path / original.name, original.read_bytes()
    path.write_bytes(data)
    assert meets(path, read) == "read"
    dice = random.Random(f"{SEED} {kind}")
    outcomes = {"read": 0, "refused": 0}
    for number in range(TRIES):
        broken = mutate(data, dice)
        path.write_bytes(broken)
        before = folder_state(tmp_path)
        try:
            outcome = meets(path, read)
        except Exception as error:
            kept = Path(os.environ.get("V3D_FUZZ_KEEP", tmp_path)) / f"{kind}-{SEED}-{number}"
            kept.write_bytes(broken)
            raise AssertionError(f"{kind} {number}: {type(error).__name__}: {error}") from error
        assert folder_state(tmp_path) == before  # reading writes nothing
        outcomes[outcome.split(":")[0]] += 1
        if outcome != "read":
            assert len(outcome) < 2000
    sys.stdout.write(f"{kind}: {TRIES} tried, {outcomes}\n")
    assert outcomes["refused"] > 0  # the mutations do reach what readers check


def test_counts_that_no_memory_holds_are_refused_at_once(tmp_path):
    """Headers that promise more than the file has."""
    splat = tmp_path / "s.ply"
    write_splat_ply(splat, small_splats())
    splat.write_bytes(splat.read_bytes().replace(b"vertex 6", b"vertex 999999999999", 1))
    assert "refused" in meets(splat, read_splat_ply)
    weights = tmp_path / "w.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "refused" in meets(weights, read_all_weights)
    weights.write_bytes((2**62).to_bytes(8, "little") + header)
    assert "refused" in meets(weights, read_all_weights)

    # a picture of 60,000 x 60,000 pixels in a hundred bytes
    def chunk(name, body):
        return (
            len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
        )

    head = (60_000).to_bytes(4, "big") * 2 + bytes([8, 6, 0, 0, 0])
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    assert "refused" in meets(bomb, read_picture)


def test_pictures_outside_a_data_set_are_not_opened(tmp_path):
    save_views(tmp_path / "set", small_views())
    (tmp_path / "secret.png").write_bytes((tmp_path / "set" / "view_000.png").read_bytes())
    document = tmp_path / "set" / "transforms.json"
    text = document.read_text(encoding="utf-8")
    for name in ("../secret", str(tmp_path / "secret"), "..\\\\secret", "./x/../../secret"):
        document.write_text(text.replace("./view_000", name), encoding="utf-8")
        assert document.read_text(encoding="utf-8") != text
        assert "refused" in meets(document, read_folder)


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="needs symbolic links")
def test_links_that_lead_out_of_a_data_set_are_not_followed(tmp_path):
    save_views(tmp_path / "set", small_views())
    picture = tmp_path / "set" / "view_000.png"
    picture.rename(tmp_path / "outside.png")
    picture.symlink_to(tmp_path / "outside.png")
    assert "refused" in meets(tmp_path / "set" / "transforms.json", read_folder)
