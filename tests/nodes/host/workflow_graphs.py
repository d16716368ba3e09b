"""The graphs of workflows/*.json with their notes; make_workflows.py lays them out and writes them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Attributes:
        kind: Its class.
        column: Where it stands, from left to right; in a column in the order of `top`.
        values: Widget values that are not the schema's defaults, by name.
        links: Where its inputs come from: node number and output number, by input name.
        top: It does not stand higher than this, px.
    """

    kind: str
    column: int
    values: dict = field(default_factory=dict)
    links: dict = field(default_factory=dict)
    top: int = 0


@dataclass(frozen=True)
class Template:
    """One workflow: the note, the nodes by number, and groups as title, first and last column."""

    note: str
    graph: dict[int, Node]
    groups: tuple[tuple[str, int, int], ...]


def model_file(directory: str, url: str) -> dict:
    """What the front end offers to download when the file is not there."""
    return {"name": url.rsplit("/", 1)[1], "url": url, "directory": directory}


HUB = "https://huggingface.co"
V3D_CKPT = model_file("checkpoints", f"{HUB}/heheyas/V3D/resolve/main/V3D.ckpt")
SVD_XT = model_file(
    "checkpoints",
    f"{HUB}/stabilityai/stable-video-diffusion-img2vid-xt/resolve/main/svd_xt.safetensors",
)
SV3D_U = model_file("checkpoints", f"{HUB}/stabilityai/sv3d/resolve/main/sv3d_u.safetensors")
BIREFNET = model_file(
    "background_removal",
    f"{HUB}/Comfy-Org/BiRefNet/resolve/main/background_removal/birefnet.safetensors",
)
MODELS = {
    "V3DLoadModel": [V3D_CKPT, SVD_XT],
    "ImageOnlyCheckpointLoader": [SV3D_U],
    "LoadBackgroundRemovalModel": [BIREFNET],
}

OWN_FRAMES = """
### Your own frames
* Put them in a folder below ComfyUI's `input`, press **R**, and choose it in *V3D Load Views*. \
Or connect any batch of images (SV3D, a video, Load Image + Remove Background) to *V3D Posed Views*.
* Choose the orbit that made them in *V3D Orbit Cameras*: `v3d` (18 frames), `sv3d` (21 frames), \
or `custom`.
* No masks? Disconnect them: alpha is used if there is any, else a flat background is cut out.
"""

QUALITY = """### Quality and time
`preset`: draft to look, normal to keep, best for detail. Cancel stops at once.
"""

UNSEEN = """### What an orbit cannot see
All cameras stand at one height: the very top and bottom of the object are closed, not seen.
"""

SPLAT_NOTE = f"""## Orbit frames to a Gaussian splat
Queue it as it is: it loads the 18-frame orbit that comes with V3D, fits a splat, renders it with \
core's Render Splat and saves a `.ply`.
{OWN_FRAMES}
{QUALITY}"""

ASSET = """### The asset
* *V3D Clean Mesh*: `faces` is the budget. 20,000 suits engines and the web, a few thousand phones.
* *V3D Refine Texture* takes the frames themselves, not a fit's views, and lays them on the surface \
where they disagree. `texture_size` 1024 holds what 18 frames of 512 px show.
* *V3D Export Mesh* also writes obj, ply, stl for printers and usdz for phones.
"""

MESH_NOTE = f"""## Orbit frames to a textured mesh
Queue it as it is: it loads the 18-frame orbit that comes with V3D, fits a splat, takes a closed \
mesh out of it, makes that light, and gives it a texture from the frames, saved as `.glb`.
{OWN_FRAMES}
{ASSET}
{UNSEEN}"""

NEUS_NOTE = f"""## Orbit frames to a smooth, closed surface
Queue it as it is: it loads the 18-frame orbit that comes with V3D, fits a surface (NeuS) and takes \
a mesh out of it, makes that light, and gives it a texture from the frames, saved as `.glb`. It \
takes longer than *frames_to_mesh* and gives a smoother, more exact mesh.

### The surface
* *V3D Extract Mesh* may run again with another `resolution`; the fit stays.
* *V3D Save SDF* keeps the fitted surface; *V3D Load SDF* brings it back another day.
* Have you normal maps of the frames, from any normal estimator? Connect them to `normals`.
{ASSET}
{OWN_FRAMES}
{UNSEEN}"""

