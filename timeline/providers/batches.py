"""The batch APIs of OpenAI (and who took over its format) and Anthropic: many requests handed in at once, answered within a day.

Sources: OpenAI's API reference, "Batch" and "Files", and its guide "Batch API"; Anthropic's API reference,
"Message Batches". A result may stand anywhere in the file of results: `custom_id` tells whose it is.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Raw, Struct

from timeline.errors import BadResponse, BrokenStream, InvalidRequest, ProviderError, ProviderTimeout, ServerError
from timeline.providers.anthropic import AnthropicProvider
from timeline.providers.base import UNREADABLE, Item, LLMProvider, LLMRequest, utf8
from timeline.providers.failures import Complaint
from timeline.providers.http import HTTPProvider, whole_items
from timeline.providers.openai import OpenAIProvider

__all__ = ["BatchAPI", "BatchState", "Outcome", "batch_api"]

PAGE = 100
PAGES = 10
"""How far back a batch is looked for whose id was never told us."""
LABEL = "timeline"
"""The key of OpenAI's metadata that holds our own name for a batch."""
SLACK = 60_000_000
"""µs that a provider's clock may be behind ours."""


class BatchState(Struct, frozen=True):
    """How far a batch is.

    Args:
        id: The provider's id of it.
        over: No more will be answered; what is answered can be fetched.
        ended: Requests of it that have ended, one way or the other.
        files: Where its results are.
        problem: Why none of it was answered at all.
    """

    id: str
    over: bool
    ended: int = 0
    files: tuple[str, ...] = ()
    problem: str | None = None


class Outcome(Struct, frozen=True):
    """What became of one request: its answer's items, or an error."""

    custom_id: str
    items: tuple[Item, ...] = ()
    error: ProviderError | None = None


class BatchAPI(ABC):
    """A provider's batch API. As a provider, it holds no policy: no retry, no waiting."""

    def __init__(self, provider: HTTPProvider) -> None:
        self.provider = provider

    @abstractmethod
    async def submit(self, label: str, requests: Sequence[tuple[str, LLMRequest]]) -> str:
        """Hand requests in.

        Args:
            label: Our own name for the batch.
            requests: Each with its `custom_id`: up to 64 letters, digits, `_` and `-`.

        Returns:
            The provider's id of the batch.

        Raises:
            ProviderError: It wasn't taken; after one that says nothing of the requests, such as a `NetworkError`, a
                `ServerError` or a `BadResponse`, it may have been all the same.
        """

    @abstractmethod
    async def find(self, label: str, requests: int, *, since: int, known: Collection[str]) -> str | None:
        """The id of a batch that may have been handed in without our being told.

        Args:
            label: Our own name for it.
            requests: How many it has.
            since: Not before this instant, µs UTC.
            known: Ids of batches that are others.

        Raises:
            ProviderError: The list could not be had.
        """

    @abstractmethod
    async def state(self, batch: str) -> BatchState:
        """How far it is.

        Raises:
            ProviderError: It could not be asked.
        """

    @abstractmethod
    def results(self, state: BatchState, model: str) -> AsyncGenerator[Outcome, None]:
        """What became of its requests, in any order.

        Args:
            state: Of a batch that is over.
            model: Which was asked for.

        Raises:
            ProviderError: The results could not be had, or break off.
        """

    def never_begun(self, problem: str) -> InvalidRequest:
        """Why nothing of a batch was answered."""
        name = self.provider.name
        told = self.provider.head_of(200, None, "").speaker.quote(problem)
        return InvalidRequest(f"{name} refused the batch ({told}): change the prompts or the model", provider=name)

    def never_taken(self) -> ServerError:
        """A batch isn't there that may have been handed in."""
        return ServerError(f"{self.provider.name} never took the batch: run the same command again")

    def without_result(self) -> ServerError:
        """A batch is over and says nothing of a request."""
        name = self.provider.name
        return ServerError(f"{name} ended its batch without a result for this request: ask it again", provider=name)

    def _request_body(self, request: LLMRequest) -> dict[str, Any]:
        return self.provider.body(request, stream=False)

    def _answer(self, custom_id: str, payload: bytes, request_id: str | None, model: str) -> Outcome:
        """The outcome that a whole answer stands for."""
        head = self.provider.head_of(200, request_id, model)
        parser = self.provider.parser(head, LLMRequest(model, ()))
        try:
            return Outcome(custom_id, tuple(whole_items(parser, payload)))
        except BrokenStream:
            return Outcome(custom_id, error=head.bad(payload, what="no answer"))
        except ProviderError as exc:
            return Outcome(custom_id, error=exc)

    def _refusal(self, custom_id: str, status: int, payload: bytes, request_id: str | None, model: str) -> Outcome:
        head = self.provider.head_of(status, request_id, model)
        return Outcome(custom_id, error=head.error(Complaint.read(payload)))

    def _too_late(self) -> ProviderTimeout:
        msg = f"{self.provider.name} did not come to this request before its batch expired: run the same command again"
        return ProviderTimeout(msg, provider=self.provider.name)

    def _canceled(self) -> ServerError:
        msg = f"the batch was cancelled at {self.provider.name} before this request's turn: run the same command again"
        return ServerError(msg, provider=self.provider.name)

    def _strange(self, payload: Any) -> BadResponse:
        encoded = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        return self.provider.head_of(200, None, "").bad(encoded, what="what is none of its batch API")


