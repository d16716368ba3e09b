"""V3D Environment in the host: its text is shown, names the host, and says what is used."""

from prompts import node
from scenes import pack


def report(server, **inputs):
    run = server.run({"1": node("V3DEnvironment", **inputs)})
    assert run.ended == "execution_success", run.error
    (text,) = run.outputs["1"]["text"]
    # under the node as Markdown: every line of its own, items with bullets
    shown = [line.removeprefix("• ").rstrip() for line in run.texts[-1].splitlines()]
    lines = [line.strip() for line in text.splitlines()]
    assert "\n".join(lines) in "\n".join(shown)
    assert all(line.endswith("  ") for line in run.texts[-1].splitlines())
    return text


def test_the_text_on_the_node_names_host_engines_and_packages(server):
    import comfyui_version

    text = report(server, try_engines=True)
    lines = text.splitlines()
    assert lines[0] == f"ComfyUI {comfyui_version.__version__}"
    assert lines[1].startswith(f"V3D {pack('v3d_core').__version__}, Python ")
    assert "device cpu: " in text and "splat raster: " in text
    for name in pack("v3d_core.backends").OPTIONAL_PACKAGES:
        assert any(line.startswith(f"  {name}") for line in lines)


def test_a_second_run_looks_again_and_can_leave_engines_alone(server):
    for _ in range(2):
        assert "not tried" in report(server, try_engines=False)
