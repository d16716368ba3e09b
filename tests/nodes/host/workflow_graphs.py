"""The graphs of workflows/*.json; graph_layout.py lays them out, make_workflows.py writes them."""

from __future__ import annotations

from dataclasses import dataclass, field

import workflow_notes as notes

DEMO, DEMO_PICTURE = "demo orbit (shipped)", "demo picture (shipped)"
NANO = "V3D-nano (bundled)"
BLUE, PURPLE, GREEN, YELLOW, ORANGE, RED = (
    "#3f789e",  # pictures, frames, cameras
    "#8888aa",  # video models
    "#88aa88",  # splats and surfaces
    "#b58b2a",  # meshes
    "#b06634",  # textures
    "#aa8888",  # results
)


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Attributes:
        kind: Its class.
        column: Where it stands, from left to right; in a column in the order of `top`.
        values: Widget values that are not the schema's defaults, by name.
        links: Where its inputs come from: node number and output number, by input name.
        top: It does not stand higher than this, px.
        title: What it is called instead of its class's name.
        mode: 0: it runs; 2: it is switched off, with what leads to it.
        files: Model files that it names for later, beside those that its values ask for.
    """

    kind: str
    column: int
    values: dict = field(default_factory=dict)
    links: dict = field(default_factory=dict)
    top: int = 0
    title: str = ""
    mode: int = 0
    files: tuple[dict, ...] = ()


@dataclass(frozen=True)
class Template:
    """One workflow.

    Attributes:
        note: Its text.
        graph: Nodes by number.
        groups: Title, colour and node numbers of each.
        note_columns: The note stands above so many columns; 0: in a column of its own.
        gaps: Px that columns stand farther to the right, for links that rise or fall far.
        crossings: Links that have to cross, since inputs and outputs come in another order.
        behind: Links that have to pass behind a node.
    """

    note: str
    graph: dict[int, Node]
    groups: tuple[tuple[str, str, tuple[int, ...]], ...]
    note_columns: int = 0
    gaps: dict[int, int] = field(default_factory=dict)
    crossings: int = 0
    behind: int = 0


def model_file(directory: str, url: str) -> dict:
    """What the front end offers to download when the file is not there."""
    return {"name": url.rsplit("/", 1)[1], "url": url, "directory": directory}


HUB = "https://huggingface.co"
V3D_CKPT = model_file("checkpoints", f"{HUB}/heheyas/V3D/resolve/main/V3D.ckpt")
SVD_XT = model_file(
    "checkpoints",
    f"{HUB}/stabilityai/stable-video-diffusion-img2vid-xt/resolve/main/svd_xt.safetensors",
)
V3D_FILES = (V3D_CKPT, SVD_XT)
SV3D_FILES = tuple(
    model_file("checkpoints", f"{HUB}/stabilityai/sv3d/resolve/main/{name}.safetensors")
    for name in ("sv3d_u", "sv3d_p")
)
BIREFNET = model_file(
    "background_removal",
    f"{HUB}/Comfy-Org/BiRefNet/resolve/main/background_removal/birefnet.safetensors",
)
MODELS = {
    "V3DLoadModel": [*V3D_FILES, *SV3D_FILES],
    "LoadBackgroundRemovalModel": [BIREFNET],
}
# As muted nodes of the front end: bypassed ones make it complain of each run, since Remove
# Background takes no mask that it could hand on, and core warns of a Load Image without a picture.
OFF = 2

LANE = 1150  # px: the frames' way to the texture, below the fit that stands above with its panels
RENDER = {"width": 512, "height": 512, "frames": 18, "sharpen": 1.0, "background": "#ffffff"}
OWN_NUMBERS = {"steps": 0, "scale": 0.0}  # whichever model is chosen
NANO_SIZE, NANO_SCALE, NANO_STEPS = 128, 1.0, 6  # v3d_core/diffusion/bundled.py
SAVE_SPLAT = {"filename_prefix": "3d/V3D_splat"}
PICTURE, BELOW_SAMPLER = 130, 980  # px: see `picture`
OVER = 150  # px: the VAE's way to the decoder, over what stands lower
CORE_FILE = {"filename_prefix": "3d/compare_core"}
V3D_FILE = {"filename_prefix": "3d/compare_V3D"}
NORMAL, DRAFT = {"preset": "normal"}, {"preset": "draft"}


def frames_from_folder(top: int) -> dict[int, Node]:
    """Cameras (1) and views (2) of a folder, of the demo for a start."""
    return {
        1: Node("V3DOrbitCameras", 0, {"orbit": "v3d"}, top=top),
        2: Node("V3DLoadViews", 1, {"folder": DEMO}, {"cameras": (1, 0)}, top),
    }


def picture(size: int, loader: Node, top: int) -> dict[int, Node]:
    """From a sample picture to a prepared one (7, 0), with the loader of the video model as 6.

    ComfyUI has no pictures of packs' templates; a shipped folder's first one is there. It needs no
    background removal: its own is flat, and V3D Prepare Image cuts that out by itself.
    """
    file, cut_out = {"bg_removal_name": BIREFNET["name"]}, {"image": (3, 0)}
    titles = ("For photos: background model", "For photos")
    return {
        1: Node("V3DLoadViews", 0, {"folder": DEMO_PICTURE}, {}, top, "Sample picture"),
        2: Node("LoadImage", 0, {"image": ""}, {}, top, "Your own picture", OFF),
        3: Node("ImageFromBatch", 1, {}, {"image": (1, 1)}, top + PICTURE),
        4: Node("LoadBackgroundRemovalModel", 1, file, {}, top, titles[0], OFF),
        5: Node(
            "RemoveBackground",
            2,
            {},
            {"bg_removal_model": (4, 0), **cut_out},
            top,
            titles[1],
            OFF,
        ),
        6: loader,
        7: Node("V3DPrepareImage", 3, {"size": size}, {"image": (3, 0), "mask": (5, 0)}, top + 220),
        8: Node("PreviewImage", 4, {}, {"images": (7, 0)}, top + BELOW_SAMPLER, "Cut out, centred"),
    }


def video_model(column: int, top: int, files: tuple[dict, ...] = V3D_FILES) -> Node:
    """V3D Load Model with the model that needs no file; it names the files of the other one."""
    return Node("V3DLoadModel", column, {"model_name": NANO}, top=top, files=files)


def model_orbit(top: int, size: int = 512, files: tuple[dict, ...] = V3D_FILES) -> dict[int, Node]:
    """The same, and the orbit (9) that the model of the files, or the bundled one, makes of it."""
    sources = {"model": (6, 0), "clip_vision": (6, 1), "vae": (6, 2), "image": (7, 0)}
    return {
        **picture(size, video_model(3, top, files), top),
        9: Node("V3DSampleOrbit", 4, OWN_NUMBERS, sources, top),
    }


def nano_orbit(top: int) -> dict[int, Node]:
    """From the shipped picture to the orbit (6) that the bundled model makes of it."""
    sources = {"model": (4, 0), "clip_vision": (4, 1), "vae": (4, 2), "image": (5, 0)}
    below = top + BELOW_SAMPLER
    return {
        1: Node("V3DLoadViews", 0, {"folder": DEMO_PICTURE}, {}, top, "Sample picture"),
        2: Node("LoadImage", 0, {"image": ""}, {}, top, "Your own picture", OFF),
        3: Node("ImageFromBatch", 1, {}, {"image": (1, 1)}, top + PICTURE),
        4: Node("V3DLoadModel", 2, {"model_name": NANO}, {}, top),
        5: Node("V3DPrepareImage", 2, {"size": NANO_SIZE}, {"image": (3, 0)}, top + 220),
        6: Node("V3DSampleOrbit", 3, {"steps": NANO_STEPS, "scale": NANO_SCALE}, sources, top),
        7: Node("PreviewImage", 3, {}, {"images": (5, 0)}, below, "Cut out, centred"),
    }


def splat_result(first: int, column: int, splat: int, orbit: str, views: int) -> dict[int, Node]:
    """A splat rendered, saved and shown from cameras (first + 2) of its own."""
    source, camera = {"splat": (splat, 0)}, {"camera_info": (first + 2, 1)}
    render, cameras = {**RENDER, "frames": views}, {"orbit": orbit}
    turn, shown = "Cameras of the turntable", {"model_3d": (first, 0), **camera}
    return {
        first: Node("SplatToFile3D", column, {"format": "ply"}, source, 420),
        first + 1: Node("SaveGaussianSplat", column + 1, SAVE_SPLAT, shown, 560),
        first + 2: Node("V3DOrbitCameras", column - 1, cameras, {}, LANE, turn),
        first + 3: Node("RenderSplat", column, render, {**source, **camera}),
        first + 4: Node("PreviewImage", column + 1, {}, {"images": (first + 3, 0)}),
    }


def textured_result(
    first: int, column: int, mesh: int, views: tuple[int, int], name: str, sdf: int | None = None
) -> dict[int, Node]:
    """A mesh cleaned above, textured from views below, exported and shown."""
    surface, above = ({}, 620) if sdf is None else ({"sdf": (sdf, 0)}, 200)
    clean, refine, export = first, first + 1, first + 2
    saved = {"format": "glb", "filename_prefix": f"3d/{name}"}
    top = LANE - 260
    return {
        clean: Node("V3DCleanMesh", column, {}, {"mesh": (mesh, 0), **surface}, above),
        refine: Node(
            "V3DRefineTexture", column + 1, {}, {"mesh": (clean, 0), "views": views}, LANE
        ),
        export: Node("V3DExportMesh", column + 2, saved, {"mesh": (refine, 0)}, top),
        first + 3: Node("PreviewImage", column + 2, {}, {"images": (refine, 1)}, top),
        first + 4: Node("PreviewAny", column + 2, {}, {"source": (refine, 3)}, top),
        first + 5: Node("Preview3D", column + 3, {}, {"model_file": (export, 0)}, top),
    }


def mesh_groups(clean: int) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Groups of a `textured_result` that begins with `clean`."""
    refine, *shown = range(clean + 1, clean + 6)
    return ("Texture", ORANGE, (refine,)), ("Result", RED, tuple(shown))


