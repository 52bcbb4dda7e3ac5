"""The batch APIs of OpenAI and Anthropic, as replies for `support.loopback`: what was handed in, its states, its results.

Written from the API references: OpenAI's "Files" and "Batch", Anthropic's "Message Batches".
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from support.loopback import CLOSE, Reply, Request

__all__ = ["AnthropicBatches", "Fault", "OpenAIBatches", "Service"]


@dataclass
class Fault:
    """Instead of an answer: an error's type and words, or that a request `expired`, was `canceled` or is `missing`."""

    kind: str
    message: str = "no"
    status: int = 400


Answer = Callable[[str], "str | Fault"]


def echo(prompt: str) -> str:
    return f"re: {prompt}"


@dataclass
class Service:
    """What both have.

    Attributes:
        answer: What becomes of a prompt.
        polls: So many looks at a batch find it unfinished.
        batches: What was handed in: by id, `custom_id` and body of each request.
        on_create: Called with a request to make a batch, before it is made; what it returns is the reply.
        cut: So many bytes of the first download come before the connection breaks.
        problem: Why a batch fails its validation.
    """

    answer: Answer = echo
    polls: int = 1
    batches: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)
    on_create: Callable[[Request], Reply | None] = lambda _: None
    after_create: Callable[[Request], Reply | None] = lambda _: None
    cut: int | None = None
    problem: str | None = None
    looks: dict[str, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    created: dict[str, float] = field(default_factory=dict)

    def prompts(self) -> list[str]:
        """All prompts that were handed in, in their order."""
        return [self.prompt(body) for requests in self.batches.values() for _, body in requests]

    @staticmethod
    def prompt(body: dict[str, Any]) -> str:
        content = body["messages"][-1]["content"]
        return content if isinstance(content, str) else content[0]["text"]

    def over(self, batch: str) -> bool:
        return self.looks.get(batch, 0) >= self.polls

    def look(self, batch: str) -> None:
        self.looks[batch] = self.looks.get(batch, 0) + 1

    def take(self, request: Request, requests: list[tuple[str, dict[str, Any]]], **entry: Any) -> Reply:
        if (reply := self.on_create(request)) is not None:
            return reply
        batch = f"batch_{len(self.batches) + 1}"
        self.batches[batch] = requests
        self.created[batch] = time.time()
        self.entries.append({"id": batch, **entry})
        return self.after_create(request) or Reply.json(self.describe(batch))

    def describe(self, batch: str) -> dict[str, Any]:
        raise NotImplementedError

    def file(self, lines: list[dict[str, Any]]) -> Reply:
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        if self.cut is not None:
            cut, self.cut = self.cut, None
            return Reply([body[:cut], CLOSE], headers={"content-type": "application/x-jsonl"})
        return Reply([body], headers={"content-type": "application/x-jsonl"})

    def listing(self) -> Reply:
        found = [self.describe(entry["id"]) for entry in reversed(self.entries)]
        return Reply.json({"object": "list", "data": found, "has_more": False})


class OpenAIBatches(Service):
    """`/v1/files` and `/v1/batches`."""

    def __call__(self, request: Request) -> Reply:
        path, _, _ = request.path.partition("?")
        match request.method, path.split("/")[2:]:
            case "POST", ["files"]:
                boundary = re.match(r"multipart/form-data; boundary=(\w+)$", request.headers["content-type"])
                assert boundary is not None
                parts = request.body.split(b"--" + boundary[1].encode())
                assert b'name="purpose"\r\n\r\nbatch\r\n' in parts[1]
                name = f"file-{len(self.files) + 1}"
                self.files[name] = parts[2].partition(b"\r\n\r\n")[2]
                return Reply.json({"id": name, "object": "file", "purpose": "batch"})
            case "POST", ["batches"]:
                asked = request.json()
                assert ("/v1/chat/completions", "24h") == (asked["endpoint"], asked["completion_window"])
                lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines() if line]
                assert {("POST", "/v1/chat/completions")} == {(line["method"], line["url"]) for line in lines}
                requests = [(line["custom_id"], line["body"]) for line in lines]
                return self.take(request, requests, metadata=asked["metadata"])
            case "GET", ["batches"]:
                return self.listing()
            case "GET", ["batches", batch] if batch in self.batches:
                self.look(batch)
                return Reply.json(self.describe(batch))
            case "GET", ["files", file, "content"]:
                return self.file(self.results(file))
        return Reply.json({"error": {"message": f"no {request.path}", "type": "invalid_request_error"}}, 404)

    def describe(self, batch: str) -> dict[str, Any]:
        entry = next(entry for entry in self.entries if entry["id"] == batch)
        size = len(self.batches[batch])
        told = {**entry, "object": "batch", "created_at": int(self.created[batch]), "errors": None}
        told["request_counts"] = {"total": size, "completed": size if self.over(batch) else 0, "failed": 0}
        if self.problem and self.over(batch):
            error = {"code": "invalid_json_line", "message": self.problem, "line": 1, "param": None}
            return {**told, "status": "failed", "errors": {"object": "list", "data": [error]}}
        if self.over(batch):
            return {**told, "status": "completed", "output_file_id": f"{batch}-out", "error_file_id": f"{batch}-err"}
        return {**told, "status": "in_progress", "output_file_id": None, "error_file_id": None}

    def results(self, file: str) -> list[dict[str, Any]]:
        batch, _, which = file.rpartition("-")
        lines = []
        # In any order.
        for custom_id, body in reversed(self.batches[batch]):
            answer = self.answer(self.prompt(body))
            line: dict[str, Any] = {
                "id": f"batch_req_{custom_id}",
                "custom_id": custom_id,
                "response": None,
                "error": None,
            }
            match answer:
                case str():
                    choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
                    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
                    reply = {"id": "chatcmpl-1", "model": body["model"], "choices": [choice], "usage": usage}
                    line["response"] = {"status_code": 200, "request_id": f"req_{custom_id}", "body": reply}
                case Fault("missing"):
                    continue
                case Fault("expired"):
                    line["error"] = {"code": "batch_expired", "message": "This request could not be executed in time."}
                case Fault("canceled"):
                    line["error"] = {"code": "batch_cancelled", "message": "This batch was cancelled."}
                case Fault(kind, message, status):
                    error = {"message": message, "type": kind, "code": kind}
                    line["response"] = {"status_code": status, "request_id": "req_1", "body": {"error": error}}
            if (which == "out") is isinstance(answer, str):
                lines.append(line)
        return lines


