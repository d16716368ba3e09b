"""Mesh files as software that is not ours sees them; what is not installed is skipped by name.

- the Khronos glTF validator: `npm install gltf-validator`, NODE_PATH = its node_modules folder
- Blender: `pip install bpy`, into another Python whose interpreter V3D_BPY_PYTHON names
- assimp: Debian's assimp-utils
- Pixar's validators of USD: `pip install usd-core`
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from mesh_samples import CUBE_COLOURS, coloured_mesh, seamed_cube, textured_mesh

from v3d_core.formats.mesh_files import write_mesh
from v3d_core.structures import Mesh

VALIDATE = """
const fs = require("fs"), validator = require("gltf-validator");
Promise.all(process.argv.slice(1).map(async path => {
  const report = await validator.validateBytes(new Uint8Array(fs.readFileSync(path)));
  return {path, errors: report.issues.numErrors, warnings: report.issues.numWarnings,
          messages: report.issues.messages.map(m => m.code)};
})).then(reports => console.log(JSON.stringify(reports)));
"""

BLENDER = """
import json, sys, bpy
seen = {}
for path in sys.argv[1:]:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    suffix = path.rsplit(".", 1)[1]
    turned = {"forward_axis": "NEGATIVE_Z", "up_axis": "Y"}
    {
        "glb": lambda: bpy.ops.import_scene.gltf(filepath=path),
        "obj": lambda: bpy.ops.wm.obj_import(filepath=path),
        "ply": lambda: bpy.ops.wm.ply_import(filepath=path, **turned),
        "stl": lambda: bpy.ops.wm.stl_import(filepath=path, **turned),
        "usdz": lambda: bpy.ops.wm.usd_import(filepath=path, import_textures_mode="IMPORT_PACK"),
    }[suffix]()
    (shape,) = [o for o in bpy.context.scene.objects if o.type == "MESH"]
    mesh, turn = shape.data, shape.matrix_world.to_3x3()
    material = mesh.materials[0] if mesh.materials else None
    nodes = material.node_tree.nodes if material and material.node_tree else []
    images = [n.image for n in nodes if n.type == "TEX_IMAGE" and n.image]
    sides = {}
    for face in mesh.polygons if images else []:
        uvs = [mesh.uv_layers[0].data[loop].uv for loop in face.loop_indices]
        u, v = (sum(uv[axis] for uv in uvs) / len(uvs) for axis in (0, 1))
        width, height = images[0].size
        texel = (int(v * height) * width + int(u * width)) * images[0].channels
        colour = [round(255 * value) for value in images[0].pixels[texel : texel + 3]]
        sides[str([round(x) for x in turn @ face.normal])] = colour
    seen[suffix] = {
        "faces": len(mesh.polygons), "vertices": len(mesh.vertices), "sides": sides,
        "space": images[0].colorspace_settings.name if images else None,
        "culled": material.use_backface_culling if material else None,
    }
print("SEEN" + json.dumps(seen))
"""


def samples() -> dict[str, Mesh]:
    """One mesh for every way a file can differ."""
    cube, plain = seamed_cube(), coloured_mesh()
    count = 70000  # more than 16-bit indices reach
    many = torch.rand(count, 3, generator=torch.Generator().manual_seed(0))
    return {
        "cube": cube,
        "open": replace(cube, faces=cube.faces[2:]),
        "repeated": replace(cube, uvs=cube.uvs * 3 - 1),
        "odd": textured_mesh(),
        "coloured": plain,
        "bare": Mesh(plain.vertices, plain.faces),
        "unwrapped": replace(cube, texture=None),
        "many": Mesh(many, torch.arange(count - 1).reshape(-1, 3), vertex_colours=many),
        "degenerate": Mesh(plain.vertices, torch.tensor([[0, 1, 2], [1, 1, 1]])),
    }


def sides_of_the_cube() -> dict[str, list[int]]:
    """Colours by Blender's outward direction: its z is our y, its y our -z."""
    expected = {}
    for index, colour in enumerate(CUBE_COLOURS):
        direction = [0, 0, 0]
        direction[index // 2] = 2 * (index % 2) - 1
        x, y, z = direction
        expected[str([x, -z, y])] = colour
    return expected


def test_the_khronos_validator_has_no_errors_and_no_warnings(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("gltf-validator was not run: there is no node")
    paths = []
    for name, mesh in samples().items():
        for unlit in (False, True):
            paths.append(str(tmp_path / f"{name}_{unlit}.glb"))
            write_mesh(paths[-1], mesh, unlit, glb_extras={"prompt": "{}"} if unlit else None)
    done = subprocess.run([node, "-e", VALIDATE, *paths], capture_output=True, text=True)
    if "Cannot find module 'gltf-validator'" in done.stderr:
        pytest.skip("gltf-validator was not run: npm install gltf-validator, and set NODE_PATH")
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert len(reports) == len(paths)
    assert [r for r in reports if r["errors"] or r["warnings"]] == []


def test_blender_sees_each_side_of_the_cube_in_its_colour(tmp_path):
    python = os.environ.get("V3D_BPY_PYTHON", sys.executable)
    probe = subprocess.run([python, "-c", "import bpy"], capture_output=True)
    if probe.returncode:
        pytest.skip("Blender was not run: pip install bpy, and name its Python by V3D_BPY_PYTHON")
    suffixes = [".glb", ".obj", ".ply", ".stl"]
    try:
        import pxr  # noqa: F401

        suffixes.append(".usdz")
    except ImportError:
        pass
    paths = [str(tmp_path / f"cube{suffix}") for suffix in suffixes]
    for path in paths:
        write_mesh(path, seamed_cube())
    done = subprocess.run([python, "-c", BLENDER, *paths], capture_output=True, text=True)
    assert "SEEN" in done.stdout, done.stdout + done.stderr
    seen = json.loads(done.stdout.split("SEEN")[1].splitlines()[0])
    assert {entry["faces"] for entry in seen.values()} == {12}
    assert seen["obj"]["vertices"] == seen["stl"]["vertices"] == 8  # no seams in the surface
    for suffix in ("glb", "obj", "usdz"):
        if suffix in seen:
            assert seen[suffix]["sides"] == sides_of_the_cube(), suffix
            assert seen[suffix]["space"] == "sRGB"
    assert seen["glb"]["culled"] is True


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".stl"])
def test_assimp_reads_every_face(tmp_path, suffix):
    assimp = shutil.which("assimp")
    if assimp is None:
        pytest.skip("assimp was not run: apt-get install assimp-utils")
    for name, mesh in samples().items():
        if name == "degenerate":  # which assimp drops
            continue
        write_mesh(tmp_path / f"{name}{suffix}", mesh)
        done = subprocess.run(
            [assimp, "info", tmp_path / f"{name}{suffix}"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (line,) = [x for x in done.stdout.splitlines() if x.startswith("Faces:")]
        assert int(line.split()[1]) == len(mesh.faces), name


def test_pixars_validators_find_nothing_in_usdz(tmp_path):
    reason = ".usdz was not validated: pip install usd-core"
    Usd = pytest.importorskip("pxr.Usd", reason=reason)
    validation = pytest.importorskip("pxr.UsdValidation", reason=reason)
    known = validation.ValidationRegistry().GetOrLoadAllValidators()
    context = validation.ValidationContext(known)
    for name, mesh in samples().items():
        path = str(tmp_path / f"{name}.usdz")
        write_mesh(path, mesh)
        issues = context.Validate(Usd.Stage.Open(path))
        assert [issue.GetErrorAsString() for issue in issues] == [], name
