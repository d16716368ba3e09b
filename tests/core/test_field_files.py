"""Fitted fields survive the disk, and other files are refused with the reason."""

import json

import pytest
import torch
from small_fields import small_field

from v3d_core.formats.weights import WeightsError, open_weights, write_safetensors
from v3d_core.neus.store import FORMAT, load_field, save_field


@pytest.mark.parametrize("view_direction", [False, True])
def test_a_loaded_field_is_the_saved_one_bit_for_bit(tmp_path, view_direction):
    field = small_field(view_direction)
    save_field(tmp_path / "field.safetensors", field)
    loaded = load_field(tmp_path / "field.safetensors")
    points = torch.rand(100, 3, generator=torch.manual_seed(0)) - 0.4
    assert torch.equal(loaded.sdf(points), field.sdf(points))
    for got, wanted in zip(
        loaded.sdf_and_gradient(points), field.sdf_and_gradient(points), strict=True
    ):
        assert torch.equal(got, wanted)
    gradients = field.sdf_and_gradient(points)[1]
    assert torch.equal(loaded.colours(points, gradients), field.colours(points, gradients))
    assert loaded.settings() == field.settings()
    assert torch.equal(loaded.inv_s, field.inv_s)


def test_the_file_says_what_it_is(tmp_path):
    save_field(tmp_path / "field.safetensors", small_field())
    with open_weights(tmp_path / "field.safetensors") as file:
        assert file.metadata["format"] == FORMAT and file.metadata["format_version"] == "1"
        assert json.loads(file.metadata["settings"])["hidden"] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["field.safetensors"]


def rewritten(path, change_metadata=None, change_state=None):
    """The saved file with other metadata or tensors."""
    with open_weights(path) as file:
        metadata = dict(file.metadata)
        state = {name: file.read(name) for name in file}
    if change_metadata:
        change_metadata(metadata)
    if change_state:
        change_state(state)
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    write_safetensors(path, state, layout, metadata)


@pytest.mark.parametrize(
    ("metadata", "state", "complaint"),
    [
        (lambda m: m.update(format="pt"), None, "holds no V3D field"),
        (lambda m: m.pop("format"), None, "holds no V3D field"),
        (lambda m: m.update(format_version="2"), None, "version 2.*reads version 1"),
        (lambda m: m.pop("settings"), None, "damaged.*settings"),
        (lambda m: m.update(settings="[1, 2"), None, "damaged"),
        (lambda m: m.update(settings="[]"), None, "damaged"),
        (lambda m: m.update(settings='{"hidden": 8}'), None, "damaged"),
        (lambda m: m.update(settings=m["settings"].replace('"hidden": 8', '"hidden": 16')), None, "damaged"),
        (None, lambda s: s.pop("table"), "damaged.*table"),
        (None, lambda s: s.pop("centre"), "damaged.*centre"),
        (None, lambda s: s.update(table=s["table"][:-1]), "damaged.*table"),
    ],
)  # fmt: skip
def test_foreign_newer_and_damaged_files_are_refused(tmp_path, metadata, state, complaint):
    path = tmp_path / "field.safetensors"
    save_field(path, small_field())
    rewritten(path, metadata, state)
    with pytest.raises(WeightsError, match=complaint) as caught:
        load_field(path)
    assert str(path) in str(caught.value)


def test_a_cut_file_a_text_and_a_missing_one_are_refused(tmp_path):
    path = tmp_path / "field.safetensors"
    save_field(path, small_field())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cut off"):
        load_field(path)
    path.write_text("hello there")
    with pytest.raises(WeightsError):
        load_field(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        load_field(tmp_path / "nothing.safetensors")