PICTURE_GROUPS = (
    ("Picture", BLUE, (1, 2, 3, 4, 5)),
    ("Video model", PURPLE, (6, 7, 8, 9)),
)
NANO_SAMPLER = {"steps": NANO_STEPS, "cfg": NANO_SCALE}
NANO_SAMPLER |= {"sampler_name": "euler", "scheduler": "karras"}

TEMPLATES = {
    "try_it_now": Template(
        notes.TRY_NOTE,
        {
            **nano_orbit(LANE),
            8: Node("V3DFitSplat", 4, NORMAL, {"views": (6, 1)}),
            9: Node("SplatToFile3D", 5, {"format": "ply"}, {"splat": (8, 0)}),
            10: Node("SaveGaussianSplat", 6, SAVE_SPLAT, {"model_3d": (9, 0)}),
            11: Node("V3DMeshFromSplat", 5, {}, {"splat": (8, 0), "views": (8, 2)}, 660),
            **textured_result(12, 6, mesh=11, views=(6, 1), name="V3D_mesh"),
            12: Node("V3DCleanMesh", 6, {}, {"mesh": (11, 0)}, 660),
        },
        (
            ("Picture", BLUE, (1, 2, 3)),
            ("Video model", PURPLE, (4, 5, 6, 7)),
            ("Splat", GREEN, (8,)),
            ("The splat", RED, (9, 10)),
            ("Mesh", YELLOW, (11, 12)),
            *mesh_groups(12),
        ),
        note_columns=4,
        gaps={4: 180, 7: 60},
        crossings=1,
    ),
    "frames_to_splat": Template(
        notes.SPLAT_NOTE,
        {
            **frames_from_folder(0),
            3: Node("V3DFitSplat", 2, NORMAL, {"views": (2, 0)}),
            **splat_result(4, 3, splat=3, orbit="v3d", views=18),
        },
        (
            ("Frames and cameras", BLUE, (1, 2)),
            ("Splat", GREEN, (3, 6)),
            ("Result", RED, (4, 5, 7, 8)),
        ),
        gaps={3: 180},
        crossings=1,
    ),
    "frames_to_mesh": Template(
        notes.MESH_NOTE,
        {
            **frames_from_folder(LANE),
            3: Node("V3DFitSplat", 2, NORMAL, {"views": (2, 0)}),
            4: Node("V3DMeshFromSplat", 3, {}, {"splat": (3, 0), "views": (3, 2)}, 100),
            **textured_result(5, 4, mesh=4, views=(2, 0), name="V3D_mesh"),
        },
        (
            ("Frames and cameras", BLUE, (1, 2)),
            ("Splat", GREEN, (3,)),
            ("Mesh", YELLOW, (4, 5)),
            *mesh_groups(5),
        ),
        note_columns=2,
        gaps={2: 180, 5: 60},
    ),
    "frames_to_neus_mesh": Template(
        notes.NEUS_NOTE,
        {
            **frames_from_folder(LANE + 100),
            3: Node("V3DFitNeuS", 2, NORMAL, {"views": (2, 0)}, 200),
            4: Node("V3DExtractMesh", 3, {}, {"sdf": (3, 0)}),
            **textured_result(5, 4, mesh=4, views=(2, 0), name="V3D_neus", sdf=3),
            11: Node("V3DSaveSDF", 3, {}, {"sdf": (3, 0)}, 320),
            12: Node("PreviewAny", 3, {}, {"source": (3, 1)}, 560),
            13: Node("V3DLoadSDF", 3, {}, {}, 880, "Another day"),
        },
        (
            ("Frames and cameras", BLUE, (1, 2)),
            ("Surface", GREEN, (3, 4, 11, 12, 13)),
            ("Mesh", YELLOW, (5,)),
            *mesh_groups(5),
        ),
        note_columns=2,
        gaps={2: 180, 3: 80, 5: 180},
    ),
    "image_to_splat": Template(
        notes.IMAGE_SPLAT_NOTE,
        {
            **model_orbit(0),
            10: Node("V3DFitSplat", 5, NORMAL, {"views": (9, 1)}),
            **splat_result(11, 6, splat=10, orbit="v3d", views=18),
        },
        (
            *PICTURE_GROUPS,
            ("Splat", GREEN, (10, 13)),
            ("Result", RED, (11, 12, 14, 15)),
        ),
        gaps={6: 180},
        crossings=2,
    ),
    "image_to_mesh": Template(
        notes.IMAGE_MESH_NOTE,
        {
            **model_orbit(LANE),
            10: Node("V3DFitSplat", 5, NORMAL, {"views": (9, 1)}),
            11: Node("V3DMeshFromSplat", 6, {}, {"splat": (10, 0), "views": (10, 2)}, 100),
            **textured_result(12, 7, mesh=11, views=(9, 1), name="V3D_mesh"),
        },
        (
            *PICTURE_GROUPS,
            ("Splat", GREEN, (10,)),
            ("Mesh", YELLOW, (11, 12)),
            *mesh_groups(12),
        ),
        note_columns=4,
        gaps={5: 180, 8: 60},
        crossings=1,
    ),
    "image_to_orbit_ksampler": Template(
        notes.KSAMPLER_NOTE,
        {
            **picture(512, video_model(3, 0), 0),
            9: Node(
                "V3DConditioning",
                4,
                {},
                {"clip_vision": (6, 1), "vae": (6, 2), "image": (7, 0)},
                200,
            ),
            10: Node(
                "KSampler",
                5,
                NANO_SAMPLER,
                {"model": (6, 0), "positive": (9, 0), "negative": (9, 1), "latent_image": (9, 2)},
                OVER,
            ),
            11: Node("VAEDecode", 6, {}, {"samples": (10, 0), "vae": (6, 2)}),
            12: Node("V3DOrbitCameras", 6, {"orbit": "v3d"}, {}, OVER),
            13: Node("V3DPosedViews", 7, {}, {"images": (11, 0), "cameras": (12, 0)}),
            14: Node("V3DSaveViews", 8, {}, {"views": (13, 0)}),
        },
        (
            ("Picture", BLUE, (1, 2, 3, 4, 5)),
            ("Video model and sampler", PURPLE, (6, 7, 8, 9, 10)),
            ("Frames and cameras", RED, (11, 12, 13, 14)),
        ),
        crossings=4,
    ),
    "sv3d_to_splat": Template(
        notes.SV3D_NOTE,
        {
            **model_orbit(0, 576, SV3D_FILES),
            10: Node("V3DFitSplat", 5, NORMAL, {"views": (9, 1)}),
            **splat_result(11, 6, splat=10, orbit="sv3d", views=18),
        },
        (
            *PICTURE_GROUPS,
            ("Splat", GREEN, (10, 13)),
            ("Result", RED, (11, 12, 14, 15)),
        ),
        gaps={6: 180},
        crossings=2,
    ),
    "texture_any_mesh": Template(
        notes.ANY_MESH_NOTE,
        {
            1: Node("V3DLoadViews", 0, {"folder": DEMO}, top=LANE),
            2: Node("V3DFitSplat", 1, DRAFT, {"views": (1, 0)}),
            3: Node("SplatToMesh", 2, {"resolution": 256}, {"splat": (2, 0)}),
            **textured_result(4, 3, mesh=3, views=(1, 0), name="V3D_any"),
        },
        (
            ("Views", BLUE, (1,)),
            ("Any mesh: put yours in place of these", GREEN, (2, 3)),
            ("Clean", YELLOW, (4,)),
            *mesh_groups(4),
        ),
        note_columns=1,
        gaps={1: 180, 4: 60},
    ),
    "splat_to_mesh_compare": Template(
        notes.COMPARE_NOTE,
        {
            1: Node("V3DLoadViews", 0, {"folder": DEMO}, top=280),
            2: Node("V3DFitSplat", 1, NORMAL, {"views": (1, 0)}, 280),
            3: Node("SplatToMesh", 2, {"resolution": 160}, {"splat": (2, 0)}),
            4: Node("V3DMeshFromSplat", 2, {}, {"splat": (2, 0), "views": (2, 2)}, 970),
            **{
                number: Node(kind, column, values, {name: source}, top, title)
                for number, kind, column, values, name, source, top, title in (
                    (5, "SaveGLB", 3, CORE_FILE, "mesh", (3, 0), 0, "Core's mesh"),
                    (6, "V3DCleanMesh", 3, {"faces": 0}, "mesh", (3, 0), 480, ""),
                    (7, "SaveGLB", 3, V3D_FILE, "mesh", (4, 0), 970, "V3D's mesh"),
                    (8, "V3DCleanMesh", 3, {"faces": 0}, "mesh", (4, 0), 1460, ""),
                    (9, "PreviewAny", 4, {}, "source", (6, 1), 480, "Core's mesh"),
                    (10, "PreviewAny", 4, {}, "source", (8, 1), 1460, "V3D's mesh"),
                )
            },
        },
        (
            ("Views", BLUE, (1,)),
            ("Splat", GREEN, (2,)),
            ("Core: Extract Mesh from Splat", YELLOW, (3, 5, 6, 9)),
            ("V3D: Mesh from Splat", ORANGE, (4, 7, 8, 10)),
        ),
        gaps={2: 120, 3: 60},
    ),
    "evaluate_orbit": Template(
        notes.EVALUATE_NOTE,
        {
            1: Node("V3DLoadViews", 0, {"folder": DEMO, "split": "train"}, {}, 0, "To fit"),
            2: Node("V3DLoadViews", 1, {"folder": DEMO, "split": "test"}, {}, LANE, "Held out"),
            3: Node("V3DFitSplat", 1, NORMAL, {"views": (1, 0)}),
            4: Node("V3DRenderSplat", 2, {}, {"splat": (3, 0), "cameras": (2, 3)}, 350),
            5: Node("PreviewAny", 2, {}, {"source": (3, 1)}, 0, "Report of the fit"),
            6: Node(
                "V3DScoreViews",
                3,
                {"truth_is": "straight"},
                {"images": (4, 0), "truth": (2, 1), "masks": (2, 2)},
                LANE,
            ),
            7: Node("PreviewAny", 4, {}, {"source": (6, 0)}, 890, "Scores"),
            8: Node(
                "PreviewImage", 4, {}, {"images": (6, 1)}, LANE, "Rendering, truth, difference"
            ),
            9: Node("V3DEnvironment", 3),
        },
        (
            ("Views to fit", BLUE, (1,)),
            ("Splat", GREEN, (3,)),
            ("Views held out", BLUE, (2,)),
            ("Report", YELLOW, (5,)),
            ("Held-out views rendered", PURPLE, (4,)),
            ("Scores", RED, (6, 7, 8)),
            ("This computer", ORANGE, (9,)),
        ),
        gaps={2: 180, 3: 60},
        crossings=3,
    ),
}
