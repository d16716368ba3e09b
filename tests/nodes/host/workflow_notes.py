"""The notes that stand in workflows/*.json; Markdown, as the front end shows it."""

from __future__ import annotations

NANO_SCALE, NANO_STEPS = 1.0, 6  # as in workflow_graphs

OWN_FRAMES = """
### Your own frames
* Put them in a folder below ComfyUI's `input`, press **R**, and choose it in *V3D Load Views*.
* Which orbit made them? Choose it in *V3D Orbit Cameras*: `v3d` (18 frames), `sv3d` (21 frames), \
or `custom`. A folder with a `transforms.json`, as the demo's, keeps its own cameras.
* Frames from other nodes (SV3D, a video, Load Image)? Put *V3D Posed Views* in the place of \
*V3D Load Views*. Background: alpha, else masks, else a flat one is cut out.
"""

QUALITY = """### Quality and time
`preset`: draft to look, normal to keep, best for detail. Cancel stops at once; *Finish now* on the \
running fit keeps what there is.
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
* *V3D Save SDF* keeps the fitted surface. Another day connect *V3D Load SDF* to *V3D Extract Mesh* \
and *V3D Clean Mesh*, and nothing is fitted again.
* Have you normal maps of the frames, from any normal estimator? Connect them to `normals`.
{ASSET}
{OWN_FRAMES}
{UNSEEN}"""

EVALUATE_NOTE = f"""## How good is a splat of these frames?
Queue it as it is: it fits a splat to the 18 training views of the demo orbit, renders the 6 views \
that were held out of the fit, and compares them with the true ones.

### The figures
* `psnr_object`: dB on the object alone, more is better; `psnr` counts the white background too. \
One dB more or less can be seen. `ssim`: 1 is the same picture.
* The picture shows *rendering | truth | difference*.
* `psnr_train` of the fit says little: it also rises while the splat learns the faults of the frames.
* Seconds depend on the engine: *V3D Environment* says which one runs here and why.

### Your own frames
* A data set whose folder holds `transforms_train.json` and `transforms_test.json` works like the \
demo: choose it in both *V3D Load Views*; the second reads the `test` split.
* Plain frames have no test split: set `hold_out` of *V3D Fit Splat* to 6. Every 6th view is then \
scored instead of fitted, and the report of the fit has `psnr_test`. The right half is not needed.
* Frames of a video model: low `psnr_test` beside high `psnr_train` means that they do not show one \
object. The report also says by how many pixels each view was moved.

{QUALITY}"""

COMPARE_NOTE = """## Two ways from a splat to a mesh
Queue it as it is: it fits a splat to the demo orbit and makes a mesh of it twice, with core's \
*Extract Mesh from Splat* above and *V3D Mesh from Splat* below.

### What differs
* Core's node makes a surface where the density of the splat passes `level`. It needs no cameras, \
and works on any splat, scenes too. The walls have an inside.
* V3D's node renders depth from the views and fuses it. It makes one closed surface without an \
inside, for one object seen from around.

### What the reports say
*V3D Clean Mesh* says what it found and mended (`faces` is 0: no budget). Compare `faces_before`, \
`watertight_before`, `holes_filled` and `small_part_faces`: a printer or an engine's physics wants a \
watertight mesh. Both ways work at `resolution` 160 here; core's own default, 384, makes over a \
million faces of this splat, and cleaning those takes minutes.

Another splat? Put *Get Splat* in the place of *V3D Fit Splat*. Without views \
V3D's node looks from around by itself.
"""

PICTURE = """### Your own picture
Select *Load Image* and press **Ctrl+M**, which switches it on; drag the picture onto it and connect \
its `IMAGE` to *Get Image from Batch*. One object, seen from its front at its own height, not cut \
off. A flat background is cut out by *V3D Prepare Image*. **A photo**: put [birefnet.safetensors](https://huggingface.co/Comfy-Org/BiRefNet) into \
`models/background_removal`, press **R**, select both nodes *For photos* and press **Ctrl+M**: that \
switches them on. Has your picture alpha? Then connect *Load Image*'s `MASK` to *V3D Prepare Image*.
"""

NANO_FOR = """It runs as it is with *V3D-nano*, a small video model that comes with V3D: no file to \
download, no GPU needed. **V3D-nano is a demonstration**: 128 px, soft, its colours in blots, and all \
it knows are simple toys. **For real pictures choose `{}` in *V3D Load Model***"""
NANO = NANO_FOR.format("V3D.ckpt")

