"""How much memory the tensors that are alive take; loaded by path from both test folders."""

from __future__ import annotations

import gc

import torch


def live_tensor_bytes() -> int:
    """Bytes of all storages in main memory that reachable tensors hold, each counted once."""
    gc.collect()
    storages = {}
    is_tensor: dict[type, bool] = {}  # a process has millions of objects and few types
    for thing in gc.get_objects():
        kind = type(thing)  # of the thing itself: weak proxies may have lost theirs
        if kind not in is_tensor:
            is_tensor[kind] = issubclass(kind, torch.Tensor)
        if is_tensor[kind] and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
