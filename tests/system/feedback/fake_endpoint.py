"""A fake OpenAI-compatible endpoint on loopback: real HTTP, made-up answers.

It is not a model. It answers chat completions with what a function says, and can be told to
refuse, to be slow, and to hide its token usage.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATH = "/v1/chat/completions"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}

Messages = list[dict[str, str]]


@dataclass
class FakeEndpoint:
    """What the endpoint does, and what it saw.

    `refusals` are HTTP statuses given before the first answers, in turn; `blanks`, of which there
    is one every 50 ms, come before an answer.
    """

    answer: Callable[[Messages], str]
    refusals: list[int] = field(default_factory=list)
    delay_s: float = 0.0
    blanks: int = 0
    usage: dict[str, int] | None = field(default_factory=lambda: dict(USAGE))
    base_url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, request: dict[str, Any], key: str | None) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.arrivals.append(time.monotonic())
            self.requests.append(request)
            self.keys.add(key)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            status = self.refusals.pop(0) if self.refusals else 200
        time.sleep(self.delay_s)
        with self._lock:
            self._at_once -= 1
        if status != 200:
            # As some servers do, it repeats the key that it refuses.
            message = f"refused with {status}. Incorrect API key provided: {key}"
            return status, {"error": {"message": message}}
        return status, self._completion(request)

    def _completion(self, request: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.answer(request["messages"])}
        completion: dict[str, Any] = {
            "id": "fake",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        return completion | ({"usage": self.usage} if self.usage else {})


@contextmanager
def serving(endpoint: FakeEndpoint) -> Iterator[FakeEndpoint]:
    """Serve it on a free port of the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == PATH
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = endpoint.respond(request, self.headers["Authorization"])
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(endpoint.blanks + len(content)))
            self.send_header("retry-after-ms", "20")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # who asked may be gone
                for _ in range(endpoint.blanks):
                    self.wfile.write(b" ")
                    time.sleep(0.05)
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
