"""A ComfyUI server process and a client that queues prompts and listens to what happens."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

START_TIMEOUT_S = 180
PREVIEW_WITH_METADATA, TEXT = 4, 3  # binary event types of ComfyUI's protocol.py


@dataclass
class Run:
    """What a queued prompt did."""

    outputs: dict = field(default_factory=dict)  # node id -> its ui output, from /history
    events: list[tuple[float, str, dict]] = field(default_factory=list)  # time, type, data
    previews: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    error: str = ""
    ended: str = ""  # execution_success, execution_error, execution_interrupted or rejected
    interrupt_sent: float = 0.0

    def seconds_to_stop(self) -> float:
        """From the interrupt request to the end of the run."""
        return self.events[-1][0] - self.interrupt_sent


class ComfyServer:
    """`main.py` on a free port, over a base directory of its own; on the CPU if not told else."""

    def __init__(self, base: Path, *options: str, device: str = "--cpu") -> None:
        self.base = base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log_path = base / "server.log"
        self.start_log = ""  # what it printed until it was ready
        options = [device, *options, "--listen", "127.0.0.1", "--port", str(self.port)]
        options += ["--disable-api-nodes", "--base-directory", str(base)]
        options += ["--database-url", f"sqlite:///{base / 'comfyui.db'}"]
        self._log = self.log_path.open("w", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("bootstrap.py")), *filter(None, options)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=base,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )

    @property
    def log(self) -> str:
        """Everything the server has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_until_ready(self) -> None:
        """Return when the server answers; raise with its log when it ends or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                self.start_log = self.log
                return
            except OSError:
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log[-4000:]}")

    def stop(self) -> None:
        """End the server process."""
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def get(self, path: str) -> bytes:
        """Body of a GET request."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.read()

    def get_json(self, path: str) -> dict:
        """The same, parsed."""
        return json.loads(self.get(path))

    def post(self, path: str, body: dict) -> tuple[int, dict]:
        """Status and parsed body of a POST request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def run(
        self,
        prompt: dict,
        *,
        interrupt_when: Callable[[str, dict], bool] | None = None,
        on_event: Callable[[str, dict], None] | None = None,
        timeout_s: float = 300,
    ) -> Run:
        """Queue an API-form prompt and follow it to its end; `on_event` may send requests."""
        return asyncio.run(self._run(prompt, interrupt_when, on_event, timeout_s))

    async def _run(self, prompt, interrupt_when, on_event, timeout_s) -> Run:
        run, client = Run(), uuid.uuid4().hex
        url = f"ws://127.0.0.1:{self.port}/ws?clientId={client}"
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(url, max_msg_size=0) as socket_:
                await socket_.send_json(
                    {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
                )
                body = {"prompt": prompt, "client_id": client}
                status, answer = await asyncio.to_thread(self.post, "/prompt", body)
                if status != 200:
                    run.ended, run.error = "rejected", json.dumps(answer)
                    return run
                listen = self._listen(socket_, run, answer["prompt_id"], interrupt_when, on_event)
                await asyncio.wait_for(listen, timeout_s)
        # `executing` without a node came last, so the history is complete
        history = await asyncio.to_thread(self.get_json, f"/history/{answer['prompt_id']}")
        run.outputs = history[answer["prompt_id"]]["outputs"]
        return run

    async def _listen(self, socket_, run, prompt_id, interrupt_when, on_event) -> None:
        async for message in socket_:
            now = time.monotonic()
            if message.type == aiohttp.WSMsgType.BINARY:
                kind = int.from_bytes(message.data[:4], "big")
                if kind == PREVIEW_WITH_METADATA:
                    start = 8 + int.from_bytes(message.data[4:8], "big")
                    run.previews.append(message.data[start:])
                elif kind == TEXT:
                    start = 8 + int.from_bytes(message.data[4:8], "big")
                    run.texts.append(message.data[start:].decode())
                continue
            event = json.loads(message.data)
            kind, data = event["type"], event.get("data", {})
            if data.get("prompt_id", prompt_id) != prompt_id:
                continue
            run.events.append((now, kind, data))
            if on_event:
                await asyncio.to_thread(on_event, kind, data)
            if interrupt_when and not run.interrupt_sent and interrupt_when(kind, data):
                run.interrupt_sent = time.monotonic()
                await asyncio.to_thread(self.post, "/interrupt", {})
            if kind == "execution_error":
                run.error = data["exception_message"]
            if kind in ("execution_success", "execution_error", "execution_interrupted"):
                run.ended = kind
            if kind == "executing" and data.get("node") is None:
                return
