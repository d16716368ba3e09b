"""Encoded orbits on disk: filled once, shared, never half there; and the log beside them."""

import json
import signal

import numpy as np
import pytest
import torch
from tiny_models import random_state, tiny_shapes

from v3d_core.diffusion import training_cache, training_log
from v3d_core.diffusion.checkpoint import require_part
from v3d_core.diffusion.training_cache import digest_of, fill_cache, on_white
from v3d_core.diffusion.training_log import TrainingLog, stop_on_signals
from v3d_core.formats.weights import write_safetensors

LAYOUT = {"square": ("f4", (2,)), "name": ("u1", ())}


def made(index):
    value = torch.tensor([index, index**2], dtype=torch.float32)
    return {"square": value, "name": torch.tensor(index, dtype=torch.uint8)}


class Broken(Exception):
    pass


def test_straight_colours_are_laid_on_white_and_rounded():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (500, 4), generator=generator).to(torch.uint8)
    alpha = frames[:, 3:].double() / 255
    exact = frames[:, :3].double() * alpha + 255 * (1 - alpha)
    laid = on_white(frames)
    assert laid.dtype == torch.uint8
    assert float((laid.double() - exact).abs().max()) <= 0.5
    ends = torch.tensor([[7, 8, 9, 0], [7, 8, 9, 255]], dtype=torch.uint8)
    assert on_white(ends).tolist() == [[255, 255, 255], [7, 8, 9]]


def test_arrays_are_filled_once_and_mapped(tmp_path):
    asked = []

    def make(index):
        asked.append(index)
        return made(index)

    for _ in range(2):
        arrays = fill_cache(tmp_path, 5, LAYOUT, lambda i: i, make)
        assert asked == [0, 1, 2, 3, 4]
        assert arrays["square"].tolist() == [[i, i * i] for i in range(5)]
        assert arrays["name"].tolist() == [0, 1, 2, 3, 4]
    arrays["square"][2] = -1.0  # a copy of the page: the file stays
    assert np.load(tmp_path / "square.npy")[2].tolist() == [2, 4]


@pytest.mark.parametrize("broken", [0, 1, 3, 4])
def test_a_break_loses_nothing_and_never_takes_zeros_for_data(tmp_path, broken, monkeypatch):
    monkeypatch.setattr(training_cache, "FLUSH_EVERY", 2)

    def breaking(index):
        if index == broken:
            raise Broken
        return made(index)

    with pytest.raises(Broken):
        fill_cache(tmp_path, 5, LAYOUT, lambda i: i, breaking)
    assert np.load(tmp_path / "done.npy").tolist() == [int(i < broken) for i in range(5)]
    asked = []

    def going_on(index):
        asked.append(index)
        return made(index)

    arrays = fill_cache(tmp_path, 5, LAYOUT, lambda i: i, going_on)
    assert asked == list(range(broken, 5))
    assert arrays["square"].tolist() == [[i, i * i] for i in range(5)]


def test_progress_may_cancel_and_counts_what_was_there(tmp_path):
    told = []

    def tell(step, total, **_):
        told.append((step, total))
        if len(told) == 2:
            raise Broken

    with pytest.raises(Broken):
        fill_cache(tmp_path, 4, LAYOUT, lambda i: i, made, progress=tell)
    fill_cache(tmp_path, 4, LAYOUT, lambda i: i, made, progress=tell)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_digest_is_of_the_weights_alone(tmp_path):
    import importlib

    shape = tiny_shapes(importlib.import_module)["clip"]
    prefix = "conditioner.embedders.0.open_clip.model.visual."

    def digest(name, state):
        layout = {n: (t.dtype, tuple(t.shape)) for n, t in state.items()}
        write_safetensors(tmp_path / name, state, layout)
        return digest_of(require_part(tmp_path / name, "clip"))

    state = random_state(importlib.import_module, shape, 0, prefix)
    first = digest("a.safetensors", state)
    more = {"other": torch.zeros(3), **dict(reversed(list(state.items())))}
    assert digest("b.safetensors", more) == first
    state[prefix + "proj"][0, 0] += 1e-3
    assert digest("c.safetensors", state) != first


def test_the_log_forgets_steps_that_were_lost(tmp_path):
    log = TrainingLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.add(step, loss=step / 4, lpips=None)
    log.close()
    again = TrainingLog(tmp_path, 2)
    again.add(3, loss=9.0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.25}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 9.0}]


def test_tensorboard_gets_the_same_numbers_and_pictures(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append(("open", folder, purge_step))

        def add_scalar(self, *arguments):
            calls.append(arguments)

        def add_image(self, name, picture, step, dataformats):
            calls.append((name, picture.shape, step, dataformats))

        def close(self):
            calls.append("closed")

    monkeypatch.setattr("v3d_core.diffusion.training_log.load_summary_writer", lambda: Writer)
    log = TrainingLog(tmp_path, 4, tmp_path / "curves")
    log.add(5, loss=0.5, lpips=None)
    log.show(5, "validation", torch.zeros(2, 3, 3))
    log.close()
    assert calls == [
        ("open", str(tmp_path / "curves"), 5),
        ("loss", 0.5, 5),
        ("validation", (2, 3, 3), 5, "HWC"),
        "closed",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_a_later_one_ends(number, monkeypatch):
    before, now = signal.getsignal(number), [100.0]
    monkeypatch.setattr(training_log.time, "monotonic", lambda: now[0])
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        now[0] += 0.5  # the same one, passed on
        signal.raise_signal(number)
        now[0] += 1.0
        signal.raise_signal(number)
        raise AssertionError("the later one was swallowed")
    assert signal.getsignal(number) is before
