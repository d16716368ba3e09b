"""The line of text under a running node, outside and inside of subgraphs."""

import pytest
from prompts import DEMO, node

TEXT = "18 views of 256x256"


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "in a subgraph"])
def test_a_nodes_text_goes_where_the_front_end_can_show_it(inside, server):
    """The host's channel fails in the browser for "12:3", as nodes of subgraphs are called."""
    prefix = "12:" if inside else ""
    load, orbit, pose, save = (f"{prefix}{number}" for number in (1, 2, 3, 4))
    side = 501 if inside else 500  # else the host takes what it has computed under the other names
    graph = {
        load: node("V3DLoadViews", folder=DEMO, split="train"),
        orbit: node("V3DOrbitCameras", orbit="v3d", frame=0, width=side, height=side),
        pose: node("V3DPosedViews", images=[load, 1], cameras=[orbit, 0], mask_is="auto"),
        save: node("V3DSaveViews", views=[pose, 0], filename_prefix="v3d/text", colmap=False),
    }
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    own = [data for _, kind, data in run.events if kind == "v3d.text"]
    shown = [data["text"] for data in own if data["node_id"] == pose]
    assert any(TEXT in text for text in shown) == inside
    assert any(TEXT in text for text in run.texts) != inside
    assert all(data["prompt_id"] for data in own)
