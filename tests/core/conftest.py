"""Fixtures of the library's tests."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


def _load(name):
    """A helper of the tests folder, which is on no import path."""
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tiny_models = _load("tiny_models")
_load("live_tensors")
_load("mesh_samples")
_load("small_fields")
_load("small_training")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Files of a tiny orbit model."""
    return tiny_models.write_models(tmp_path_factory.mktemp("tiny"), importlib.import_module)


@pytest.fixture(scope="session")
def demo_orbit_48(tmp_path_factory):
    """Folder of the demo orbit in pictures of 48 px; only to be read."""
    folder = tmp_path_factory.mktemp("demo") / "orbit"
    importlib.import_module("v3d_core.procedural").write_demo_orbit(folder, 48)
    return folder