SCORES_NOTE = f"""## How good is the splat?
Queue it as it is: it fits a splat to the 18 training views of the demo orbit, renders the 6 test \
views that the fit never saw, and compares them with the true ones.

### The figures
* `psnr_object`: dB on the object alone, more is better; `psnr` counts the white background too. \
One dB more or less can be seen.
* The picture shows *rendering | truth | difference*.
* `psnr_train` of the fit says little: it also rises while the splat learns the faults of the frames.

### Your own frames
* A data set with a `transforms_test.json` works like the demo.
* Plain frames have no test views: set `hold_out` of *V3D Fit Splat* to 6. Every 6th view is then \
scored instead of fitted, and the fit's own report has `psnr_test`.
{QUALITY}"""

PICTURE = """### The picture
One object, seen from its front at its own height, not cut off. Remove Background finds it \
(`birefnet.safetensors` in `models/background_removal`). Does your picture have alpha? Then you may \
connect Load Image's `MASK` to V3D Prepare Image instead and delete the two background nodes.
"""

V3D_FILES = """### Two model files, in `models/checkpoints`
* [V3D.ckpt](https://huggingface.co/heheyas/V3D), 6.5 GB: the video model. Its authors publish no \
licence; it is a fine-tune of Stable Video Diffusion.
* [svd_xt.safetensors]\
(https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt): only its image encoder is \
read. Stability AI's licence; its page asks you to log in and agree before you download.

The command `v3d convert` makes V3D.ckpt a file of half the size that loads faster; choose it \
in V3D Load Model then.
"""

ORBIT = """### The orbit
Look at the 18 frames first: a fit cannot mend an orbit that drifts. Another `seed` gives another \
back of the object; `scale` 3.5 to 4.5.
"""

IMAGE_SPLAT_NOTE = f"""## One picture to a Gaussian splat
Cuts the object out, turns V3D's camera around it (18 frames), fits a splat to them and saves a \
`.ply`.

{PICTURE}
{V3D_FILES}
{ORBIT}
{QUALITY}"""

IMAGE_MESH_NOTE = f"""## One picture to a textured mesh
Cuts the object out, turns V3D's camera around it (18 frames), fits a splat to them, takes a closed \
mesh out of it, makes that light, and gives it a texture from the frames, saved as `.glb`.

{PICTURE}
{V3D_FILES}
{ORBIT}
{ASSET}
{UNSEEN}"""

ANY_MESH_NOTE = """## A texture for any mesh
Queue it as it is: a draft splat of the demo orbit and core's *Extract Mesh from Splat* stand for \
the node that makes your mesh (its walls have an inside, which takes a part of the texture). Put \
yours in their place: TripoSplat, Hunyuan3D, a loader of files, ...

### What fits
* The mesh must stand where the cameras of the views expect it: up is +Y, and the object's front \
looks along +Z for an orbit of V3D.
* *V3D Clean Mesh* turns faces outward, closes holes, drops what is hidden inside, and keeps to a \
budget of faces. Your mesh is light and has uvs you like? Set `faces` to 0, or delete the node.
* *V3D Refine Texture* keeps uvs that came in unless you switch `new_uvs` on.

### The views
* *V3D Load Views* reads folders of ComfyUI's `input` (transforms.json, COLMAP or plain frames).
* Or connect any batch of images to *V3D Posed Views* with the cameras of *V3D Orbit Cameras*.

### What no view saw
The mask `unseen` marks it in the texture: a start for inpainting.
"""

SV3D_NOTE = f"""## SV3D's orbit to a Gaussian splat
Core's nodes sample 21 frames with Stability AI's SV3D_u; V3D only prepares the picture and fits \
the splat.

{PICTURE}
### One model file, in `models/checkpoints`
[sv3d_u.safetensors](https://huggingface.co/stabilityai/sv3d), Stability AI's licence; its page \
asks you to log in and agree before you download. No file of V3D is needed.

### The cameras
`sv3d` in V3D Orbit Cameras are those of SV3D_u: 21 frames, the last one shows the input picture. \
For **sv3d_p.safetensors** choose `sv3d_p` and give it the elevation of SV3D_Conditioning: that node \
asks for other cameras, with the input picture first and last.

Is the splat inside out? Then the orbit goes the other way: `custom`, 21 views, radius 3.8, fov \
33.8, azimuth -17 and `clockwise`.

{QUALITY}"""

