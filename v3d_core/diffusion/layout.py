"""Names and shapes of every tensor in an SVD-shaped model, in the two namings that exist.

"sgm" is the naming of V3D.ckpt and svd_xt.safetensors (Stability's generative-models, and OpenCLIP
for the image encoder), "diffusers" that of Hugging Face's libraries. A model of any width is one
small dataclass here; `entries()` walks the network (Blattmann et al. 2023, Stable Video Diffusion)
and says for each tensor what it is called in both namings and how one form becomes the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Shape = tuple[int, ...]

HEAD_CHANNELS = 64  # of the UNet's attention; V3D_512.yaml num_head_channels
CLIP_HEAD_CHANNELS = 80  # OpenCLIP ViT-H/14: 1280 channels in 16 heads
VIDEO_KERNEL = (3, 1, 1)  # frames, rows, columns; V3D_512.yaml video_kernel_size


@dataclass(frozen=True)
class Entry:
    """One tensor.

    Attributes:
        sgm: Its name in sgm's naming.
        diffusers: Its name in diffusers' (for the image encoder: transformers') naming.
        shape: Its shape in sgm's form.
        change: What turns sgm's form into diffusers': "" nothing, "squeeze" drops the 1x1 kernel
            axes, "transpose" swaps the axes, "q", "k", "v" take that third of the first axis.
    """

    sgm: str
    diffusers: str
    shape: Shape
    change: str = ""

    @property
    def diffusers_shape(self) -> Shape:
        """Its shape in diffusers' form."""
        if self.change == "squeeze":
            return self.shape[:2]
        if self.change == "transpose":
            return self.shape[::-1]
        return (self.shape[0] // 3, *self.shape[1:]) if self.change else self.shape


@dataclass(frozen=True)
class UNetShape:
    """Widths of the video UNet; the defaults are V3D's, SVD's and SVD-XT's (V3D_512.yaml)."""

    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # width of each level, in model_channels
    attention: tuple[bool, ...] = (True, True, True, False)  # which levels have transformers
    res_blocks: int = 2  # per level on the way down, one more on the way up
    in_channels: int = 8  # noisy latent and the picture's latent
    out_channels: int = 4
    context_channels: int = 1024  # of the CLIP token
    vector_channels: int = 768  # fps, motion bucket and augmentation, 256 each

    def entries(self) -> Iterator[Entry]:
        """All tensors, on the way through the network."""
        base, embedding = self.model_channels, 4 * self.model_channels
        yield from _linear("time_embed.0", "time_embedding.linear_1", embedding, base)
        yield from _linear("time_embed.2", "time_embedding.linear_2", embedding, embedding)
        vector = self.vector_channels
        yield from _linear("label_emb.0.0", "add_embedding.linear_1", embedding, vector)
        yield from _linear("label_emb.0.2", "add_embedding.linear_2", embedding, embedding)
        yield from _conv("input_blocks.0.0", "conv_in", base, self.in_channels)
        widths = [base * mult for mult in self.channel_mult]
        last = len(widths) - 1

        skips, channels, block = [base], base, 1
        for level, width in enumerate(widths):
            theirs = f"down_blocks.{level}"
            for index in range(self.res_blocks):
                yield from self._res(
                    f"input_blocks.{block}.0", f"{theirs}.resnets.{index}", channels, width
                )
                if self.attention[level]:
                    yield from self._attention(
                        f"input_blocks.{block}.1", f"{theirs}.attentions.{index}", width
                    )
                channels, block = width, block + 1
                skips.append(channels)
            if level < last:
                yield from _conv(
                    f"input_blocks.{block}.0.op", f"{theirs}.downsamplers.0.conv", width, width
                )
                block += 1
                skips.append(channels)

        yield from self._res("middle_block.0", "mid_block.resnets.0", channels, channels)
        yield from self._attention("middle_block.1", "mid_block.attentions.0", channels)
        yield from self._res("middle_block.2", "mid_block.resnets.1", channels, channels)

        block = 0
        for level in range(last, -1, -1):
            width, theirs = widths[level], f"up_blocks.{last - level}"
            for index in range(self.res_blocks + 1):
                ours, rest = f"output_blocks.{block}", 1
                yield from self._res(
                    f"{ours}.0", f"{theirs}.resnets.{index}", channels + skips.pop(), width
                )
                if self.attention[level]:
                    yield from self._attention(f"{ours}.1", f"{theirs}.attentions.{index}", width)
                    rest = 2
                if level > 0 and index == self.res_blocks:
                    yield from _conv(
                        f"{ours}.{rest}.conv", f"{theirs}.upsamplers.0.conv", width, width
                    )
                channels, block = width, block + 1
        yield from _norm("out.0", "conv_norm_out", base)
        yield from _conv("out.2", "conv_out", self.out_channels, base)

    def _res(self, ours: str, theirs: str, channels: int, width: int) -> Iterator[Entry]:
        for mine, other, kernel, inner in (
            ("", "spatial_res_block.", (3, 3), channels),
            ("time_stack.", "temporal_res_block.", VIDEO_KERNEL, width),
        ):
            a, b = f"{ours}.{mine}", f"{theirs}.{other}"
            yield from _norm(f"{a}in_layers.0", f"{b}norm1", inner)
            yield from _conv(f"{a}in_layers.2", f"{b}conv1", width, inner, kernel)
            yield from _linear(
                f"{a}emb_layers.1", f"{b}time_emb_proj", width, 4 * self.model_channels
            )
            yield from _norm(f"{a}out_layers.0", f"{b}norm2", width)
            yield from _conv(f"{a}out_layers.3", f"{b}conv2", width, width, kernel)
            if inner != width:
                yield from _conv(f"{a}skip_connection", f"{b}conv_shortcut", width, inner, (1, 1))
        yield Entry(f"{ours}.time_mixer.mix_factor", f"{theirs}.time_mixer.mix_factor", (1,))

    def _attention(self, ours: str, theirs: str, width: int) -> Iterator[Entry]:
        for name in ("proj_in", "proj_out"):
            yield from _linear(f"{ours}.{name}", f"{theirs}.{name}", width, width)
        yield from _norm(f"{ours}.norm", f"{theirs}.norm", width)
        for mine, other, extra in (
            ("transformer_blocks.0", "transformer_blocks.0", False),
            ("time_stack.0", "temporal_transformer_blocks.0", True),
        ):
            yield from _transformer_block(
                f"{ours}.{mine}", f"{theirs}.{other}", width, self.context_channels, extra
            )
        for mine, other, to, from_ in (
            ("time_pos_embed.0", "time_pos_embed.linear_1", 4 * width, width),
            ("time_pos_embed.2", "time_pos_embed.linear_2", width, 4 * width),
        ):
            yield from _linear(f"{ours}.{mine}", f"{theirs}.{other}", to, from_)
        yield Entry(f"{ours}.time_mixer.mix_factor", f"{theirs}.time_mixer.mix_factor", (1,))


@dataclass(frozen=True)
class VaeShape:
    """Widths of the autoencoder with the temporal decoder; the defaults are SVD's."""

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2  # per level of the encoder, one more in the decoder
    latent_channels: int = 4

    def entries(self) -> Iterator[Entry]:
        """All tensors, encoder first."""
        widths = [self.channels * mult for mult in self.channel_mult]
        last, top = len(widths) - 1, widths[-1]
        yield from _conv("encoder.conv_in", "encoder.conv_in", self.channels, 3)
        channels = self.channels
        for level, width in enumerate(widths):
            ours, theirs = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
            for index in range(self.res_blocks):
                yield from _plain_res(
                    f"{ours}.block.{index}.", f"{theirs}.resnets.{index}.", channels, width
                )
                channels = width
            if level < last:
                yield from _conv(
                    f"{ours}.downsample.conv", f"{theirs}.downsamplers.0.conv", width, width
                )
        for index in (0, 1):
            yield from _plain_res(
                f"encoder.mid.block_{index + 1}.", f"encoder.mid_block.resnets.{index}.", top, top
            )
        yield from _single_head("encoder.mid.attn_1", "encoder.mid_block.attentions.0", top)
        yield from _norm("encoder.norm_out", "encoder.conv_norm_out", top)
        yield from _conv("encoder.conv_out", "encoder.conv_out", 2 * self.latent_channels, top)

        yield from _conv("decoder.conv_in", "decoder.conv_in", top, self.latent_channels)
        for index in (0, 1):
            yield from _video_res(
                f"decoder.mid.block_{index + 1}", f"decoder.mid_block.resnets.{index}", top, top
            )
        yield from _single_head("decoder.mid.attn_1", "decoder.mid_block.attentions.0", top)
        for level in range(last, -1, -1):
            ours, theirs, width = (
                f"decoder.up.{level}",
                f"decoder.up_blocks.{last - level}",
                widths[level],
            )
            channels = widths[min(level + 1, last)]
            for index in range(self.res_blocks + 1):
                yield from _video_res(
                    f"{ours}.block.{index}", f"{theirs}.resnets.{index}", channels, width
                )
                channels = width
            if level > 0:
                yield from _conv(
                    f"{ours}.upsample.conv", f"{theirs}.upsamplers.0.conv", width, width
                )
        yield from _norm("decoder.norm_out", "decoder.conv_norm_out", self.channels)
        yield from _conv("decoder.conv_out", "decoder.conv_out", 3, self.channels)
        yield from _conv(
            "decoder.conv_out.time_mix_conv", "decoder.time_conv_out", 3, 3, VIDEO_KERNEL
        )


@dataclass(frozen=True)
class ClipShape:
    """Widths of the image encoder; the defaults are OpenCLIP ViT-H/14's."""

    width: int = 1280
    layers: int = 32
    mlp_width: int = 5120
    patch_size: int = 14  # px
    image_size: int = 224  # px
    projection: int = 1024

    @property
    def heads(self) -> int:
        """Attention heads; no tensor tells their number, so it is ViT-H/14's width per head."""
        return self.width // CLIP_HEAD_CHANNELS

    def entries(self) -> Iterator[Entry]:
        """All tensors of the image tower."""
        width, embed = self.width, "vision_model.embeddings"
        tokens = (self.image_size // self.patch_size) ** 2 + 1
        yield Entry("class_embedding", f"{embed}.class_embedding", (width,))
        yield Entry("positional_embedding", f"{embed}.position_embedding.weight", (tokens, width))
        patch = (width, 3, self.patch_size, self.patch_size)
        yield Entry("conv1.weight", f"{embed}.patch_embedding.weight", patch)
        yield from _norm("ln_pre", "vision_model.pre_layrnorm", width)
        for index in range(self.layers):
            ours, theirs = f"transformer.resblocks.{index}", f"vision_model.encoder.layers.{index}"
            yield from _norm(f"{ours}.ln_1", f"{theirs}.layer_norm1", width)
            for part in "qkv":
                for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
                    name = f"{theirs}.self_attn.{part}_proj.{kind}"
                    yield Entry(f"{ours}.attn.in_proj_{kind}", name, shape, part)
            yield from _linear(
                f"{ours}.attn.out_proj", f"{theirs}.self_attn.out_proj", width, width
            )
            yield from _norm(f"{ours}.ln_2", f"{theirs}.layer_norm2", width)
            yield from _linear(f"{ours}.mlp.c_fc", f"{theirs}.mlp.fc1", self.mlp_width, width)
            yield from _linear(f"{ours}.mlp.c_proj", f"{theirs}.mlp.fc2", width, self.mlp_width)
        yield from _norm("ln_post", "vision_model.post_layernorm", width)
        yield Entry("proj", "visual_projection.weight", (width, self.projection), "transpose")


# --- pieces of a network -------------------------------------------------------------------------


def _linear(ours: str, theirs: str, to: int, from_: int, bias: bool = True) -> Iterator[Entry]:
    yield Entry(f"{ours}.weight", f"{theirs}.weight", (to, from_))
    if bias:
        yield Entry(f"{ours}.bias", f"{theirs}.bias", (to,))


def _conv(
    ours: str, theirs: str, to: int, from_: int, kernel: Shape = (3, 3), change: str = ""
) -> Iterator[Entry]:
    yield Entry(f"{ours}.weight", f"{theirs}.weight", (to, from_, *kernel), change)
    yield Entry(f"{ours}.bias", f"{theirs}.bias", (to,))


def _norm(ours: str, theirs: str, channels: int) -> Iterator[Entry]:
    yield Entry(f"{ours}.weight", f"{theirs}.weight", (channels,))
    yield Entry(f"{ours}.bias", f"{theirs}.bias", (channels,))


def _transformer_block(
    ours: str, theirs: str, width: int, context: int, temporal: bool
) -> Iterator[Entry]:
    """Self attention, cross attention and a GEGLU; the temporal one has a second GEGLU in front."""
    for name in ("norm1", "norm2", "norm3", *(("norm_in",) if temporal else ())):
        yield from _norm(f"{ours}.{name}", f"{theirs}.{name}", width)
    for name in ("ff", *(("ff_in",) if temporal else ())):
        a, b = f"{ours}.{name}.net", f"{theirs}.{name}.net"
        yield from _linear(f"{a}.0.proj", f"{b}.0.proj", 8 * width, width)
        yield from _linear(f"{a}.2", f"{b}.2", width, 4 * width)
    for name, source in (("attn1", width), ("attn2", context)):
        a, b = f"{ours}.{name}", f"{theirs}.{name}"
        yield from _linear(f"{a}.to_q", f"{b}.to_q", width, width, bias=False)
        yield from _linear(f"{a}.to_k", f"{b}.to_k", width, source, bias=False)
        yield from _linear(f"{a}.to_v", f"{b}.to_v", width, source, bias=False)
        yield from _linear(f"{a}.to_out.0", f"{b}.to_out.0", width, width)


def _plain_res(ours: str, theirs: str, channels: int, width: int) -> Iterator[Entry]:
    yield from _norm(f"{ours}norm1", f"{theirs}norm1", channels)
    yield from _conv(f"{ours}conv1", f"{theirs}conv1", width, channels)
    yield from _norm(f"{ours}norm2", f"{theirs}norm2", width)
    yield from _conv(f"{ours}conv2", f"{theirs}conv2", width, width)
    if channels != width:
        yield from _conv(f"{ours}nin_shortcut", f"{theirs}conv_shortcut", width, channels, (1, 1))


def _video_res(ours: str, theirs: str, channels: int, width: int) -> Iterator[Entry]:
    """A decoder block: a plain one, and one along time that is mixed in."""
    yield from _plain_res(f"{ours}.", f"{theirs}.spatial_res_block.", channels, width)
    a, b = f"{ours}.time_stack", f"{theirs}.temporal_res_block"
    yield from _norm(f"{a}.in_layers.0", f"{b}.norm1", width)
    yield from _conv(f"{a}.in_layers.2", f"{b}.conv1", width, width, VIDEO_KERNEL)
    yield from _norm(f"{a}.out_layers.0", f"{b}.norm2", width)
    yield from _conv(f"{a}.out_layers.3", f"{b}.conv2", width, width, VIDEO_KERNEL)
    yield Entry(f"{ours}.mix_factor", f"{theirs}.time_mixer.mix_factor", (1,))


def _single_head(ours: str, theirs: str, width: int) -> Iterator[Entry]:
    """Attention over all pixels; sgm writes its matrices as 1x1 convolutions."""
    yield from _norm(f"{ours}.norm", f"{theirs}.group_norm", width)
    for mine, other in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        yield from _conv(f"{ours}.{mine}", f"{theirs}.{other}", width, width, (1, 1), "squeeze")
