"""How much memory the tensors that are alive take; loaded by path from both test folders."""

from __future__ import annotations

import contextlib
import gc

import torch


def live_tensor_bytes() -> int:
    """Bytes of all storages in main memory that reachable tensors hold, each counted once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        with contextlib.suppress(ReferenceError):  # a weak proxy whose object is gone
            if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
