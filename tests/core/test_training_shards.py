"""Orbits on disk: what is written comes back, after a kill too, and damage is named."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.training.shards import (
    MixedSettingsError,
    OrbitShards,
    ShardWriter,
    read_index,
    shuffled,
    split_of,
)

ROOT = Path(__file__).resolve().parents[2]
SIZE, VIEWS = 12, 3
ORBIT = Orbit(num_views=VIEWS)


def frames_of(number):
    """Random frames; with their colours where nothing is, which must survive too."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (VIEWS, SIZE, SIZE, 4), dtype=torch.uint8, generator=generator)


def writer(folder, **changes):
    settings = {"validation": 0.3, "shard_objects": 4, "settings": {"shading": "flat"}, **changes}
    return ShardWriter(folder, settings.pop("orbit", ORBIT), settings.pop("size", SIZE), **settings)


def filled(folder, numbers, **changes):
    with writer(folder, **changes) as out:
        for number in numbers:
            out.add(f"object {number}", frames_of(number))
    return folder


@pytest.fixture
def ten(tmp_path):
    return filled(tmp_path / "data", range(10))


def test_every_orbit_comes_back_bit_for_bit(ten):
    data = OrbitShards(ten, "all")
    assert [len(s["objects"]) for s in data.index["shards"]] == [4, 4, 2]
    assert data.names == [f"object {n}" for n in range(10)] and len(data) == 10
    for number in range(10):
        assert torch.equal(data[number], frames_of(number))
    assert torch.equal(data.frames(7, [2, 0]), frames_of(7)[[2, 0]])
    data.verify()


def test_the_index_tells_form_cameras_and_digests(ten):
    index = json.loads((ten / "index.json").read_text(encoding="utf-8"))
    assert (index["version"], index["size"], index["views"]) == (1, SIZE, VIEWS)
    for shard in index["shards"]:
        content = (ten / shard["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        assert len(content) == shard["bytes"]
    cameras = OrbitShards(ten).cameras
    assert torch.equal(cameras.camera_to_world, orbit_cameras(ORBIT, SIZE, SIZE).camera_to_world)
    assert cameras.width == SIZE


def test_shards_are_plain_zip_files_of_png_pictures(ten):
    with zipfile.ZipFile(ten / "shard-00001.zip") as archive:
        entries = archive.infolist()
        assert [e.filename for e in entries[:4]] == [
            "0000/00.png", "0000/01.png", "0000/02.png", "0001/00.png",
        ]  # fmt: skip
        assert all(e.compress_type == zipfile.ZIP_STORED for e in entries)
        assert archive.read(entries[0])[:8] == b"\x89PNG\r\n\x1a\n"


def test_equal_orbits_make_equal_files(ten, tmp_path):
    again = filled(tmp_path / "again", range(10))
    for file in sorted(ten.iterdir()):
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_splits_part_the_objects_and_stay_when_data_are_added(ten):
    before = {split: OrbitShards(ten, split).names for split in ("train", "validation")}
    assert sorted(before["train"] + before["validation"]) == [f"object {n}" for n in range(10)]
    assert before["train"] and before["validation"]
    filled(ten, range(10, 40))
    for split, names in before.items():
        after = OrbitShards(ten, split)
        assert after.names[: len(names)] == names
        number = len(after) - 1
        assert torch.equal(after[number], frames_of(int(after.names[number].split()[1])))


def test_the_split_is_the_one_the_index_describes():
    names = [f"name {n}" for n in range(5000)]
    share = sum(split_of(name, 0.1) == "validation" for name in names) / len(names)
    assert share == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 5000) ** 0.5)  # 4 deviations
    for name in names[:50]:
        value = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64
        assert split_of(name, 0.1) == ("validation" if value < 0.1 else "train")
    # a larger share only moves objects out of the training set
    assert all(split_of(n, 0.3) == "validation" for n in names if split_of(n, 0.1) == "validation")
    assert {split_of(n, 0.0) for n in names} == {"train"}


