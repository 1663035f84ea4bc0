"""Replies from another engine: any server that speaks OpenAI's chat protocol, such as vLLM's.

For what needs no weights of ours, such as writing questions. A soft prompt or an adapter cannot be
asked there. A request is one conversation and one reply; its seed follows from the run's seed and
the request's number, so that it is the same request whenever it is sent. Whether equal seeds give
equal replies is up to the server; so every reply is kept as it comes, under a hash of its request,
and a run that was killed sends no request twice that has been replied to.

The key is read from the environment variable OPENAI_API_KEY. It is sent nowhere but to the address
given (redirections are not followed) and written nowhere.

Source: the protocol, https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import logging
import os
import queue
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.answering.sampled import Sampler
from jaxalign.core.errors import UserError
from jaxalign.core.files import MetricsFile
from jaxalign.core.json_text import parse_json
from jaxalign.lm.generate import Sampling
from jaxalign.prompts import Message

API_KEY = "OPENAI_API_KEY"
AT_ONCE = 16  # requests that wait for a reply, if nothing else is asked for
_CHAT = "/chat/completions"
_LONGEST_REPLY = 1 << 24  # bytes
_SHOWN = 200  # characters of what a server says that a message repeats
_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A server and one of its models.

    Attributes:
        url: Its address, such as http://localhost:8000/v1.
        model: The name that it knows the model by.
        attempts: How often a request is sent before a failure is final.
        timeout_seconds: How long a reply is waited for.
        pause_seconds: Wait before the second attempt; it doubles with each.
    """

    url: str
    model: str
    attempts: int = 7
    timeout_seconds: float = 600.0
    pause_seconds: float = 1.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"`generator` {self.url}: give an address such as http://localhost:8000/v1"
            )
        if "@" in parts.netloc:
            raise UserError(f"`generator`: no key in the address; set {API_KEY}")

    @classmethod
    def of(cls, url: str | None, model: str | None, constrain: bool = False) -> Endpoint | None:
        """Return the server that the settings `generator` and `generator_model` name, if they do.

        Args:
            url: Its address.
            model: Its model.
            constrain: Whether replies are to be held to a form, which a server cannot be told.

        Raises:
            UserError: If one of the two is missing, or replies are to be held to a form.
        """
        if url is None and model is None:
            return None
        if url is None:
            raise UserError(f"`generator_model` {model}: goes with `generator`, a server's address")
        if not model:
            raise UserError(
                f"`generator` {url}: goes with `generator_model`, the name that the server knows "
                "its model by"
            )
        if constrain:
            raise UserError("`constrain`: needs a model of our own; leave it or `generator` out")
        return cls(url, model)

    @property
    def base(self) -> str:
        """The address without the name of a resource."""
        return self.url.rstrip("/").removesuffix(_CHAT)

    def check(self) -> None:
        """Raise UserError if nobody answers at the address, or the model is not among its own.

        A server need not list its models.
        """
        try:
            listed = self._send("/models", None, attempts=1)
        except _RefusedError as error:
            if error.status in (401, 403):
                raise UserError(error.line) from None
            return
        models = listed.get("data")
        names = [m.get("id") for m in models if isinstance(m, dict)] if models else []
        if isinstance(models, list) and names and self.model not in names:
            known = ", ".join(map(str, names[:10]))
            _log.info(f"{self.url} does not list {self.model}, only {known}")

    def request(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> dict[str, Any]:
        """Return the body of a request for one reply."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "n": 1,
            "seed": seed,
        }
        # No part of the protocol, but vLLM and others know it.
        return body | ({"top_k": sampling.top_k} if sampling.top_k else {})

    def reply(self, body: Mapping[str, Any]) -> str | None:
        """Send a request and return the reply; None if the server says it is too long.

        Raises:
            UserError: If the server refuses it, or fails `attempts` times.
        """
        try:
            found = self._send(_CHAT, body, self.attempts)
        except _RefusedError as error:
            if error.too_long:
                return None
            raise UserError(error.line) from None
        try:
            content = found["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = 0
        if not isinstance(content, str | None):
            raise UserError(
                f"`generator` {self.url}: not a reply of the chat protocol: "
                f"{json.dumps(found)[:_SHOWN]}"
            )
        # Half of a surrogate pair is no text that a file could hold.
        return (content or "").encode("utf-8", "replace").decode()

    def _send(self, resource: str, body: Mapping[str, Any] | None, attempts: int) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(API_KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base}{resource}", data, headers)
        pause = self.pause_seconds
        for attempt in range(1, attempts + 1):
            asked_to_wait = None
            try:
                with _opener.open(request, timeout=self.timeout_seconds) as response:
                    found = parse_json(response.read(_LONGEST_REPLY))
                if not isinstance(found, dict):
                    raise ValueError("no JSON object")
                return found
            except urllib.error.HTTPError as error:
                said = _said(error)
                if error.code != 429 and error.code < 500:
                    raise _RefusedError(self.url, error.code, said) from None
                what = f"HTTP {error.code} {said}".strip()
                asked_to_wait = error.headers.get("Retry-After")
            except (OSError, http.client.HTTPException) as error:
                what = str(getattr(error, "reason", "") or error or type(error).__name__)
            except (ValueError, RecursionError) as error:
                what = f"its reply is not JSON ({error})"
            if attempt < attempts:
                wait = _seconds(asked_to_wait)
                wait = min(60.0, pause if wait is None else wait)
                _log.info(f"{self.url}: {what[:_SHOWN]}; again in {wait:g} s")
                time.sleep(wait)
                pause *= 2
        again = f" after {attempts} attempts; what it replied is kept: resume the run"
        raise UserError(f"`generator` {self.url}: {what[:_SHOWN]}{again if attempts > 1 else ''}")


class _RefusedError(Exception):
    """A request that the server does not want, however often it is sent."""

    def __init__(self, url: str, status: int, said: str) -> None:
        super().__init__(status)
        self.status = status
        advice = f"; set {API_KEY}" if status in (401, 403) else ""
        self.line = f"`generator` {url}: HTTP {status} {said}".strip() + advice
        lower = said.lower()
        self.too_long = status in (400, 413) and (
            "context_length" in lower or "context length" in lower
        )


class _NoRedirections(urllib.request.HTTPRedirectHandler):
    """Takes a redirection for an error: the key is meant for the address given."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirections())


def _said(error: urllib.error.HTTPError) -> str:
    """Return what a server says of an error, on one line."""
    try:
        text = error.read(1 << 16).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    try:
        found = parse_json(text)
        found = found.get("error", found)
        if isinstance(found, dict):
            text = " ".join(str(found[k]) for k in ("message", "code") if found.get(k))
        elif isinstance(found, str):
            text = found
    except (ValueError, AttributeError, RecursionError):
        pass
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in text)[:_SHOWN]


