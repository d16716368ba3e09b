"""The ComfyUI adapters: each node converts, calls one function of v3d_core, converts back."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .clean import V3DCleanMesh
from .datasets import V3DLoadViews, V3DSaveViews
from .environment import V3DEnvironment
from .finish import add_finish_route
from .mesh import V3DExportMesh, V3DMeshFromSplat
from .models import V3DLoadModel
from .neus import V3DExtractMesh, V3DFitNeuS, V3DLoadSDF, V3DSaveSDF
from .orbit import V3DOrbitCameras
from .prepare import V3DPrepareImage
from .sampling import V3DConditioning, V3DSampleOrbit
from .scores import V3DScoreViews
from .splats import V3DFitSplat, V3DRenderSplat
from .texture import V3DRefineTexture
from .views import V3DPosedViews


class V3DExtension(ComfyExtension):
    """All nodes, in the order of the pipeline."""

    async def on_load(self) -> None:
        add_finish_route()

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
            V3DRenderSplat,
            V3DScoreViews,
            V3DMeshFromSplat,
            V3DFitNeuS,
            V3DExtractMesh,
            V3DSaveSDF,
            V3DLoadSDF,
            V3DCleanMesh,
            V3DRefineTexture,
            V3DExportMesh,
            V3DSaveViews,
            V3DEnvironment,
        ]
