"""Latents of an orbit to pictures: all frames at once, or the same result in less memory.

SVD's decoder mixes neighbouring frames in every block, so frames decoded in separate chunks differ
from frames decoded together: they flicker at the borders. Its layers, though, each work either
within a frame or along time at one pixel. `decode_in_slices` therefore keeps all frames together
and cuts the *work* of a layer instead: frame by frame where it is spatial, row by row where it runs
along time. The pictures are those of the whole decode, up to rounding. `decode_in_chunks` is for
devices that cannot even do that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

FrameLayer = Callable[[Tensor], Tensor]  # [n, C, h, w] -> [n, C', h', w'], each frame by itself
Check = Callable[[], None]  # called between pieces of work; raising inside it cancels


@dataclass(frozen=True)
class TimeLayer:
    """A residual block along time, mixed into what it was given: `x + mix (block(x) - x)`.

    Attributes:
        norm1, conv1, norm2, conv2: Its layers, on [1, C, T, h, w].
        mix: Share of the block in the result, 0 to 1.
    """

    norm1: Callable[[Tensor], Tensor]
    conv1: Callable[[Tensor], Tensor]
    norm2: Callable[[Tensor], Tensor]
    conv2: Callable[[Tensor], Tensor]
    mix: Callable[[], Tensor]


@dataclass(frozen=True)
class TimeConvolution:
    """A convolution along time alone, on [1, C, T, h, w]."""

    conv: Callable[[Tensor], Tensor]


Layer = FrameLayer | TimeLayer | TimeConvolution


def decode_in_slices(
    layers: Iterator[Layer],
    latents: Tensor,  # [T, 4, h, w]
    frames_per_slice: int,
    check: Check | None = None,
) -> Tensor:  # [T, 3, 8h, 8w]
    """Decode all frames together, a slice of each layer's work at a time.

    Args:
        layers: The decoder, from `sgm_decoder_layers` or `diffusers_decoder_layers`.
        latents: Raw latents (not scaled by 0.18215). [T, 4, h, w]
        frames_per_slice: Frames a spatial layer sees at a time; memory for its inner values grows
            with it. Layers along time see the same share of all rows.
        check: Called between slices.

    Returns:
        Pictures as the decoder makes them, about [-1, 1]. [T, 3, 8h, 8w]
    """
    if frames_per_slice < 1:
        raise ValueError(f"frames_per_slice must be at least 1, got {frames_per_slice}")
    check = check or (lambda: None)
    x, count = latents, len(latents)
    share = min(frames_per_slice / count, 1.0)
    for layer in layers:
        if isinstance(layer, TimeLayer):
            x = _mix_time(layer, x, share, check)
        elif isinstance(layer, TimeConvolution):
            x = _over_rows(layer.conv, _time_axis(x), share, check)[0].transpose(0, 1)
        else:
            x = _over_frames(layer, x, frames_per_slice, check)
    return x


def _mix_time(layer: TimeLayer, x: Tensor, share: float, check: Check) -> Tensor:
    """`x + mix (block(x) - x)` in place; three tensors of x's size are alive at most."""
    timed = _time_axis(x)
    check()
    h = silu(layer.norm1(timed), inplace=True)
    h = _over_rows(layer.conv1, h, share, check)
    h = silu(layer.norm2(h), inplace=True)
    mix = layer.mix().to(x)
    # block(x) = x + conv2(h), so what the mix adds is mix * conv2(h)
    for rows in _rows(h, share):
        check()
        timed[..., rows, :] += mix * layer.conv2(h[..., rows, :])
    return x


def _over_frames(layer: FrameLayer, x: Tensor, step: int, check: Check) -> Tensor:
    """A spatial layer, `step` frames at a time."""
    out = None
    for start in range(0, len(x), step):
        check()
        part = layer(x[start : start + step])
        if out is None:
            out = part.new_empty(len(x), *part.shape[1:])
        out[start : start + step] = part
    assert out is not None, x.shape
    return out


def _over_rows(conv: Callable[[Tensor], Tensor], x: Tensor, share: float, check: Check) -> Tensor:
    """A convolution along time, on a band of rows at a time."""
    out = torch.empty_like(x)
    for rows in _rows(x, share):
        check()
        out[..., rows, :] = conv(x[..., rows, :])
    return out


