"""What the live panel of a fit shows while it runs: the event "v3d.fit" of web/fit_panel.js."""

from __future__ import annotations

import time

from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..v3d_core.progress import Preview
from .runtime import NodeProgress

EVENT = "v3d.fit"
SEND_INTERVAL_S = 0.25  # a curve that grows faster cannot be read


class FitProgress(NodeProgress):
    """Progress of a fit that also sends its figures, to the browser that queued it."""

    def __init__(self) -> None:
        super().__init__(time_left=True)
        self._points: list[dict[str, float]] = []  # not sent yet
        self._began = time.monotonic()
        self._next_send = 0.0

    def figures(self, figures: dict[str, float]) -> None:
        """Keep what the fit tells until the next message."""
        self._points.append({name: round(value, 5) for name, value in figures.items()})

    def __call__(
        self, step: int, total: int, preview: Preview | None = None, text: str = ""
    ) -> None:
        """Show one step; ComfyUI's interrupt exception passes through the caller."""
        super().__call__(step, total, preview, text)
        now = time.monotonic()
        if now < self._next_send and step < total:
            return
        self._next_send = now + SEND_INTERVAL_S
        self._send(step, total, text, now)

    def _send(self, step: int, total: int, text: str, now: float) -> None:
        running, server = get_executing_context(), getattr(PromptServer, "instance", None)
        if running is None or server is None:
            return
        message = {
            "prompt_id": running.prompt_id,
            "node_id": str(running.node_id),
            "step": step,
            "total": total,
            "seconds": round(now - self._began, 2),
            "left": self.seconds_left(step, total, now),
            "text": text,
            "points": self._points,
        }
        self._points = []
        server.send_sync(EVENT, message, server.client_id)

    def seconds_left(self, step: int, total: int, now: float) -> float | None:
        """By the pace since the first step; None before there is one."""
        if not 0 < step <= total:
            return None
        return round((now - self._started) * (total - step) / step, 1)