KILLED = """
import os, signal, sys
from pathlib import Path
from v3d_core.cameras import Orbit
from v3d_core.training import shards
import torch
frames = lambda n: torch.randint(0, 256, (3, 12, 12, 4), dtype=torch.uint8,
                                 generator=torch.Generator().manual_seed(n))
digest = shards._sha256
def kill_in_the_third_shard(path):
    if "shard-00002" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return digest(path)
shards._sha256 = kill_in_the_third_shard
with shards.ShardWriter(sys.argv[1], Orbit(num_views=3), 12, {"shading": "flat"}, 0.3, 4) as out:
    for n in range(16):
        out.add(f"object {n}", frames(n))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_goes_on_behind_its_last_whole_shard(tmp_path):
    folder = tmp_path / "data"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list(folder.glob(".shard-*"))) == 1  # the half-written one
    assert len(OrbitShards(folder, "all")) == 8
    with writer(folder) as out:
        assert out.names == {f"object {n}" for n in range(8)}
        for number in range(16):
            if f"object {number}" not in out.names:
                out.add(f"object {number}", frames_of(number))
        assert not list(folder.glob(".shard-*"))
    straight = filled(tmp_path / "straight", range(16))
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {
        f.name: f.read_bytes() for f in straight.iterdir()
    }


def test_a_shard_that_is_not_in_the_index_is_made_again(ten):
    # killed after the shard's renaming and before the index's
    (ten / "shard-00003.zip").write_bytes(b"never counted")
    filled(ten, range(10, 14))
    data = OrbitShards(ten, "all")
    data.verify()
    assert torch.equal(data[13], frames_of(13))


def test_an_error_or_a_stop_keeps_what_is_done(tmp_path):
    class Stopped(BaseException):
        pass

    with pytest.raises(Stopped), writer(tmp_path / "data") as out:
        for number in range(6):
            out.add(f"object {number}", frames_of(number))
        raise Stopped
    data = OrbitShards(tmp_path / "data", "all")
    assert len(data) == 6 and torch.equal(data[5], frames_of(5))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"size": 16}, "size 12, asked for is 16"),
        ({"orbit": Orbit(num_views=3, elevation_deg=5.0)}, "elevation_deg 0.0, asked for is 5.0"),
        ({"settings": {"shading": "lit"}}, "settings.shading 'flat', asked for is 'lit'"),
        ({"settings": {}}, "settings.shading 'flat', asked for is None"),
        ({"validation": 0.1}, "validation 0.3, asked for is 0.1"),
    ],
)
def test_settings_are_not_mixed(ten, changes, complaint):
    before = (ten / "index.json").read_bytes()
    with pytest.raises(MixedSettingsError, match=complaint):
        writer(ten, **changes)
    assert (ten / "index.json").read_bytes() == before


def test_shards_of_other_lengths_may_be_added(ten):
    filled(ten, range(10, 13), shard_objects=2)
    assert [len(s["objects"]) for s in read_index(ten)["shards"]] == [4, 4, 2, 2, 1]


def test_two_writers_at_once_are_told_apart(ten):
    with pytest.raises(ValueError, match="another run wrote"), writer(ten) as first:
        filled(ten, range(20, 24))
        first.add("object 30", frames_of(30))
    data = OrbitShards(ten, "all")
    data.verify()
    assert len(data) == 14


def test_wrong_frames_names_and_folders_are_refused(ten, tmp_path):
    with writer(ten) as out:
        with pytest.raises(ValueError, match=r"object 3: .* already"):
            out.add("object 3", frames_of(3))
        with pytest.raises(ValueError, match=r"\(3, 12, 12, 4\) uint8, got \(2, 12, 12, 4\)"):
            out.add("short", frames_of(3)[:2])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        writer(tmp_path / "other")
    with pytest.raises(ValueError, match=r"v3d orbit-data"):
        OrbitShards(tmp_path / "other")
    with pytest.raises(ValueError, match="train, validation, all"):
        OrbitShards(ten, "test")


def test_a_damaged_shard_is_named(ten):
    file = ten / "shard-00001.zip"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF  # in a picture of objects 5
    file.write_bytes(content)
    data = OrbitShards(ten, "all")
    with pytest.raises(ValueError, match=r"shard-00001\.zip.*SHA-256"):
        data.verify()
    with pytest.raises(ValueError, match=r"shard-00001\.zip: the shard is damaged at object 5"):
        data[5]
    assert torch.equal(data[0], frames_of(0)) and torch.equal(data[9], frames_of(9))
    file.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=rf"shard-00001\.zip: .* {len(content) - 100} bytes"):
        OrbitShards(ten)
    file.unlink()
    with pytest.raises(ValueError, match=r"shard-00001\.zip: the shard is missing"):
        OrbitShards(ten)


@pytest.mark.parametrize("name", ["../shard-00000.zip", "/tmp/shard-00000.zip", "x.zip"])
def test_an_index_cannot_name_files_elsewhere(ten, name):
    index = json.loads((ten / "index.json").read_text())
    index["shards"][0]["file"] = name
    (ten / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="no shard's name"):
        OrbitShards(ten)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "v3d-orbits", "version": 1}'])
def test_a_damaged_index_is_named(ten, text):
    (ten / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json: not an index"):
        OrbitShards(ten)


def test_another_version_is_refused(ten):
    index = json.loads((ten / "index.json").read_text())
    (ten / "index.json").write_text(json.dumps({**index, "version": 2}))
    with pytest.raises(ValueError, match="version 2; v3d-orbits version 1 is read"):
        OrbitShards(ten)


def test_batches_take_every_orbit_at_most_once_in_an_order_of_the_seed(ten):
    data = OrbitShards(ten, "all")
    batches = list(data.batches(3, seed=1))
    assert [tuple(b.shape) for b in batches] == [(3, VIEWS, SIZE, SIZE, 4)] * 3
    order = shuffled(10, seed=1)
    assert sorted(order) == list(range(10))
    assert torch.equal(torch.cat(batches), torch.stack([frames_of(n) for n in order[:9]]))
    assert shuffled(10, 1) == order != shuffled(10, 2) and shuffled(10, 1, epoch=1) != order
    with pytest.raises(ValueError, match="a batch of 11 orbits, but all has 10"):
        next(data.batches(11))


def test_worker_processes_read_what_this_one_reads(ten):
    data = OrbitShards(ten, "all")
    assert torch.equal(data[0], frames_of(0))  # its shard is open when the workers start
    alone, helped = (torch.cat(list(data.batches(2, seed=3, workers=w))) for w in (0, 2))
    assert torch.equal(alone, helped)


def test_no_more_shards_stay_open_than_allowed(tmp_path, monkeypatch):
    from v3d_core.training import shards

    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    data = OrbitShards(filled(tmp_path / "data", range(6), shard_objects=1), "all")
    for number in (0, 3, 5, 1, 0, 2, 4):
        assert torch.equal(data[number], frames_of(number))
        assert len(data._open) <= 2