class AnthropicBatches(Service):
    """`/v1/messages/batches`."""

    def __call__(self, request: Request) -> Reply:
        path, _, _ = request.path.partition("?")
        match request.method, path.split("/")[3:]:
            case "POST", ["batches"]:
                requests = [(each["custom_id"], each["params"]) for each in request.json()["requests"]]
                assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", custom_id) for custom_id, _ in requests)
                assert not any(params.get("stream") for _, params in requests)
                return self.take(request, requests)
            case "GET", ["batches"]:
                return self.listing()
            case "GET", ["batches", batch] if batch in self.batches:
                self.look(batch)
                return Reply.json(self.describe(batch))
            case "GET", ["batches", batch, "results"]:
                return self.file(self.results(batch))
        return Reply.json({"type": "error", "error": {"type": "not_found_error", "message": f"no {request.path}"}}, 404)

    def describe(self, batch: str) -> dict[str, Any]:
        size, over = len(self.batches[batch]), self.over(batch)
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        counts["succeeded" if over else "processing"] = size
        return {
            "id": batch,
            "type": "message_batch",
            "processing_status": "ended" if over else "in_progress",
            "request_counts": counts,
            "created_at": datetime.fromtimestamp(self.created[batch], UTC).isoformat().replace("+00:00", "Z"),
            "results_url": f"https://elsewhere.invalid/v1/messages/batches/{batch}/results" if over else None,
        }

    def results(self, batch: str) -> list[dict[str, Any]]:
        lines = []
        for custom_id, params in reversed(self.batches[batch]):
            result: dict[str, Any]
            match self.answer(self.prompt(params)):
                case str() as answer:
                    message = {
                        "id": "msg_1",
                        "type": "message",
                        "role": "assistant",
                        "model": params["model"],
                        "content": [{"type": "text", "text": answer}],
                        "stop_reason": "end_turn",
                        "stop_sequence": None,
                        "usage": {"input_tokens": 100, "output_tokens": 10},
                    }
                    result = {"type": "succeeded", "message": message}
                case Fault("missing"):
                    continue
                case Fault("expired" | "canceled" as kind):
                    result = {"type": kind}
                case Fault(kind, message):
                    error = {"type": "error", "error": {"type": kind, "message": message}}
                    result = {"type": "errored", "error": error}
            lines.append({"custom_id": custom_id, "result": result})
        return lines
