"""Real ComfyUI for the tests of this folder: its modules in process, and a running server."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]


def _load(name: str, path: Path, **options):
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# Helpers of this folder; it is on no import path, so they are loaded under their own names.
bootstrap = _load("bootstrap", HERE / "bootstrap.py")
if "comfy.cli_args" not in sys.modules:
    # the image encoder in float32, so that it can be compared; the host takes float16 by default
    bootstrap.make_importable("--cpu", "--disable-api-nodes", "--fp32-text-enc")
    _load("comfy_server", HERE / "comfy_server.py")
    _load("make_locales", HERE / "make_locales.py")
    _load("ui_to_api", HERE / "ui_to_api.py")
    _load("released_interface", HERE / "released_interface.py")
    scenes = _load("scenes", HERE / "scenes.py")
    _load("prompts", HERE / "prompts.py")
    _load("soak_prompts", HERE / "soak_prompts.py")
    for name in ("workflow_notes", "workflow_graphs", "graph_layout", "blueprint_graphs"):
        _load(name, HERE / f"{name}.py")
    _load("make_workflows", HERE / "make_workflows.py")
    _load("browser", HERE / "browser.py")
    tiny_models = _load("tiny_models", REPOSITORY / "tests" / "tiny_models.py")
    _load("live_tensors", REPOSITORY / "tests" / "live_tensors.py")
    # the way ComfyUI loads a pack: from its folder, under a made-up name
    _load(scenes.PACK, REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)])


def _base_directory(base: Path) -> Path:
    """A fresh base directory with this pack alone in it."""
    (base / "custom_nodes").mkdir()
    os.symlink(REPOSITORY, base / "custom_nodes" / "ComfyUI-V3D", target_is_directory=True)
    (base / "input").mkdir()
    return base


@contextmanager
def _running(base: Path) -> Iterator:
    from comfy_server import ComfyServer

    running = ComfyServer(base)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """ComfyUI on a fresh base directory, with this pack alone, a picture and tiny models in it."""
    base = _base_directory(tmp_path_factory.mktemp("comfyui"))
    frame = REPOSITORY / "v3d_core" / "data" / "demo_orbit" / "r_000.png"
    shutil.copy(frame, base / "input" / "example.png")  # the name of core's own default picture
    tiny_models.write_models(base / "models" / "checkpoints", scenes.pack)
    for kind in ("sv3d_u", "sv3d_p"):
        tiny_models.write_sv3d(base / "models" / "checkpoints", scenes.pack, kind)
    with _running(base) as running:
        yield running


@pytest.fixture(scope="module")
def bare_server(tmp_path_factory):
    """ComfyUI as it is first started: with this pack, without any picture or model file."""
    with _running(_base_directory(tmp_path_factory.mktemp("bare"))) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server):
    """Schemas of all nodes."""
    return server.get_json("/object_info")


@pytest.fixture
def host_folders(tmp_path, monkeypatch):
    """Input, output and temp folders of the in-process host, all below tmp_path."""
    import folder_paths

    for kind in ("input", "output", "temp"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    return tmp_path