FRAMES = {
    1: Node("V3DLoadViews", 0, {"folder": "demo orbit (shipped)"}),
    2: Node("V3DOrbitCameras", 0, {"orbit": "v3d"}),
    3: Node("V3DPosedViews", 1, {}, {"images": (1, 1), "masks": (1, 2), "cameras": (2, 0)}),
    4: Node("PreviewImage", 1, {}, {"images": (1, 1)}),
    5: Node("V3DFitSplat", 2, {"preset": "normal"}, {"views": (3, 0)}),
    6: Node("PreviewAny", 2, {}, {"source": (5, 1)}),
}
RENDER = {"width": 512, "height": 512, "frames": 18, "sharpen": 1.0, "background": "#ffffff"}
SAVE_SPLAT = {"filename_prefix": "3d/V3D_splat"}
MESH_GROUPS = (
    ("Frames and cameras", 0, 1),
    ("Splat", 2, 2),
    ("Mesh", 3, 4),
    ("Texture", 5, 5),
    ("Result", 6, 7),
)
FRAME_GROUPS = (("Frames and cameras", 0, 1), ("Splat", 2, 2), ("Result", 3, 4))
ROW_2 = 260  # px: below one loader and its way to the next column
BELOW = 420  # px: the way of the views to the texture, below what makes the mesh
NEUS_LANE = 660  # px: the same, below the fit's report too
LANE = 300  # px: the second link of a node here passes between two nodes of the next column


def picture_nodes(loader: Node, size: int) -> dict[int, Node]:
    """From a file to a prepared picture (5, 0), with the loader of the video model as number 4."""
    background = {"bg_removal_name": BIREFNET["name"]}
    return {
        1: Node("LoadBackgroundRemovalModel", 0, background),
        2: Node("LoadImage", 0, {"image": "example.png"}, top=ROW_2),
        3: Node("RemoveBackground", 1, {}, {"bg_removal_model": (1, 0), "image": (2, 0)}),
        4: loader,
        5: Node("V3DPrepareImage", 2, {"size": size}, {"image": (2, 0), "mask": (3, 0)}, ROW_2),
        6: Node("PreviewImage", 2, {}, {"images": (5, 0)}, ROW_2),
    }


V3D_FILE_NAMES = {"model_name": V3D_CKPT["name"], "clip_vision_name": SVD_XT["name"]}
IMAGE = {
    **picture_nodes(Node("V3DLoadModel", 2, V3D_FILE_NAMES), 512),
    7: Node(
        "V3DSampleOrbit",
        3,
        {},
        {"model": (4, 0), "clip_vision": (4, 1), "vae": (4, 2), "image": (5, 0)},
        LANE,
    ),
    8: Node("PreviewImage", 4, {}, {"images": (7, 0)}),
}
IMAGE_GROUPS = (
    ("Picture and models", 0, 2),
    ("Orbit", 3, 3),
    ("Frames and splat", 4, 4),
    ("Result", 5, 6),
)
IMAGE_MESH_GROUPS = (
    *IMAGE_GROUPS[:3],
    ("Mesh", 5, 6),
    ("Texture", 7, 7),
    ("Result", 8, 9),
)
SV3D_SAMPLER = {"steps": 50, "cfg": 2.5, "sampler_name": "euler", "scheduler": "karras"}
SV3D = {
    **picture_nodes(Node("ImageOnlyCheckpointLoader", 2, {"ckpt_name": SV3D_U["name"]}), 576),
    7: Node("VideoTriangleCFGGuidance", 3, {"min_cfg": 1.0}, {"model": (4, 0)}),
    8: Node(
        "SV3D_Conditioning",
        3,
        {"width": 576, "height": 576, "video_frames": 21, "elevation": 0.0},
        {"clip_vision": (4, 1), "init_image": (5, 0), "vae": (4, 2)},
    ),
    9: Node(
        "KSampler",
        4,
        SV3D_SAMPLER,
        {"model": (7, 0), "positive": (8, 0), "negative": (8, 1), "latent_image": (8, 2)},
    ),
    10: Node("VAEDecode", 5, {}, {"samples": (9, 0), "vae": (4, 2)}),
    11: Node("V3DOrbitCameras", 5, {"orbit": "sv3d"}, top=600),
    12: Node("PreviewImage", 6, {}, {"images": (10, 0)}),
    13: Node("V3DPosedViews", 6, {}, {"images": (10, 0), "cameras": (11, 0)}),
    14: Node("V3DFitSplat", 7, {"preset": "normal"}, {"views": (13, 0)}),
}
SV3D_GROUPS = (
    ("Picture and models", 0, 2),
    ("SV3D", 3, 4),
    ("Frames and cameras", 5, 6),
    ("Splat", 7, 7),
    ("Result", 8, 9),
)


