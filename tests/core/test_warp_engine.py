"""The engine that shares a kernel's work between threads: what happens when it is stopped."""

import _thread
import threading
import time

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
