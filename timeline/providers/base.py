"""What a provider is: the request it gets, the items it yields, and nothing about wires or stores.

A provider turns an `LLMRequest` into bytes, and bytes into `Delta`, `Usage` and `Finish`
items. It makes no retry, holds no policy and never sees the store.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Struct

from timeline.errors import ProviderError
from timeline.events import DeltaKind, RateLimit, Source, Usage

__all__ = [
    "UNREADABLE",
    "Besides",
    "Capabilities",
    "Collector",
    "Delta",
    "Finish",
    "FinishReason",
    "ImagePart",
    "Item",
    "LLMProvider",
    "LLMRequest",
    "LLMResponse",
    "Message",
    "ModelInfo",
    "OpaquePart",
    "Part",
    "RateLimit",
    "Source",
    "TextPart",
    "Tool",
    "ToolCall",
    "Usage",
    "UsageReport",
    "collect",
    "parse_arguments",
    "up_to",
    "utf8",
]

UNREADABLE = (msgspec.DecodeError, RecursionError)
"""What msgspec raises of JSON that is broken, of another shape, or nested beyond all reading."""
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "pause", "unknown"]


# ------------------------------------------------------------------ what goes in


class TextPart(Struct, frozen=True, tag="text"):
    """Text inside a message of several parts."""

    text: str


class ImagePart(Struct, frozen=True, tag="image"):
    """An image.

    Args:
        media_type: For example `image/png`.
        data: The file's bytes.
    """

    media_type: str
    data: bytes


class OpaquePart(Struct, frozen=True, tag="opaque"):
    """A block that only its own provider understands, kept to be sent back unchanged.

    Args:
        provider: Whose block it is (`anthropic`); others leave it out of their requests.
        block: The block as received, e.g. thinking with its signature.
    """

    provider: str
    block: dict[str, Any]


Part = TextPart | ImagePart | OpaquePart


class ToolCall(Struct, frozen=True):
    """A model's wish to call a tool.

    Args:
        id: The provider's id, or one made where it gives none.
        name: The tool's name.
        arguments: Its arguments, decoded. What isn't a JSON object stands under the key `_invalid`
            as the text received.
    """

    id: str
    name: str
    arguments: dict[str, Any]


class Message(Struct, frozen=True, omit_defaults=True):
    """One message of the conversation.

    Args:
        role: `system`, `user`, `assistant` or `tool`.
        content: Text, or parts in order.
        tool_calls: On an assistant's message: what it called.
        tool_call_id: On a `tool` message: which call this is the result of.
        name: On a `tool` message: the tool's name (Ollama asks for it).
        is_error: On a `tool` message: the tool failed.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str | tuple[Part, ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    is_error: bool = False

    @property
    def text(self) -> str:
        """The message's text, other parts left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def opaque_text(self) -> str:
        """What only its own provider understands, as JSON: it is sent, and counted, too."""
        if isinstance(self.content, str):
            return ""
        return "".join(
            msgspec.json.encode(part.block).decode() for part in self.content if isinstance(part, OpaquePart)
        )


class Tool(Struct, frozen=True):
    """A tool the model may call.

    Args:
        name: `[a-zA-Z0-9_-]{1,64}`.
        description: For the model.
        parameters: JSON Schema of the arguments (an object).
    """

    name: str
    description: str
    parameters: dict[str, Any]


class LLMRequest(Struct, frozen=True, omit_defaults=True):
    """One request to a model, in no provider's words.

    Args:
        model: The provider's name of the model.
        messages: The conversation; plain dicts of `Message`'s fields are taken too.
        system: System prompt; system messages in `messages` are kept as well.
        temperature: Sampling temperature; None leaves it to the provider.
        max_tokens: Most tokens to generate.
        stop: Sequences that end the generation.
        seed: For repeatable sampling, where the provider has it.
        tools: What the model may call.
        tool_choice: `auto`, `none`, `required`, or a tool's name.
        response_schema: JSON Schema that the answer has to follow.
        reasoning: How much to think: `none`, `low`, `medium`, `high`.
        extra: Further fields for the wire, as the provider's API names them.
    """

    model: str
    messages: tuple[Message, ...]
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    response_schema: dict[str, Any] | None = None
    reasoning: Literal["none", "low", "medium", "high"] | None = None
    extra: dict[str, Any] = {}

    def __post_init__(self) -> None:
        """Take lists and dicts as callers write them; raise `msgspec.ValidationError` on a wrong shape."""
        for name, type_ in (("messages", tuple[Message, ...]), ("tools", tuple[Tool, ...]), ("stop", tuple[str, ...])):
            value = getattr(self, name)
            if name == "stop" and isinstance(value, str):
                value = [value]
            if not isinstance(value, tuple) or any(isinstance(item, dict) for item in value):
                if isinstance(value, list | tuple):
                    # OpenAI's answers say `content: null` beside calls.
                    value = [_without_nulls(item) if isinstance(item, dict) else item for item in value]
                msgspec.structs.force_setattr(self, name, msgspec.convert(value, type_))


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


# ------------------------------------------------------------------ what comes out


class Delta(Struct, frozen=True, gc=False):
    """A piece of the answer.

    Args:
        text: For `text` and `reasoning`: characters to append. For `tool_call`: a piece of the arguments' JSON.
        kind: Which of them.
        index: For `tool_call`: which of parallel calls, from 0.
        id: For `tool_call`: the call's id, on its first delta.
        name: For `tool_call`: the tool's name, on its first delta.
    """

    text: str
    kind: DeltaKind = "text"
    index: int = 0
    id: str | None = None
    name: str | None = None


class Besides(Struct, frozen=True):
    """What an answer used besides its own tokens, and is billed too: by a summary of what came before, by another model.

    Args:
        usage: Its counters; they are in none of the answer's.
        model: Who used them, where it wasn't the model that answered.
    """

    usage: Usage
    model: str | None = None


class UsageReport(Struct, frozen=True):
    """Token counters as the provider told them; a later report replaces an earlier one.

    Args:
        usage: Normalised to disjoint counters.
        raw: The provider's object, verbatim.
        tier: In which tier of service it says it answered, where it has several at several prices.
        besides: What else it will bill.
        begun: Told before the answer, whose tokens are still to be counted: its `output` says nothing of what came since.
    """

    usage: Usage
    raw: dict[str, Any]
    tier: str | None = None
    besides: tuple[Besides, ...] = ()
    begun: bool = False


class Finish(Struct, frozen=True, omit_defaults=True):
    """The answer is whole. Exactly one, and the last item of a stream.

    Args:
        reason: Mapped to one set; `tool_calls` wherever tools were called, but for an answer that was cut
            off (`length`): its last call may be, too.
        raw_reason: The provider's own word.
        model: The model that the provider says answered.
        request_id: The provider's id of the request.
        rate_limits: What the response's headers told.
        opaque: Blocks to be sent back unchanged with the assistant's message.
        provider: Name of the provider, for who sees the stream alone.
        explanation: The provider's sentence on why it ended so, where it has one.
        sources: The pages that the answer names as its sources, in their order.
    """

    reason: FinishReason
    raw_reason: str | None = None
    model: str | None = None
    request_id: str | None = None
    rate_limits: tuple[RateLimit, ...] = ()
    opaque: tuple[OpaquePart, ...] = ()
    provider: str | None = None
    explanation: str | None = None
    sources: tuple[Source, ...] = ()


Item = Delta | UsageReport | Finish


class LLMResponse(Struct, frozen=True):
    """A whole answer.

    Args:
        content: The answer's text.
        reasoning: The reasoning's text, where the provider shows it.
        tool_calls: What the model wants called.
        finish_reason: See `FinishReason`.
        usage: Counters; all zero where the provider told none (then `usage_reported` is False).
        model: The model that answered.
        provider: Name of the provider.
        request_id: The provider's id of the request.
        duration_seconds: From the request to the end of the answer.
        tier, besides: See `UsageReport`.
        explanation, sources: See `Finish`.
    """

    content: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    model: str
    provider: str
    request_id: str | None
    duration_seconds: float
    usage_reported: bool = True
    raw_usage: dict[str, Any] | None = None
    raw_finish_reason: str | None = None
    rate_limits: tuple[RateLimit, ...] = ()
    opaque: tuple[OpaquePart, ...] = ()
    tier: str | None = None
    besides: tuple[Besides, ...] = ()
    explanation: str | None = None
    sources: tuple[Source, ...] = ()

    @property
    def tokens_input(self) -> int:
        """All prompt tokens, cached or not."""
        return self.usage.total_input

    @property
    def tokens_output(self) -> int:
        """All generated tokens, reasoning included."""
        return self.usage.output


class Capabilities(Struct, frozen=True):
    """What a model or provider can do."""

    streaming: bool = True
    tools: bool = False
    schema: bool = False
    images: bool = False
    reasoning: bool = False


class ModelInfo(Struct, frozen=True, omit_defaults=True):
    """A model a provider offers.

    Args:
        id: The name to ask for.
        provider: Name of the provider.
        context: Most tokens of prompt and answer together.
        max_output: Most tokens of an answer.
        local: Whether it runs on this machine (and so is free).
        digest: What the name points to now, where the provider tells.
        capabilities: What it can do, where known.
    """

    id: str
    provider: str
    context: int | None = None
    max_output: int | None = None
    local: bool = False
    digest: str | None = None
    capabilities: Capabilities | None = None


# ------------------------------------------------------------------ the contract


class LLMProvider(ABC):
    """One service or local engine that answers requests.

    A subclass raises only `timeline.errors` (`ProviderError` and below, `ModelUnavailable`);
    it stops the generation when its stream is closed or its task cancelled.
    """

    name: str
    capabilities: ClassVar[Capabilities] = Capabilities()
    reports_usage: ClassVar[bool] = True
    """False for a service that never tells how many tokens it counted: then they are estimated."""
    cuts_prompts: ClassVar[bool] = False
    """True for a service that may leave out a part of a prompt that is too long, and not say so."""
    key_mark: str | None = None
    """Tells one key from another and nothing about either; None where there is no key."""

    @property
    def local(self) -> bool:
        """Whether answers are computed on this machine, and so are free."""
        return False

    def is_local(self, model: str) -> bool:  # noqa: ARG002 - most serve all their models alike
        """Whether this model's answers are computed on this machine; a local server can pass some on."""
        return self.local

    def is_small(self, model: str) -> bool:  # noqa: ARG002 - most know nothing of their models' sizes
        """Whether a model is so small that it has to be asked in few words."""
        return False

    def model_digest(self, model: str) -> str | None:  # noqa: ARG002 - most have names that stay what they are
        """What a model's name stands for now, where that can change and is known without asking."""
        return None

    @abstractmethod
    async def make_request(self, request: LLMRequest) -> LLMResponse:
        """Ask without streaming (the provider's batch form of the endpoint).

        Raises:
            ProviderError: The attempt failed.
        """

    @abstractmethod
    def stream_request(self, request: LLMRequest) -> AsyncIterator[Item]:
        """Ask, and yield items as they arrive: deltas and usage reports, then exactly one `Finish`.

        Raises:
            ProviderError: The attempt failed, before or between items.
        """

    @abstractmethod
    async def get_available_models(self) -> list[ModelInfo]:
        """The models that can be asked for now.

        Raises:
            ProviderError: The list could not be had.
        """

    async def warm_up(self, model: str | None = None) -> None:  # noqa: B027 - most have nothing to warm
        """Open the connection or load the model ahead of the first request.

        Args:
            model: Which will be asked for, where that matters.
        """

    async def aclose(self) -> None:  # noqa: B027 - some hold nothing
        """Give back connections and memory."""


def parse_arguments(text: str) -> dict[str, Any]:
    """A tool call's arguments from their JSON text; an empty text means none."""
    if not text.strip():
        return {}
    try:
        value = msgspec.json.decode(text)
    except UNREADABLE:
        return {"_invalid": text}
    return value if isinstance(value, dict) else {"_invalid": text}


def utf8(payload: bytes) -> bytes:
    """The payload with U+FFFD for what is no UTF-8: servers cut characters in two, and the rest of an answer is worth
    having. So do browsers read a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream).
    """
    return payload.decode("utf-8", "replace").encode()


def up_to(failure: ProviderError, items: Iterable[Item]) -> Iterator[Item]:
    """What came together with a failure, then the failure.

    Raises:
        ProviderError: The failure.
    """
    yield from items
    raise failure


class Collector:
    """Folds the items of one answer into its `LLMResponse`; the clock starts when it is made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._texts: dict[str, list[str]] = {"text": [], "reasoning": []}
        self._calls: dict[int, tuple[str, str, list[str]]] = {}
        self._report: UsageReport | None = None
        self._finish = Finish("unknown")

    def add(self, item: Item) -> None:
        """Take the next item."""
        match item:
            case Delta(kind="tool_call"):
                call_id, name, pieces = self._calls.setdefault(item.index, (item.id or "", item.name or "", []))
                self._calls[item.index] = (call_id or item.id or "", name or item.name or "", pieces)
                pieces.append(item.text)
            case Delta():
                self._texts[item.kind].append(item.text)
            case UsageReport():
                self._report = item
            case Finish():
                self._finish = item

    def response(self, *, provider: str = "", model: str = "") -> LLMResponse:
        """What the items said; `model` is used where the provider didn't say who answered."""
        report, finish = self._report, self._finish
        return LLMResponse(
            content="".join(self._texts["text"]),
            reasoning="".join(self._texts["reasoning"]),
            tool_calls=tuple(
                ToolCall(call_id or f"call_{index}", name, parse_arguments("".join(pieces)))
                for index, (call_id, name, pieces) in sorted(self._calls.items())
            ),
            finish_reason=finish.reason,
            usage=report.usage if report else Usage(),
            model=finish.model or model,
            provider=provider or finish.provider or "",
            request_id=finish.request_id,
            duration_seconds=time.perf_counter() - self._started,
            usage_reported=report is not None,
            raw_usage=report.raw if report else None,
            raw_finish_reason=finish.raw_reason,
            rate_limits=finish.rate_limits,
            opaque=finish.opaque,
            tier=report.tier if report else None,
            besides=report.besides if report else (),
            explanation=finish.explanation,
            sources=finish.sources,
        )


async def collect(stream: AsyncIterator[Item], *, provider: str = "", model: str = "") -> LLMResponse:
    """Fold a stream into the response that the batch form would have given.

    Args:
        stream: What `LLMProvider.stream_request` returned; closed at the end.
        provider: Fills `LLMResponse.provider` where the `Finish` doesn't name it.
        model: What was asked for, used where the provider doesn't say who answered.

    Raises:
        ProviderError: From the stream.
    """
    collector = Collector()
    async with aclosing(stream) as items:  # type: ignore[type-var]
        async for item in items:
            collector.add(item)
    return collector.response(provider=provider, model=model)
