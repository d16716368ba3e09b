"""Fitted fields on disk: one .safetensors file with the tensors, and the settings as metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from ..formats.weights import WeightsError, open_weights, write_safetensors
from .field import SDFField

FORMAT = "v3d.sdf_field"
VERSION = 1  # of the file's layout; a newer one is refused


def save_field(path: str | os.PathLike[str], field: SDFField) -> None:
    """Write a field, complete or not at all.

    Args:
        path: The file; `.safetensors` is its customary suffix.
        field: Any fitted field, on any device.

    Raises:
        OutputError: The file cannot be written; the text names the remedy.
    """
    state = field.state_dict()
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "settings": json.dumps(field.settings(), sort_keys=True),
    }
    write_safetensors(path, state, layout, metadata)


def load_field(path: str | os.PathLike[str]) -> SDFField:
    """Read a field that `save_field` wrote, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: It is another kind of file, of a newer version, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    with open_weights(path) as file:
        metadata = file.metadata
        if metadata.get("format") != FORMAT:
            raise WeightsError(
                f"{path}: holds no V3D field but {len(file)} tensors of another kind; choose a "
                "file that V3D Save SDF or `v3d fit-neus` wrote"
            )
        version = metadata.get("format_version", "")
        if version != str(VERSION):
            raise WeightsError(
                f"{path}: a field of version {version}, this program reads version {VERSION}; "
                "update it, or save the field again"
            )
        state = {name: file.read(name) for name in file}
    try:
        settings = json.loads(metadata["settings"])
        return SDFField.from_settings(settings, state)
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise WeightsError(
            f"{path}: damaged: its settings and tensors do not fit ({reason}); save it again"
        ) from error
