"""The ComfyUI adapters: each node converts, calls one function of v3d_core, converts back."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .datasets import V3DLoadViews, V3DSaveViews
from .mesh import V3DExportMesh, V3DMeshFromSplat
from .models import V3DLoadModel
from .orbit import V3DOrbitCameras
from .prepare import V3DPrepareImage
from .sampling import V3DConditioning, V3DSampleOrbit
from .splats import V3DFitSplat
from .views import V3DPosedViews


class V3DExtension(ComfyExtension):
    """All nodes, in the order of the pipeline."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            V3DPrepareImage,
            V3DLoadModel,
            V3DConditioning,
            V3DSampleOrbit,
            V3DLoadViews,
            V3DOrbitCameras,
            V3DPosedViews,
            V3DFitSplat,
            V3DMeshFromSplat,
            V3DExportMesh,
            V3DSaveViews,
        ]