def batch_api(provider: LLMProvider) -> BatchAPI | None:
    """A provider's batch API; None where it has none."""
    match provider:
        case AnthropicProvider():
            return _Anthropic(provider)
        case OpenAIProvider():
            return _OpenAI(provider)
    return None


# ------------------------------------------------------------------ OpenAI


class _Reply(Struct):
    status_code: int = 0
    request_id: str | None = None
    body: Raw = Raw(b"null")


class _Fault(Struct):
    code: str | None = None
    message: str | None = None


class _OutputLine(Struct):
    custom_id: str
    response: _Reply | None = None
    error: _Fault | None = None


_output_line = msgspec.json.Decoder(_OutputLine).decode
_OVER = frozenset({"completed", "failed", "expired", "cancelled"})
_OK = 300


class _OpenAI(BatchAPI):
    async def submit(self, label: str, requests: Sequence[tuple[str, LLMRequest]]) -> str:
        # The API's own name of the endpoint, whatever path the server stands at.
        url = "/v1" + self.provider.path(requests[0][1], stream=False)
        lines = (
            msgspec.json.encode(
                {"custom_id": custom_id, "method": "POST", "url": url, "body": self._request_body(request)}
            )
            for custom_id, request in requests
        )
        content_type, form = _multipart({"purpose": "batch"}, f"{label}.jsonl", b"\n".join(lines) + b"\n")
        file = _id(await self.provider.get_json("/files", form, content_type=content_type))
        if file is None:
            raise self._strange({})
        created = await self.provider.get_json(
            "/batches",
            {"input_file_id": file, "endpoint": url, "completion_window": "24h", "metadata": {LABEL: label}},
        )
        return self._state(created).id

    async def find(self, label: str, requests: int, *, since: int, known: Collection[str]) -> str | None:  # noqa: ARG002
        async for entry in _listed(self.provider, "/batches", "after"):
            metadata = entry.get("metadata")
            if isinstance(metadata, dict) and metadata.get(LABEL) == label:
                return _id(entry)
            if isinstance(entry.get("created_at"), int) and entry["created_at"] * 1_000_000 + SLACK < since:
                return None
        return None

    async def state(self, batch: str) -> BatchState:
        return self._state(await self.provider.get_json(f"/batches/{quote(batch, safe='')}"))

    def _state(self, entry: Any) -> BatchState:
        batch = _id(entry)
        if batch is None:
            raise self._strange(entry)
        status = entry.get("status")
        counts = entry.get("request_counts")
        ended = sum(_number(counts, name) for name in ("completed", "failed"))
        files = tuple(file for name in ("output_file_id", "error_file_id") if isinstance(file := entry.get(name), str))
        problem = None
        if status == "failed":
            errors = entry.get("errors")
            told = errors.get("data") if isinstance(errors, dict) else None
            words = [str(each.get("message")) for each in told or () if isinstance(each, dict) and each.get("message")]
            problem = "; ".join(words[:3]) or "it did not say why"
        return BatchState(batch, status in _OVER, ended, files, problem)

    async def results(self, state: BatchState, model: str) -> AsyncGenerator[Outcome, None]:
        for file in state.files:
            async with aclosing(self.provider.get_lines(f"/files/{quote(file, safe='')}/content")) as lines:
                async for line in lines:
                    if line.strip():
                        yield self._outcome(line, model)

    def _outcome(self, line: bytes, model: str) -> Outcome:
        try:
            read = _output_line(utf8(line))
        except UNREADABLE:
            raise self._strange(line) from None
        reply = read.response
        if reply is not None and reply.status_code:
            payload = bytes(reply.body)
            if reply.status_code < _OK:
                return self._answer(read.custom_id, payload, reply.request_id, model)
            return self._refusal(read.custom_id, reply.status_code, payload, reply.request_id, model)
        fault = read.error or _Fault()
        if fault.code == "batch_expired":
            return Outcome(read.custom_id, error=self._too_late())
        if fault.code == "batch_cancelled":
            return Outcome(read.custom_id, error=self._canceled())
        return self._refusal(read.custom_id, 200, msgspec.json.encode({"error": fault}), None, model)


