"""V3D Prepare Image: one picture, cut out and centred, as the orbit model wants it."""

from __future__ import annotations

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..v3d_core.prepare import LARGEST_SIZE, SIZE_STEP, PrepareConfig, prepare_picture
from .convert import mask_to_plain, pictures_from_image, to_host
from .masks import MASK_IS, object_masks
from .runtime import named_errors, tell

DEFAULTS = PrepareConfig()


class V3DPrepareImage(io.ComfyNode):
    """One object in the middle of a white square, without old background around it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DPrepareImage",
            display_name="V3D Prepare Image",
            category="3d/V3D",
            description="Cuts the object out, centres it in a white square and cleans its edge, as "
            "V3D was trained to see it.",
            search_aliases=["preprocess", "recenter", "center object", "crop", "remove background"],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="One picture of one object. A fourth channel is alpha and beats the "
                    "mask, unless it is opaque everywhere.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the object is: Remove Background's mask, or Load Image's for a "
                    "picture with alpha. Without mask and alpha, a flat background is cut out.",
                ),
                io.Combo.Input(
                    "mask_is",
                    options=list(MASK_IS),
                    default=MASK_IS[0],
                    tooltip="What white means in the mask. Load Image makes background masks, "
                    "Remove Background object masks. auto: whatever makes the picture's border "
                    "background; say it yourself when the object touches most of the border.",
                ),
                io.Float.Input(
                    "border_ratio",
                    default=DEFAULTS.border_ratio,
                    min=0.0,
                    max=0.85,
                    step=0.05,
                    tooltip="Free share of the frame beside the object's longer side. V3D was "
                    "trained at 0.3; less crops the orbit, more leaves fewer pixels for the object.",
                ),
                io.Int.Input(
                    "size",
                    default=DEFAULTS.size,
                    min=SIZE_STEP,
                    max=LARGEST_SIZE,
                    step=SIZE_STEP,
                    tooltip="Side of the prepared picture in pixels. V3D was trained at 512, SV3D "
                    "at 576, V3D-nano at 128.",
                ),
                io.Float.Input(
                    "mask_threshold",
                    default=DEFAULTS.mask_threshold,
                    min=0.0,
                    max=0.95,
                    step=0.05,
                    advanced=True,
                    tooltip="Mask value above which a pixel is object when the frame is chosen. "
                    "Raise it when haze or a shadow makes the object small, lower it when thin or "
                    "glassy parts leave the frame.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The object on white, one square picture."),
                io.Mask.Output("mask", tooltip="1 = object, in the same square."),
            ],
        )

    @classmethod
    @named_errors
    def execute(
        cls, image, mask_is, border_ratio, size, mask_threshold, mask=None
    ) -> io.NodeOutput:
        config = PrepareConfig(border_ratio, size, mask_threshold)
        picture, said = _only(pictures_from_image(image), "images", "Get Image from Batch"), ""
        if mask is not None:
            batch = mask_to_plain(mask)
            _only(
                batch,
                "masks",
                "Convert Mask to Image, Get Image from Batch and Convert Image to Mask",
            )
            masks, said = object_masks(batch, mask_is)
            mask = None if masks is None else masks[0]
        prepared = prepare_picture(picture, mask, config)
        x0, y0, x1, y1 = prepared.box
        placed = f"Object of {x1 - x0}x{y1 - y0} pixels, scaled {prepared.scale:.2f} times."
        tell("V3D Prepare Image", " ".join(filter(None, [placed, said, *prepared.notes])))
        return io.NodeOutput(to_host(prepared.image[None]), to_host(prepared.mask[None]))


def _only(batch: Tensor, name: str, remedy: str) -> Tensor:
    if len(batch) != 1:
        raise ValueError(f"{len(batch)} {name} in the batch, 1 is needed; pick one with {remedy}")
    return batch[0]
