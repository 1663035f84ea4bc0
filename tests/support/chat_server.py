"""A small server that speaks OpenAI's chat protocol, and counts what it is asked.

Replies follow from the whole request (seed included), so that equal requests have equal replies.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer(ThreadingHTTPServer):
    """Attributes: asked (how often each request was replied to), keys, and what goes wrong.

    Args:
        pause_seconds: What a reply takes.
        failures: Statuses of the first replies, such as [429, 503].
        reply: Writes a reply to a request; default: a question, now and then cut short.
    """

    daemon_threads = True

    def __init__(
        self,
        pause_seconds: float = 0.0,
        failures: tuple[int, ...] = (),
        reply: Callable[[dict], str] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply or _question
        self.pause_seconds, self.failures = pause_seconds, list(failures)
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def _question(body: dict) -> str:
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    good = json.dumps({"question": f"Is {digest[:6]} good?", "options": ["yes", "no", "well"]})
    return good if int(digest, 16) % 4 else good[:-1]


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self.send(200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        body, server = json.loads(text), self.server
        with server.lock:
            server.keys.add(self.headers["Authorization"])
            failure = server.failures.pop(0) if server.failures else None
        if failure:
            self.send(failure, {"error": {"message": f"not now\n{failure}", "code": None}})
            return
        time.sleep(server.pause_seconds)
        assert self.path == "/v1/chat/completions"
        assert {"model", "messages", "max_tokens", "temperature", "top_p", "seed", "n"} <= set(body)
        reply = server.reply(body)
        self.send(
            200,
            {
                "object": "chat.completion",
                "choices": [
                    {"index": i, "message": {"role": "assistant", "content": reply}}
                    for i in range(body["n"])
                ],
            },
        )
        with server.lock:
            server.asked[text] += 1
            server.bodies.append(body)

    def send(self, status: int, found: dict) -> None:
        content = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(**settings) -> Iterator[ChatServer]:
    """Serve until the end of the block."""
    with ChatServer(**settings) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
