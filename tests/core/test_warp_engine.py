"""The engine that shares a kernel's work between threads: what happens when it is stopped."""

import _thread
import os
import tempfile
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from v3d_core.backends import is_installed

pytestmark = pytest.mark.skipif(not is_installed("warp"), reason="needs Warp")


def test_ctrl_c_waits_for_the_kernels_that_use_our_memory(monkeypatch):
    from v3d_core.kernels import mesh_rays
    from v3d_core.kernels.warp_engine import WarpEngine

    engine = WarpEngine(torch.device("cpu"), (mesh_rays,))
    started, ended = [], []

    def slow_launch(kernel, **settings):
        started.append(settings["dim"])
        if len(started) == 1:
            threading.Timer(0.05, _thread.interrupt_main).start()
        time.sleep(0.3)
        ended.append(settings["dim"])

    monkeypatch.setattr(engine.warp, "launch", slow_launch)
    with pytest.raises(KeyboardInterrupt):
        engine.share("kernel", [], 1000)
    assert len(ended) == len(started) >= 1
    assert len(started) == engine.threads  # each of them once, none left to start later


def test_an_error_in_one_thread_is_raised_when_all_have_ended(monkeypatch):
    from v3d_core.kernels import mesh_rays
    from v3d_core.kernels.warp_engine import WarpEngine

    engine = WarpEngine(torch.device("cpu"), (mesh_rays,))
    ended = []

    def launch(kernel, **settings):
        if settings["inputs"][0] == 0:
            raise RuntimeError("first thread")
        time.sleep(0.1)
        ended.append(settings["inputs"][0])

    monkeypatch.setattr(engine.warp, "launch", launch)
    with pytest.raises(RuntimeError, match="first thread"):
        engine.share("kernel", [], 1000)
    assert len(ended) == engine.threads - 1


class StartingWarp:
    """Warp as far as starting it goes: it makes its cache, or fails to."""

    def __init__(self, folder, makes_it=True):
        self.config = SimpleNamespace(kernel_cache_dir=None)
        self.folder, self.makes_it, self.started = folder, makes_it, []

    def init(self):
        if self.config.kernel_cache_dir is None:
            if not self.makes_it:
                raise PermissionError(13, "Permission denied", str(self.folder))
            self.config.kernel_cache_dir = str(self.folder)
        self.started.append(self.config.kernel_cache_dir)


def test_a_cache_that_can_be_written_is_kept(tmp_path):
    from v3d_core.kernels.warp_engine import init_with_a_cache

    warp = StartingWarp(tmp_path)
    assert init_with_a_cache(warp) == "" and warp.started == [str(tmp_path)]
    assert list(tmp_path.iterdir()) == []  # the trial left nothing


@pytest.mark.parametrize("makes_it", [True, False])
def test_a_cache_that_cannot_be_written_gives_way_to_a_temporary_one(
    makes_it, tmp_path, monkeypatch
):
    from v3d_core.kernels.warp_engine import init_with_a_cache

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    warp = StartingWarp(tmp_path / "not there", makes_it)
    assert "not there" in init_with_a_cache(warp)
    taken = warp.started[-1]
    assert os.path.dirname(taken) == str(tmp_path) and os.listdir(taken) == []


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
@pytest.mark.parametrize("planted", ["open to others", "a link", "a file"])
def test_a_folder_that_others_could_have_filled_is_not_taken(planted, tmp_path, monkeypatch):
    from v3d_core.kernels.warp_engine import temporary_cache

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = temporary_cache()
    assert own.parent == tmp_path and own.stat().st_mode & 0o777 == 0o700
    assert temporary_cache() == own  # the next process finds it again
    if planted == "open to others":
        own.chmod(0o777)
    else:
        own.rmdir()
        (tmp_path / "other").mkdir(mode=0o700)
        own.symlink_to(tmp_path / "other") if planted == "a link" else own.write_text("")
    other = temporary_cache()
    assert other != own and other.stat().st_mode & 0o777 == 0o700
