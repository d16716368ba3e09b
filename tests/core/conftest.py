"""Fixtures of the library's tests."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location(
    "tiny_models", Path(__file__).resolve().parents[1] / "tiny_models.py"
)
tiny_models = importlib.util.module_from_spec(_spec)
sys.modules["tiny_models"] = tiny_models
_spec.loader.exec_module(tiny_models)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Files of a tiny orbit model."""
    return tiny_models.write_models(tmp_path_factory.mktemp("tiny"), importlib.import_module)
