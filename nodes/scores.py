"""V3D Score Views: how alike two batches of pictures are."""

from __future__ import annotations

import json

from comfy_api.v0_0_2 import io

from ..v3d_core.backends import load_lpips
from ..v3d_core.images import compare_side_by_side, composite
from ..v3d_core.metrics import require_same_frames, score_pictures
from .convert import mask_to_plain, pictures_from_image, to_host
from .runtime import NodeProgress, named_errors, tell

TRUTHS = ("opaque", "straight")


class V3DScoreViews(io.ComfyNode):
    """Measure how far rendered pictures are from true ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DScoreViews",
            display_name="V3D Score Views",
            category="3d/V3D",
            description="Compares two batches of pictures one by one: PSNR, SSIM, LPIPS, and a "
            "picture of both with their difference.",
            search_aliases=["psnr", "ssim", "lpips", "metrics", "compare images", "evaluate"],
            inputs=[
                io.Image.Input("images", tooltip="Pictures to judge, from V3D Render Splat..."),
                io.Image.Input("truth", tooltip="What they should be: as many, of the same size."),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Where the object is (1 = object), one per picture. With them the PSNR "
                    "on the object alone is measured too, which no empty background flatters.",
                ),
                io.Float.Input(
                    "gain",
                    default=4.0,
                    min=1.0,
                    max=100.0,
                    step=0.5,
                    tooltip="How much the difference is brightened in the comparison. It changes "
                    "no figure.",
                ),
                io.Combo.Input(
                    "truth_is",
                    options=list(TRUTHS),
                    default=TRUTHS[0],
                    tooltip="opaque: pictures as they are shown, as a rendering is. straight: "
                    "colours that masks cut out, as V3D Load Views gives them; they are laid on "
                    "white by the masks first, or every edge would count as an error.",
                ),
            ],
            outputs=[
                io.String.Output("report", tooltip="Means and figures of every picture as JSON."),
                io.Image.Output("comparison", tooltip="images | truth | difference, side by side."),
            ],
        )

    @classmethod
    @named_errors
    def execute(cls, images, truth, gain, truth_is, masks=None) -> io.NodeOutput:
        masks = None if masks is None else mask_to_plain(masks)
        first, second = opaque(images), opaque(truth)
        if truth_is == "straight":
            second = laid_on_white(second, masks)
        lpips, which = load_lpips()
        scores = score_pictures(first, second, masks, lpips=lpips, progress=NodeProgress())
        report = {**rounded(scores), "lpips_backend": which}
        named = {"psnr": "dB", "psnr_object": "dB on the object", "ssim": "SSIM", "lpips": "LPIPS"}
        shown = [
            f"{report[key]:g} {name}" for key, name in named.items() if report[key] is not None
        ]
        tell("V3D Score Views", ", ".join(shown))
        comparison = compare_side_by_side(first, second, gain)
        return io.NodeOutput(json.dumps(report, indent=2), to_host(comparison))


def opaque(image):  # [V, H, W, 3 or 4] -> [V, H, W, 3]
    """Pictures without alpha: where there is some they are laid on white."""
    pictures = pictures_from_image(image)
    return pictures if pictures.shape[-1] == 3 else composite(pictures[..., :3], pictures[..., 3])


def laid_on_white(truth, masks):  # [V, H, W, 3], [V, H, W] -> [V, H, W, 3]
    """Straight colours as a rendering on white shows them."""
    if masks is None:
        raise ValueError(
            "truth is straight, but there are no masks; connect those of V3D Load Views"
        )
    require_same_frames(truth, masks, "truth", "masks")
    return composite(truth, masks)


def rounded(scores, digits: int = 4):
    """The same report with numbers people can read."""
    if isinstance(scores, dict):
        return {key: rounded(value, digits) for key, value in scores.items()}
    if isinstance(scores, list):
        return [rounded(value, digits) for value in scores]
    return scores if scores is None else round(scores, digits)