def _multipart(fields: dict[str, str], filename: str, body: bytes) -> tuple[str, bytes]:
    """A form with a file (RFC 7578): its content type, and its bytes."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = (
        f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{filename}"\r\n'
        "content-type: application/jsonl\r\n\r\n"
    )
    end = f"\r\n--{boundary}--\r\n"
    return f"multipart/form-data; boundary={boundary}", b"".join([*parts, head.encode(), body, end.encode()])


# ------------------------------------------------------------------ Anthropic


class _Result(Struct):
    type: str
    message: Raw = Raw(b"null")
    error: Raw = Raw(b"null")


class _ResultLine(Struct):
    custom_id: str
    result: _Result


_result_line = msgspec.json.Decoder(_ResultLine).decode
_COUNTS = ("succeeded", "errored", "canceled", "expired")


class _Anthropic(BatchAPI):
    async def submit(self, label: str, requests: Sequence[tuple[str, LLMRequest]]) -> str:  # noqa: ARG002  there is no place for it
        entries = [{"custom_id": custom_id, "params": self._request_body(request)} for custom_id, request in requests]
        return self._state(await self.provider.get_json("/messages/batches", {"requests": entries})).id

    async def find(self, label: str, requests: int, *, since: int, known: Collection[str]) -> str | None:  # noqa: ARG002
        """By its time and size: the API keeps no name of ours. Whose it is, its results tell."""
        found: list[tuple[int, str]] = []
        async for entry in _listed(self.provider, "/messages/batches", "after_id"):
            created = _instant(entry.get("created_at"))
            if created is None or created + SLACK < since:
                break
            counts = entry.get("request_counts")
            size = sum(_number(counts, name) for name in ("processing", *_COUNTS))
            if (batch := _id(entry)) is not None and batch not in known and size == requests:
                found.append((created, batch))
        # The first since then; only where there is none may the provider's clock be behind ours.
        after = [batch for created, batch in found if created >= since]
        return after[-1] if after else found[0][1] if found else None

    async def state(self, batch: str) -> BatchState:
        return self._state(await self.provider.get_json(f"/messages/batches/{quote(batch, safe='')}"))

    def _state(self, entry: Any) -> BatchState:
        batch = _id(entry)
        if batch is None:
            raise self._strange(entry)
        counts = entry.get("request_counts")
        ended = sum(_number(counts, name) for name in _COUNTS)
        return BatchState(batch, entry.get("processing_status") == "ended", ended)

    async def results(self, state: BatchState, model: str) -> AsyncGenerator[Outcome, None]:
        # Not `results_url`: a key goes where base_url says, and nowhere else.
        path = f"/messages/batches/{quote(state.id, safe='')}/results"
        async with aclosing(self.provider.get_lines(path)) as lines:
            async for line in lines:
                if line.strip():
                    yield self._outcome(line, model)

    def _outcome(self, line: bytes, model: str) -> Outcome:
        try:
            read = _result_line(utf8(line))
        except UNREADABLE:
            raise self._strange(line) from None
        match read.result.type:
            case "succeeded":
                return self._answer(read.custom_id, bytes(read.result.message), None, model)
            case "errored":
                # No status comes with it: the error's own type tells what it is.
                return self._refusal(read.custom_id, 200, bytes(read.result.error), None, model)
            case "expired":
                return Outcome(read.custom_id, error=self._too_late())
            case "canceled":
                return Outcome(read.custom_id, error=self._canceled())
        return Outcome(read.custom_id, error=self._strange(line))


# ------------------------------------------------------------------ what both have


async def _listed(provider: HTTPProvider, path: str, after_name: str) -> AsyncGenerator[dict[str, Any], None]:
    """The batches of an account, the newest first."""
    after = ""
    for _ in range(PAGES):
        page = await provider.get_json(f"{path}?limit={PAGE}{after}")
        entries: Iterable[Any] = page.get("data") or () if isinstance(page, dict) else ()
        last = None
        for entry in entries:
            if isinstance(entry, dict):
                last = _id(entry)
                yield entry
        if last is None or not page.get("has_more"):
            return
        after = f"&{after_name}={quote(last, safe='')}"


def _id(entry: Any) -> str | None:
    found = entry.get("id") if isinstance(entry, dict) else None
    return found if isinstance(found, str) and found else None


def _number(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) else 0


def _instant(text: Any) -> int | None:
    """RFC 3339 as µs UTC."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1_000_000)
    except (TypeError, ValueError):
        return None
