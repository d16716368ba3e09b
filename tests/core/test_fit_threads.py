"""torch keeps to one thread beside Warp's, unless its own ones sleep, and afterwards as before."""

import pytest
import torch

from v3d_core import fit_threads


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("device", "warp_runs", "policy", "threads"),
    [
        ("cpu", True, "", 1),
        ("cpu", False, "", 3),
        ("cpu", True, "passive", 3),
        ("cpu", True, "ACTIVE", 1),
        ("cuda", True, "", 3),
    ],
)
def test_threads_inside_and_afterwards(device, warp_runs, policy, threads, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    with pytest.raises(KeyError), fit_threads.cores_for_warp(torch.device(device), warp_runs):
        assert torch.get_num_threads() == threads
        raise KeyError
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("installed", [True, False])
def test_without_a_word_it_depends_on_whether_warp_is_installed(installed, monkeypatch):
    monkeypatch.setattr(fit_threads, "problem", lambda name: "" if installed else "not there")
    with fit_threads.cores_for_warp(torch.device("cpu")):
        assert torch.get_num_threads() == (1 if installed else 3)