ONE_CHOICE = f"""### The model
{NANO}; nothing else has to be changed: 0 as `steps` and `scale` in *V3D Sample Orbit* is what the \
model was made for.
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
back of the object; with V3D.ckpt `scale` may be up to 4.5.
"""

TRY_NOTE = f"""## One picture to a splat and a textured mesh, with nothing to download
Queue it as it is. *V3D-nano*, a small video model that comes with V3D, turns a camera around the \
object of the sample picture (18 frames of 128 px); a splat is fitted to them, and a mesh with a \
texture is made of it. Two cores without a GPU take about a minute.

### What to expect
V3D-nano shows how the whole way works. It has a hundredth of the size of V3D's model and has only \
seen toys made of balls, boxes and rings. The orbit is soft and a guess behind, and **colours come \
in blots**: they are right as a whole, patterns are lost. For real pictures take \
*image_to_splat* and *image_to_mesh*, and choose V3D.ckpt there: the nodes are the same.

### Your own picture
Select *Load Image* and press **Ctrl+M**, which switches it on; drag the picture onto it and connect \
its `IMAGE` to *Get Image from Batch*. One object on a plain background, seen from its front at its own height; for others put *Remove Background* in between. \
A toy, a mug or a simple figure is nearest to what V3D-nano knows.

### What V3D-nano is made for
`size` 128 in *V3D Prepare Image*, `steps` {NANO_STEPS} and `scale` {NANO_SCALE:g} in *V3D Sample Orbit*, \
as set here. Another \
`seed` gives another back of the object.
{ASSET}"""

IMAGE_SPLAT_NOTE = f"""## One picture to a Gaussian splat
Cuts the object out, turns V3D's camera around it (18 frames), fits a splat to them and saves a \
`.ply`. Two cores without a GPU take about a minute with V3D-nano.

{ONE_CHOICE}
{V3D_FILES}
{PICTURE}
{ORBIT}
{QUALITY}"""

IMAGE_MESH_NOTE = f"""## One picture to a textured mesh
Cuts the object out, turns V3D's camera around it (18 frames), fits a splat to them, takes a closed \
mesh out of it, makes that light, and gives it a texture from the frames, saved as `.glb`. Two \
cores without a GPU take about a minute with V3D-nano.

{ONE_CHOICE}
{V3D_FILES}
{PICTURE}
{ORBIT}
{ASSET}
{UNSEEN}"""

KSAMPLER_NOTE = f"""## One picture to an orbit, by core's own sampler
*V3D Conditioning* tells core's *KSampler* what V3D's model has to know, so that samplers, \
schedulers, LoRAs and patches of other packs can be tried. With the values set here (euler, karras, \
{NANO_STEPS} steps, cfg {NANO_SCALE:g}, as V3D-nano takes them) it gives the orbit of *V3D Sample \
Orbit*. *V3D Save Views* writes frames and cameras to `output/v3d`, where *V3D Load Views* and other \
programs find them.

### The model
{NANO} and set *KSampler* to 25 steps and cfg 3.5: core's sampler does not know a model's own numbers.

{V3D_FILES}
{PICTURE}
### Seeds
The `seed` of *V3D Conditioning* and that of *KSampler* are two; keep them alike.
"""

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

SV3D_NOTE = f"""## One picture to a Gaussian splat, by SV3D
As *image_to_splat*, for the models of Stability AI's SV3D: 21 frames of 576 px with the cameras they \
were trained with. Two cores without a GPU take about a minute with V3D-nano.

### The model
{NANO_FOR.format("sv3d_u` or `sv3d_p")}; nothing else has to be changed: 0 as `steps` and `scale` in \
*V3D Sample Orbit* is what the model was made for.

### One model file, in `models/checkpoints`
* [sv3d_u.safetensors](https://huggingface.co/stabilityai/sv3d): the orbit stays at the height that \
the picture was taken from.
* [sv3d_p.safetensors](https://huggingface.co/stabilityai/sv3d): is told that height, `elevation` among \
the advanced inputs of *V3D Sample Orbit*.

Each holds all that is needed. Stability AI's licence; the page asks you to log in and agree before you \
download.

{PICTURE}
### The cameras
SV3D's orbit ends with the input picture, V3D's begins with it. Is the splat inside out? Then the \
orbit goes the other way: give `images` to *V3D Posed Views* with *V3D Orbit Cameras* set to `custom`, \
21 views, radius 3.8, fov 33.8, azimuth -17 and `clockwise`. Frames of core's own SV3D nodes enter \
there, too, with `sv3d` or `sv3d_p`.

{QUALITY}"""
