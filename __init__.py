"""ComfyUI-V3D: from posed orbit frames to Gaussian splats and meshes.

ComfyUI imports this file when it starts; everything else waits until it asks for the nodes.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The extension that lists the nodes; called by ComfyUI."""
    from .nodes import V3DExtension

    return V3DExtension()
