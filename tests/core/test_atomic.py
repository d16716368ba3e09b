"""Outputs are complete or absent, and errors name the path and the remedy."""

import errno
import os

import pytest

from v3d_core.formats.atomic import OutputError, atomic_folder, atomic_path


def test_a_file_appears_only_at_the_end_and_the_temporary_one_keeps_the_suffix(tmp_path):
    target = tmp_path / "new" / "folder" / "mesh.glb"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"all of it")
        assert temporary.suffix == ".glb" and temporary.parent == target.parent
        assert not target.exists()
    assert target.read_bytes() == b"all of it"
    assert os.listdir(target.parent) == ["mesh.glb"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_an_early_end_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    target = tmp_path / "splat.ply"
    target.write_text("old")
    with pytest.raises(interruption), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise interruption
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["splat.ply"]


def test_a_full_disk_while_writing_names_the_file_and_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match=r"report\.json: the disk is full") as caught:
        with atomic_path(tmp_path / "report.json") as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_a_full_disk_at_the_rename_leaves_nothing(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="the disk is full"):
        with atomic_path(tmp_path / "report.json") as temporary:
            temporary.write_text("{}")
    assert os.listdir(tmp_path) == []


def test_an_unwritable_folder_is_named(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(OutputError, match=r"a\.ply: permission denied; choose a folder"):
        with atomic_path(tmp_path / "a.ply"):
            pytest.fail("the block must not start")


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    blocker = tmp_path / "out"
    blocker.write_text("not a folder")
    for path in (blocker / "a.ply", blocker / "deep" / "a.ply"):
        with pytest.raises(OutputError, match="out is a file"):
            with atomic_path(path):
                pytest.fail("the block must not start")
    with pytest.raises(OutputError, match="out is a file"):
        with atomic_folder(blocker):
            pytest.fail("the block must not start")


def test_a_folder_as_target_is_refused(tmp_path):
    with pytest.raises(OutputError, match="it is a folder"):
        with atomic_path(tmp_path):
            pytest.fail("the block must not start")


def test_errors_about_other_files_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing_input"):
        with atomic_path(tmp_path / "a.ply"):
            open(tmp_path / "missing_input")
    assert os.listdir(tmp_path) == []


def test_a_folder_fills_at_the_end_and_keeps_other_files(tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    with atomic_folder(tmp_path) as staging:
        (staging / "images").mkdir()
        (staging / "images" / "a.png").write_text("picture")
        (staging / "transforms.json").write_text("{}")
        assert not (tmp_path / "transforms.json").exists()
    assert sorted(os.listdir(tmp_path)) == ["images", "notes.md", "transforms.json"]
    assert os.listdir(tmp_path / "images") == ["a.png"]


def test_texts_that_name_files_move_last(tmp_path, monkeypatch):
    moved = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(a.name), real(a, b)))
    with atomic_folder(tmp_path) as staging:
        for name in ("a.json", "z.png", "b.obj", "m.mtl"):
            (staging / name).write_text("")
    assert moved == ["z.png", "m.mtl", "a.json", "b.obj"]


@pytest.mark.parametrize("failing", ["a.png", "m.mtl", "b.obj"])
def test_a_move_that_fails_undoes_those_before_it(tmp_path, monkeypatch, failing):
    real = os.replace

    def refuse(source, target):
        if source.name == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    (tmp_path / "a.png").write_text("old picture")
    (tmp_path / "b.obj").write_text("old mesh")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="the disk is full"), atomic_folder(tmp_path) as staging:
        for name in ("a.png", "m.mtl", "b.obj"):
            (staging / name).write_text("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "a.png": "old picture",
        "b.obj": "old mesh",
    }


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_an_early_end_leaves_the_folder_as_it_was(tmp_path, interruption):
    (tmp_path / "a.png").write_text("old")
    with pytest.raises((KeyboardInterrupt, OutputError)), atomic_folder(tmp_path) as staging:
        (staging / "a.png").write_text("half")
        raise interruption
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "old"


@pytest.mark.parametrize("writer", [atomic_folder, lambda path: atomic_path(path / "a.png")])
def test_an_early_end_takes_away_the_folders_that_were_made(tmp_path, writer):
    (tmp_path / "kept").mkdir()
    for place in ("new/deeper", "kept/new", "kept"):
        with pytest.raises(KeyboardInterrupt), writer(tmp_path / place):
            raise KeyboardInterrupt
        assert [p.name for p in tmp_path.rglob("*")] == ["kept"]
    # what somebody else has put there in the meantime stays, and so does its folder
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "new" / "deeper"):
        (tmp_path / "new" / "other.txt").write_text("theirs")
        raise KeyboardInterrupt
    assert {p.name for p in tmp_path.rglob("*")} == {"kept", "new", "other.txt"}
