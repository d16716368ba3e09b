"""Finish now: POST /v3d/finish ends a running fit early, and its result is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..v3d_core.progress import never

ROUTE = "/v3d/finish"

# Fits that run now, by prompt and node. A node's id alone would name the fit of any user.
_running: dict[tuple[str, str], threading.Event] = {}


@contextmanager
def finishable() -> Iterator[Callable[[], bool]]:
    """Scope of the node that runs now: gives a function that is True once it shall finish."""
    running = get_executing_context()
    if running is None:  # not run by ComfyUI's queue
        yield never
        return
    key, asked = (running.prompt_id, str(running.node_id)), threading.Event()
    _running[key] = asked
    try:
        yield asked.is_set
    finally:
        del _running[key]


async def finish(request: web.Request) -> web.Response:
    """Answer {"prompt_id", "node_id"}: 200, or 404 when that node runs no fit in that prompt."""
    try:
        body = await request.json()
        prompt, node = str(body["prompt_id"]), str(body["node_id"])
    except (ValueError, TypeError, KeyError):
        text = 'send JSON with "prompt_id" and "node_id"'
        return web.json_response({"error": text}, status=400)
    asked = _running.get((prompt, node))
    if asked is None:
        text = f"node {node} runs no fit in prompt {prompt} now"
        return web.json_response({"error": text}, status=404)
    asked.set()
    return web.json_response({})


def add_finish_route() -> None:
    """Called when the pack is loaded; without a server there is nobody to ask."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.post(ROUTE)(finish)