def _seconds(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header; None if it is a date or nothing."""
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return None


class EndpointReplies:
    """Replies of a server, in whatever order they come; each is kept in a file.

    Requests are sent by several threads. A reply is in the file before it is returned, and one that
    is there is not asked for.

    Args:
        endpoint: The server.
        sampling: How replies are sampled.
        seed: Seed of the replies.
        path: The file, JSON lines with `seed`, `asked` (a hash of the request) and `reply`.
        at_once: Most requests that wait for a reply.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        sampling: Sampling,
        seed: int,
        path: Path | None = None,
        at_once: int | None = None,
    ) -> None:
        self._endpoint, self._sampling, self._seed = endpoint, sampling, seed
        self._at_once = at_once or AT_ONCE
        self._file = None if path is None else MetricsFile(path, "seed")
        self._kept: dict[str, str | None] = {}
        if self._file is not None:
            self._file.rewind(sys.maxsize)  # drops a last line that a kill has torn
            rows = self._file.read()
            if not all({"asked", "reply"} <= row.keys() for row in rows):
                raise UserError(f"{path}: not a file of replies; give another `out`")
            self._kept = {row["asked"]: row["reply"] for row in rows}
        self._writing = threading.Lock()
        self._todo: queue.SimpleQueue[tuple[Any, dict[str, Any]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Any, str | None] | Exception] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.waiting = 0  # conversations whose reply was not received yet
        self._stopped = False

    def send(self, conversations: Sequence[list[Message]], ids: Sequence[int]) -> None:
        """Take conversations to reply to, each with a number that its seed follows."""
        for conversation, number in zip(conversations, ids, strict=True):
            self.ask(number, conversation, number)

    def ask(self, name: Hashable, conversation: Sequence[Message], number: int) -> None:
        """Take one conversation, whose reply is received under a name.

        Args:
            name: The name.
            conversation: What is to be replied to.
            number: What the request's seed follows.
        """
        body = self._endpoint.request(conversation, self._sampling, _seed(self._seed, number))
        self.waiting += 1
        if (asked := _hash(body)) in self._kept:
            self._done.put((name, self._kept[asked]))
            return
        self._todo.put((name, body))
        if len(self._threads) < self._at_once:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def receive(self) -> list[tuple[Any, str | None]]:
        """Wait for replies; return (name, reply) of at least one, if any is still to come.

        Raises:
            UserError: If the server refuses a request, or keeps failing.
        """
        found: list[tuple[Any, str | None]] = []
        while self.waiting and not (found and self._done.empty()):
            reply = self._done.get()
            if isinstance(reply, Exception):
                self._stop()
                raise reply
            self.waiting -= 1
            found.append(reply)
        return found

    def finish(self) -> None:
        """End the threads, and order the file by request."""
        self._stop()
        if self._file is not None and self._kept:
            self._file.put_in_order(lambda row: (row["seed"], row["asked"]))

    def _stop(self) -> None:
        self._stopped = True
        for _ in self._threads:
            self._todo.put(None)
        self._threads = []

    def _work(self) -> None:
        while (request := self._todo.get()) is not None and not self._stopped:
            name, body = request
            try:
                reply = self._endpoint.reply(body)
                self._keep(body, reply)
            except Exception as error:  # whoever receives has to know
                self._done.put(error)
                return
            self._done.put((name, reply))

    def _keep(self, body: Mapping[str, Any], reply: str | None) -> None:
        row = {"seed": body["seed"], "asked": _hash(body), "reply": reply}
        with self._writing:
            if self._file is not None:
                self._file.append(row)
            self._kept[row["asked"]] = reply


def server_sampler(
    replies: EndpointReplies,
    messages: Callable[[Hashable], Sequence[Message]],
    encode: Callable[[str], Sequence[int]],
    ahead: int = 256,
) -> Sampler:
    """Return what has a server write sampled replies, for `jaxalign.answering.sampled`.

    Args:
        replies: Writes them.
        messages: Returns the conversation of the name of a reply.
        encode: Returns the token ids of a text, as which replies are read.
        ahead: Most conversations that are handed over before their replies are taken.
    """

    def sample(
        requests: Iterable[tuple[Hashable, Sequence[int], int]], count: int, longest: int
    ) -> Iterator[tuple[Hashable, Sequence[int]]]:
        def received() -> Iterator[tuple[Hashable, Sequence[int]]]:
            for name, text in replies.receive():
                yield name, encode(text or "")

        for name, _, number in requests:
            replies.ask(name, messages(name), number)
            while replies.waiting >= ahead:
                yield from received()
        while replies.waiting:
            yield from received()
        replies.finish()

    return sample


def _seed(seed: int, number: int) -> int:
    """Return the seed of a request, below 2^31: what every server takes."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24]