def splat_result(
    first: int, column: int, splat: int, cameras: int, frames: int, tops: tuple[int, int, int, int]
) -> dict[int, Node]:
    """The splat rendered from its orbit's cameras, and saved; `tops` are those of the four nodes."""
    camera = (cameras, 1)
    render = {"splat": (splat, 0), "camera_info": camera}
    model = {"model_3d": (first + 1, 0), "camera_info": camera}
    return {
        first: Node("RenderSplat", column, {**RENDER, "frames": frames}, render, tops[0]),
        first + 1: Node("SplatToFile3D", column, {"format": "ply"}, {"splat": (splat, 0)}, tops[1]),
        first + 2: Node("PreviewImage", column + 1, {}, {"images": (first, 0)}, tops[2]),
        first + 3: Node("SaveGaussianSplat", column + 1, SAVE_SPLAT, model, tops[3]),
    }


def textured_result(
    first: int,
    column: int,
    mesh: int,
    views: tuple[int, int],
    name: str,
    tops: tuple[int, int],
    sdf: int | None = None,
) -> dict[int, Node]:
    """A mesh cleaned, textured from views, exported and shown; `tops` of cleaning and the rest.

    The way of the views to the texture passes below the nodes that make and clean the mesh.
    """
    surface = {} if sdf is None else {"sdf": (sdf, 0)}
    clean, refine, export = first, first + 1, first + 2
    above, below = tops
    return {
        clean: Node("V3DCleanMesh", column, {}, {"mesh": (mesh, 0), **surface}, above),
        refine: Node(
            "V3DRefineTexture", column + 1, {}, {"mesh": (clean, 0), "views": views}, below
        ),
        export: Node(
            "V3DExportMesh",
            column + 2,
            {"format": "glb", "filename_prefix": f"3d/{name}"},
            {"mesh": (refine, 0)},
            below,
        ),
        first + 3: Node("PreviewImage", column + 2, {}, {"images": (refine, 1)}, below),
        first + 4: Node("PreviewAny", column + 2, {}, {"source": (refine, 3)}, below),
        first + 5: Node("Preview3D", column + 3, {}, {"model_file": (export, 0)}, below),
    }


