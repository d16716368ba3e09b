"""V3D Environment: which engines and packages are used here, why, and what would make it faster."""

from __future__ import annotations

import comfyui_version
from comfy_api.v0_0_2 import io, ui

from ..v3d_core.environment import environment_text, inspect_environment
from .runtime import compute_device, show_text


class V3DEnvironment(io.ComfyNode):
    """Say what the pack found on this machine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="V3DEnvironment",
            display_name="V3D Environment",
            category="3d/V3D",
            description="Tells which engines and optional packages were found, which are used and "
            "why, and what would make it faster. Copy its text into a bug report.",
            search_aliases=[
                "v3d env", "engines", "versions", "is warp installed", "gsplat", "why is it slow",
                "system info", "bug report",
            ],
            inputs=[
                io.Boolean.Input(
                    "try_engines",
                    default=True,
                    tooltip="Import each package and check each engine as the first fit does: "
                    "seconds, on a new GPU up to a minute, once. Off lists what is installed.",
                ),
            ],
            outputs=[
                io.String.Output("report", tooltip="The text that is shown on the node."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, try_engines) -> float:
        return float("nan")  # equal to nothing: free memory is another one at each run

    @classmethod
    def execute(cls, try_engines) -> io.NodeOutput:
        report = inspect_environment(compute_device(), try_out=try_engines)
        text = f"ComfyUI {comfyui_version.__version__}\n{environment_text(report)}"
        show_text(as_markdown(text))  # the front end draws the ui's text on core's own nodes only
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def as_markdown(text: str) -> str:
    """The text as Markdown that keeps its lines, for nodes drawn by Vue; plain text reads the same."""
    return "\n".join(
        f"• {line.strip()}  " if line.startswith(" ") else f"{line}  " for line in text.splitlines()
    )