def _rows(x: Tensor, share: float) -> Iterator[slice]:
    height = x.shape[-2]
    step = max(1, round(height * share))
    return (slice(start, start + step) for start in range(0, height, step))


def _time_axis(x: Tensor) -> Tensor:  # [T, C, h, w] -> [1, C, T, h, w], a view
    return x.transpose(0, 1)[None]


def decode_in_chunks(
    decode: FrameLayer,
    latents: Tensor,  # [T, 4, h, w]
    frames: int,
    check: Check | None = None,
) -> Tensor:  # [T, 3, 8h, 8w]
    """Decode overlapping chunks of a closed orbit and blend them: little memory, nearly the frames.

    Chunks overlap by half and wrap around from the last frame to the first, so no frame stands at
    an end for good. A frame counts by the square of its distance from its chunk's ends, where
    neighbours are missing.

    Args:
        decode: The decoder on some neighbouring frames. [n, 4, h, w] -> [n, 3, 8h, 8w]
        latents: Raw latents of one turn. [T, 4, h, w]
        frames: Frames in a chunk.
        check: Called before every chunk; raising inside it cancels.

    Returns:
        Pictures as the decoder makes them, float32 on the CPU. [T, 3, 8h, 8w]
    """
    count = len(latents)
    frames = min(frames, count)
    stride = max(1, frames - frames // 2) if frames < count else count
    chunks = -(-count // stride)
    pictures, weights = None, torch.zeros(count)
    for chunk in range(chunks):
        if check is not None:
            check()
        places = (round(chunk * count / chunks) + torch.arange(frames)) % count
        decoded = decode(latents[places.to(latents.device)]).float().cpu()
        inwards = (
            torch.minimum(torch.arange(frames) + 1, frames - torch.arange(frames)).float() ** 2
        )
        if pictures is None:
            pictures = decoded.new_zeros(count, *decoded.shape[1:])
        pictures.index_add_(0, places, decoded * inwards[:, None, None, None])
        weights.index_add_(0, places, inwards)
    assert pictures is not None, latents.shape
    return pictures / weights[:, None, None, None]


# --- the layers of SVD's decoder ------------------------------------------------------------------


def sgm_decoder_layers(decoder: Any) -> Iterator[Layer]:
    """Layers of generative-models' VideoDecoder ("conv-only"), which ComfyUI has under its names."""

    def block(module: Any) -> Iterator[Layer]:
        def within_frames(x: Tensor) -> Tensor:
            return module(x, None, skip_video=True)

        time = module.time_stack
        yield within_frames
        yield TimeLayer(
            time.in_layers[0],
            time.in_layers[-1],
            time.out_layers[0],
            time.out_layers[-1],
            lambda: module.get_alpha(bs=1),
        )

    def last(x: Tensor) -> Tensor:
        return decoder.conv_out(silu(decoder.norm_out(x)), skip_video=True)

    yield decoder.conv_in
    yield from block(decoder.mid.block_1)
    yield decoder.mid.attn_1
    yield from block(decoder.mid.block_2)
    for level in reversed(range(len(decoder.up))):
        for module in decoder.up[level].block:
            yield from block(module)
        if level > 0:
            yield decoder.up[level].upsample
    yield last
    yield TimeConvolution(decoder.conv_out.time_mix_conv)


def diffusers_decoder_layers(decoder: Any) -> Iterator[Layer]:
    """Layers of diffusers' TemporalDecoder."""

    def block(module: Any) -> Iterator[Layer]:
        def within_frames(x: Tensor) -> Tensor:
            return module.spatial_res_block(x, None)

        time = module.temporal_res_block
        yield within_frames
        yield TimeLayer(
            time.norm1,
            time.conv1,
            time.norm2,
            time.conv2,
            # the decoder's blender is switched: its factor weighs the temporal part
            lambda: torch.sigmoid(module.time_mixer.mix_factor),
        )

    yield decoder.conv_in
    middle = decoder.mid_block
    yield from block(middle.resnets[0])
    yield middle.attentions[0]
    yield from block(middle.resnets[1])
    for up in decoder.up_blocks:
        for module in up.resnets:
            yield from block(module)
        yield from up.upsamplers or ()
    yield lambda x: decoder.conv_out(silu(decoder.conv_norm_out(x)))
    yield TimeConvolution(decoder.time_conv_out)