TEMPLATES = {
    "frames_to_splat": Template(
        SPLAT_NOTE,
        {
            **FRAMES,
            7: Node("RenderSplat", 3, RENDER, {"splat": (5, 0), "camera_info": (2, 1)}),
            8: Node("SplatToFile3D", 3, {"format": "ply"}, {"splat": (5, 0)}),
            9: Node("PreviewImage", 4, {}, {"images": (7, 0)}),
            10: Node(
                "SaveGaussianSplat",
                4,
                SAVE_SPLAT,
                {"model_3d": (8, 0), "camera_info": (2, 1)},
            ),
        },
        FRAME_GROUPS,
    ),
    "frames_to_mesh": Template(
        MESH_NOTE,
        {
            **{number: FRAMES[number] for number in (1, 2, 3, 4, 5)},
            6: Node("V3DMeshFromSplat", 3, {}, {"splat": (5, 0), "views": (3, 0)}),
            **textured_result(7, 4, mesh=6, views=(3, 0), name="V3D_mesh", tops=(0, BELOW)),
        },
        MESH_GROUPS,
    ),
    "frames_to_neus_mesh": Template(
        NEUS_NOTE,
        {
            1: replace(FRAMES[1], top=NEUS_LANE - 200),
            2: replace(FRAMES[2], top=NEUS_LANE + 40),
            3: replace(FRAMES[3], top=NEUS_LANE),
            4: FRAMES[4],
            5: Node("V3DFitNeuS", 2, {"preset": "normal"}, {"views": (3, 0)}),
            6: Node("V3DExtractMesh", 3, {}, {"sdf": (5, 0)}),
            7: Node("V3DSaveSDF", 3, {}, {"sdf": (5, 0)}),
            8: Node("PreviewAny", 3, {}, {"source": (5, 1)}, top=340),
            **textured_result(
                9, 4, mesh=6, views=(3, 0), name="V3D_neus", tops=(0, NEUS_LANE), sdf=5
            ),
        },
        (("Frames and cameras", 0, 1), ("Surface", 2, 2), *MESH_GROUPS[2:]),
    ),
    "splat_scores": Template(
        SCORES_NOTE,
        {
            1: Node("V3DLoadViews", 0, {"folder": "demo orbit (shipped)", "split": "train"}),
            2: Node(
                "V3DLoadViews", 0, {"folder": "demo orbit (shipped)", "split": "test"}, {}, 760
            ),
            3: Node("V3DFitSplat", 1, {"preset": "normal"}, {"views": (1, 0)}),
            4: Node("PreviewAny", 2, {}, {"source": (3, 1)}),
            5: Node("V3DRenderSplat", 2, {}, {"splat": (3, 0), "cameras": (2, 3)}, 900),
            6: Node(
                "V3DScoreViews",
                3,
                {"truth_is": "straight"},
                {"images": (5, 0), "truth": (2, 1), "masks": (2, 2)},
                740,
            ),
            7: Node("PreviewAny", 4, {}, {"source": (6, 0)}, 400),
            8: Node("PreviewImage", 4, {}, {"images": (6, 1)}, 740),
        },
        (("Views", 0, 0), ("Splat", 1, 2), ("Scores", 3, 4)),
    ),
    "image_to_splat": Template(
        IMAGE_SPLAT_NOTE,
        {
            **IMAGE,
            10: Node("V3DOrbitCameras", 4, {"orbit": "v3d"}, top=380),
            9: Node("V3DFitSplat", 4, {"preset": "normal"}, {"views": (7, 1)}, 590),
            **splat_result(11, 5, splat=9, cameras=10, frames=18, tops=(0, 590, 0, 380)),
        },
        IMAGE_GROUPS,
    ),
    "image_to_mesh": Template(
        IMAGE_MESH_NOTE,
        {
            **IMAGE,
            9: Node("V3DFitSplat", 4, {"preset": "normal"}, {"views": (7, 1)}, 380),
            10: Node("V3DMeshFromSplat", 5, {}, {"splat": (9, 0), "views": (7, 1)}, 380),
            **textured_result(
                11, 6, mesh=10, views=(7, 1), name="V3D_mesh", tops=(380, 380 + BELOW)
            ),
        },
        IMAGE_MESH_GROUPS,
    ),
    "texture_any_mesh": Template(
        ANY_MESH_NOTE,
        {
            1: Node("V3DLoadViews", 0, {"folder": "demo orbit (shipped)"}),
            2: Node("V3DFitSplat", 1, {"preset": "draft"}, {"views": (1, 0)}),
            3: Node("SplatToMesh", 2, {"resolution": 256}, {"splat": (2, 0)}),
            **textured_result(4, 3, mesh=3, views=(1, 0), name="V3D_any", tops=(0, BELOW)),
        },
        (
            ("Views", 0, 0),
            ("Any mesh: put yours in place of these", 1, 2),
            ("Clean", 3, 3),
            ("Texture", 4, 4),
            ("Result", 5, 6),
        ),
    ),
    "sv3d_to_splat": Template(
        SV3D_NOTE,
        {
            **SV3D,
            **splat_result(15, 8, splat=14, cameras=11, frames=21, tops=(740, 0, 1130, 580)),
        },
        SV3D_GROUPS,
    ),
}
