"""Forward and backward pass of a training step as one CUDA graph, for networks of small kernels.

V3D-nano's step launches some ten thousand kernels that are shorter than their launches from Python:
64 orbits took as long as 32. A graph launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WARM_UP = 3  # runs before the capture, for libraries that choose kernels; PyTorch's notes on graphs


class CapturedBackward:
    """`backward(*inputs)`, which returns a loss and leaves gradients, replayed for new inputs.

    A replay overwrites the gradients instead of adding to them, so nobody may drop or clear them.

    Args:
        backward: Only work on the GPU, the same for all inputs of these shapes, no random numbers.
        parameters: Those that get gradients.
        inputs: An example, on a CUDA device.
    """

    def __init__(
        self,
        backward: Callable[..., Tensor],
        parameters: Sequence[nn.Parameter],
        inputs: Sequence[Tensor],
    ) -> None:
        self._inputs = [tensor.detach().clone() for tensor in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                backward(*self._inputs)
                self._drop(parameters)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # other threads may go on: NCCL's watchdog asks for its events all the time
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._loss = backward(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:  # []
        """Loss of new inputs of the same shapes; the gradients are in the parameters."""
        for place, tensor in zip(self._inputs, inputs, strict=True):
            if place.shape != tensor.shape:
                raise ValueError(f"captured for {list(place.shape)}, got {list(tensor.shape)}")
            place.copy_(tensor)
        self._graph.replay()
        return self._loss.clone()

    @staticmethod
    def _drop(parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = None
