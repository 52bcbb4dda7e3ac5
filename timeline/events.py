"""The event catalogue: what may stand in the log, how it is written as JSON, and how old forms are read.

Also the one seam through which time, randomness and ids come in (`Clock`), because an
event's id and instant are part of the event.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Struct

from timeline.errors import StoreDamaged, StoreTooNew

__all__ = [
    "BATCH_KEY",
    "CATALOGUE",
    "UPCASTERS",
    "Attachment",
    "BatchEnded",
    "BatchStarted",
    "BatchSubmitted",
    "BudgetAlerted",
    "BudgetExceeded",
    "CallCacheHit",
    "CallFailed",
    "CallInterrupted",
    "CallRerouted",
    "CallRetryScheduled",
    "ChunkReceived",
    "Clock",
    "Cost",
    "DeltaKind",
    "ErrorInfo",
    "Event",
    "EventData",
    "InterruptReason",
    "MessageRef",
    "NewEvent",
    "Owner",
    "RateLimit",
    "RateLimitWaited",
    "RequestSent",
    "ResponseAnnotated",
    "ResponseCompleted",
    "SessionForked",
    "SessionRedacted",
    "SessionRenamed",
    "SessionStarted",
    "Source",
    "StepCompleted",
    "StepFailed",
    "StepKind",
    "StepSkipped",
    "StepStarted",
    "ToolCalled",
    "ToolFailed",
    "ToolReturned",
    "TurnCompleted",
    "TurnFailed",
    "TurnInterrupted",
    "TurnStarted",
    "Upcaster",
    "Usage",
    "decode",
    "encode",
]

DeltaKind = Literal["text", "reasoning", "tool_call"]
StepKind = Literal["route", "tool", "format", "answer"]
InterruptReason = Literal["sigint", "closed", "abandoned"]
UsageSource = Literal["provider", "estimated", "none"]


# ------------------------------------------------------------------ values inside events


BATCH_KEY = "batch"
"""Instead of a key's mark: requests of a provider's batch count among no key's, and tell nothing of how a model fares."""


class Usage(Struct, frozen=True, omit_defaults=True):
    """Token counters of one attempt; all disjoint but `reasoning`, a marked subset of `output`.

    Args:
        input: Prompt tokens that came from no cache.
        cache_read: Prompt tokens read from the provider's cache.
        cache_write: Prompt tokens written to its cache (default lifetime).
        cache_write_1h: Prompt tokens written to its one-hour cache.
        output: Generated tokens, reasoning included.
        reasoning: Of `output`, those spent on reasoning.
    """

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0

    @property
    def total_input(self) -> int:
        """All prompt tokens, cached or not."""
        return self.input + self.cache_read + self.cache_write + self.cache_write_1h


class Cost(Struct, frozen=True, omit_defaults=True):
    """What an attempt cost, and how that is known.

    Args:
        state: `priced`; `free` (runs on this machine); `unpriced` (no price is known).
        nano_usd: Nano-US-dollars (10⁻⁹ USD); where it is `unpriced`, of the part whose price is known. None where nothing is.
        table: Name of the price table, its version, and the entry that matched.
    """

    state: Literal["priced", "free", "unpriced"]
    nano_usd: int | None = None
    table: str | None = None
    table_version: str | None = None
    entry: str | None = None


class Source(Struct, frozen=True, omit_defaults=True):
    """A page that an answer names as its source.

    Args:
        url: Its address, as the provider wrote it.
        title: Its title, where the provider tells it.
    """

    url: str
    title: str | None = None


class RateLimit(Struct, frozen=True, omit_defaults=True):
    """One limit as a provider's headers told it.

    Args:
        name: What is counted, in the provider's word: `requests`, `tokens`, `input-tokens`, …
        limit: The most that is allowed in the window.
        remaining: What is left of it.
        reset_at: When it is full again, µs UTC.
    """

    name: str
    limit: int | None = None
    remaining: int | None = None
    reset_at: int | None = None


class ErrorInfo(Struct, frozen=True, omit_defaults=True):
    """A failure as the log keeps it: the fields of `timeline.errors.ProviderError`.

    Args:
        kind: The error's place in the tree, e.g. `rate_limited`.
        message: One sentence for people.
        status: HTTP status.
        code: The provider's own code.
        retryable: Whether the same request may succeed later.
        retry_after: Seconds the provider asked to wait.
        request_id: The provider's id of the request.
    """

    kind: str
    message: str
    status: int | None = None
    code: str | None = None
    retryable: bool = False
    retry_after: float | None = None
    request_id: str | None = None


class Owner(Struct, frozen=True):
    """The process that is responsible for ending what it began.

    Args:
        host: Host name and, on Linux, the PID namespace and the boot.
        pid: Process id there.
        started: When that process started, seconds: on Linux since the boot, by a clock that nobody sets,
            elsewhere since the epoch. Tells a reused pid apart.
    """

    host: str
    pid: int
    started: float


class MessageRef(Struct, frozen=True, omit_defaults=True):
    """One message of a request, without its body.

    Args:
        role: `system`, `user`, `assistant` or `tool`.
        ref: Digest of the body in `contents`; None where the body isn't recorded (`--private`).
        call: For an assistant's message that a recorded call streamed: that call's id. Its
            text stands in the call's chunk events and is not stored twice.
        attachments: Digests of files that are part of the message, in order.
    """

    role: str
    ref: str | None = None
    call: str | None = None
    attachments: tuple[str, ...] = ()


class Attachment(Struct, frozen=True, omit_defaults=True):
    """A file that came with a prompt.

    Args:
        name: File name as given, without its directory.
        media_type: For example `text/plain` or `image/png`.
        size: Bytes.
        ref: Digest of the body in `contents`; None where it isn't recorded.
    """

    name: str
    media_type: str
    size: int
    ref: str | None = None


class FailedAttempt(Struct, frozen=True, omit_defaults=True):
    """What stays of a `call.failed` whose body, with the provider's words, was forgotten: its totals."""

    call_id: str
    attempt: int
    kind: str
    duration_us: int
    usage: Usage | None = None
    usage_source: UsageSource = "none"
    cost: Cost | None = None


# ------------------------------------------------------------------ the catalogue


class EventData(Struct, frozen=True, omit_defaults=True):
    """Base of every event body. `type` and `v` stand in columns of their own, not in the JSON."""

    type: ClassVar[str]
    v: ClassVar[int] = 1


class SessionStarted(EventData, frozen=True):
    """A timeline begins. `title` comes from the first prompt unless the session is private."""

    type: ClassVar[str] = "session.started"
    client_version: str
    owner: Owner
    title: str | None = None


class SessionRenamed(EventData, frozen=True):
    """People call the session by another name from now on."""

    type: ClassVar[str] = "session.renamed"
    title: str


class SessionForked(EventData, frozen=True):
    """The session continues another one up to its `from_version`; events are referenced, not copied."""

    type: ClassVar[str] = "session.forked"
    from_session: str
    from_version: int


class SessionRedacted(EventData, frozen=True):
    """Bodies of the session were forgotten; `events` of its events became tombstones, `failed` stays of some."""

    type: ClassVar[str] = "session.redacted"
    events: int
    failed: tuple[FailedAttempt, ...] = ()


class BatchStarted(EventData, frozen=True):
    """A process begins to ask the prompts of a batch, or goes on with them; each is a turn of its own.

    Args:
        batch: Digest of what the batch is known by: its file's path, or the name it was given.
        owner: Who asks. One process at a time.
        prompts: How many there are.
    """

    type: ClassVar[str] = "batch.started"
    batch: str
    owner: Owner
    prompts: int


class BatchEnded(EventData, frozen=True):
    """That process asks no more of them; `answered` and `failed` count since its `batch.started`.

    Args:
        answered: Prompts that have an answer now and had none.
        failed: Prompts that failed.
        reason: Why it stopped before all were asked; None where it did not.
    """

    type: ClassVar[str] = "batch.ended"
    answered: int
    failed: int
    reason: Literal["sigint", "closed", "failed"] | None = None


class BatchSubmitted(EventData, frozen=True):
    """Requests went to a provider's batch API together; it works on them whether or not anybody waits.

    Args:
        submission: Our own name for it, which its requests' `owner` bears.
        provider: Name as configured.
        model: Name as asked for.
        provider_batch: The provider's id of it.
        requests: How many.
    """

    type: ClassVar[str] = "batch.submitted"
    submission: str
    provider: str
    model: str
    provider_batch: str
    requests: int


class TurnStarted(EventData, frozen=True):
    """The user asked. `prompt` is a digest in `contents`, None where bodies aren't recorded.

    `item` is the digest of a batch's line; such a turn knows nothing of the session's other turns.
    """

    type: ClassVar[str] = "turn.started"
    mode: Literal["pipeline", "direct"]
    owner: Owner
    prompt: str | None = None
    system: str | None = None
    attachments: tuple[Attachment, ...] = ()
    private: bool = False
    item: str | None = None


class TurnCompleted(EventData, frozen=True):
    """The turn has its answer: the text of `answer_call`."""

    type: ClassVar[str] = "turn.completed"
    answer_call: str
    duration_us: int


class TurnFailed(EventData, frozen=True):
    """The turn ended without its answer."""

    type: ClassVar[str] = "turn.failed"
    error: ErrorInfo
    duration_us: int


class TurnInterrupted(EventData, frozen=True):
    """The turn was stopped: by the user, by a closed output, or because its process died."""

    type: ClassVar[str] = "turn.interrupted"
    reason: InterruptReason
    duration_us: int | None = None


class StepStarted(EventData, frozen=True):
    """A step of the turn's cognition begins."""

    type: ClassVar[str] = "step.started"
    kind: StepKind
    index: int = 0


class StepCompleted(EventData, frozen=True):
    """A step ended well; a route step says what it decided."""

    type: ClassVar[str] = "step.completed"
    duration_us: int
    decision: dict[str, Any] | None = None
    reason: str | None = None
    degraded: bool = False


class StepSkipped(EventData, frozen=True):
    """A step was not needed."""

    type: ClassVar[str] = "step.skipped"
    kind: StepKind
    reason: str
    index: int = 0


class StepFailed(EventData, frozen=True):
    """A step ended without its result."""

    type: ClassVar[str] = "step.failed"
    error: ErrorInfo
    duration_us: int | None = None


class RequestSent(EventData, frozen=True):
    """An attempt is about to open its connection; committed before it does.

    Args:
        attempt: 1-based number within the call.
        provider: Name as configured.
        model: Name as asked for.
        why: Why this model, in words.
        messages: What was sent, as references.
        params: Sampling parameters as asked for, e.g. `temperature`, `max_tokens`.
        tools: Digest of the tool schemas in `contents`.
        stream: Whether a streamed answer was asked for.
        estimated_input_tokens: Our estimate, made before the provider counted.
        reserved_nano_usd: What the attempt may cost at most, nano-US-dollars.
        request_digest: Digest of provider, model, messages, parameters and tools together; equal for equal requests.
        local: Whether the model runs on this machine.
        reserved_tokens: How many tokens the attempt may use at most, prompt and answer.
        key: Tells the provider's keys apart: 16 bits of a digest, from which nothing of a key can be told. `BATCH_KEY`
            where it went to the provider's batch API.
    """

    type: ClassVar[str] = "request.sent"
    attempt: int
    provider: str
    model: str
    why: str
    messages: tuple[MessageRef, ...]
    owner: Owner
    params: dict[str, Any] = {}
    tools: str | None = None
    stream: bool = True
    estimated_input_tokens: int = 0
    reserved_nano_usd: int = 0
    request_digest: str | None = None
    local: bool = False
    reserved_tokens: int = 0
    key: str | None = None


class ChunkReceived(EventData, frozen=True):
    """All deltas of one flush window, in columns.

    Args:
        first: Index, within the attempt, of the window's first delta.
        texts: Each delta's text; for `tool_call` a JSON object of `index`, `id`, `name` and a piece of `arguments`.
        gaps_us: µs since the previous delta, 0 for what was read together; the attempt's first delta counts from the request.
        kind: What the deltas are; a change of kind starts a new event.
        attempt: Which attempt of the call.
    """

    type: ClassVar[str] = "chunk.received"
    first: int
    texts: tuple[str, ...]
    gaps_us: tuple[int, ...]
    kind: DeltaKind = "text"
    attempt: int = 1


class ResponseAnnotated(EventData, frozen=True):
    """What a provider told of an answer beside its text; precedes its end, which stays where words are forgotten.

    Args:
        sources: The pages that the answer names as its sources.
        explanation: The provider's sentence on why it ended so, where it has one.
        attempt: Which attempt of the call.
    """

    type: ClassVar[str] = "response.annotated"
    sources: tuple[Source, ...] = ()
    explanation: str | None = None
    attempt: int = 1


class ResponseCompleted(EventData, frozen=True):
    """An attempt ended with a whole answer.

    Args:
        finish_reason: One of `timeline.providers.base.FinishReason`.
        usage: Token counters; `usage_source` says whose.
        cost: What it cost and how that is known.
        duration_us: From the request to the end of the answer, µs.
        time_to_first_token_us: From the request to the first delta, µs.
        raw_finish_reason: The provider's own word.
        raw_usage: The provider's usage object, verbatim.
        model: The model that the provider says answered.
        request_id: The provider's id of the request.
        text_digest: BLAKE2b-128 of the answer's text (UTF-8), hex.
        rate_limits: What the headers told.
        model_digest: What the model's name stood for, where that can change and is known.
        cut_from: About how many tokens the prompt had, where the provider counted far fewer: it left some out unsaid.
        service_tier: In which tier of service the provider says it answered, where it has several.
    """

    type: ClassVar[str] = "response.completed"
    attempt: int
    finish_reason: str
    usage: Usage
    usage_source: UsageSource
    cost: Cost
    duration_us: int
    time_to_first_token_us: int | None = None
    raw_finish_reason: str | None = None
    raw_usage: dict[str, Any] | None = None
    model: str | None = None
    request_id: str | None = None
    text_digest: str | None = None
    rate_limits: tuple[RateLimit, ...] = ()
    cut_from: int | None = None
    model_digest: str | None = None
    service_tier: str | None = None


class CallFailed(EventData, frozen=True):
    """An attempt ended with an error. `partial`: some text had arrived, and stands in the chunks."""

    type: ClassVar[str] = "call.failed"
    attempt: int
    error: ErrorInfo
    duration_us: int
    partial: bool = False
    usage: Usage | None = None
    usage_source: UsageSource = "none"
    cost: Cost | None = None
    rate_limits: tuple[RateLimit, ...] = ()


class CallInterrupted(EventData, frozen=True):
    """An attempt was stopped before its end; its usage so far is an estimate."""

    type: ClassVar[str] = "call.interrupted"
    attempt: int
    reason: InterruptReason
    usage: Usage
    usage_source: UsageSource = "estimated"
    cost: Cost | None = None
    duration_us: int | None = None


class CallRetryScheduled(EventData, frozen=True):
    """The same candidate will be tried again after `delay_us`."""

    type: ClassVar[str] = "call.retry_scheduled"
    attempt: int
    delay_us: int
    reason: str


class CallRerouted(EventData, frozen=True):
    """The call goes on with another candidate (`provider:model`)."""

    type: ClassVar[str] = "call.rerouted"
    source: str
    target: str
    reason: str


class CallCacheHit(EventData, frozen=True):
    """The call was answered from the recorded deltas of `source_call`.

    Args:
        source_call: The call whose chunks are the answer; it may be of another session.
        saved_nano_usd: What it had cost, nano-US-dollars; None where that is unknown.
        source_attempt: Which of its attempts.
        provider, model: Who had answered.
        finish_reason: How the answer had ended.
        why: Why this model, in words.
    """

    type: ClassVar[str] = "call.cache_hit"
    source_call: str
    saved_nano_usd: int | None = None
    source_attempt: int = 1
    provider: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    why: str | None = None


class RateLimitWaited(EventData, frozen=True):
    """The call waits for a limit before it is sent; committed when the wait begins, so that others queue behind it.

    Args:
        provider, model: Whose limit.
        limit: Which one, e.g. `requests`.
        waited_us: How long, µs from `recorded_at`.
        key: As of `request.sent`.
        tokens, input_tokens: What the request may use at most, and of it the prompt.
        owner: The process that waits; its place lapses with it.
    """

    type: ClassVar[str] = "rate_limit.waited"
    provider: str
    model: str
    limit: str
    waited_us: int
    key: str | None = None
    tokens: int = 0
    input_tokens: int = 0
    owner: Owner | None = None


class BudgetAlerted(EventData, frozen=True):
    """A budget passed a threshold. Amounts in nano-US-dollars or tokens, as the budget counts."""

    type: ClassVar[str] = "budget.alerted"
    budget: str
    window: str
    spent: int
    reserved: int
    limit: int
    threshold_percent: int
    unit: Literal["nano_usd", "tokens"] = "nano_usd"


class BudgetExceeded(EventData, frozen=True):
    """A request would have passed a budget: it was refused, or went to another model, or was let pass with a warning.

    Args:
        budget: The budget's name.
        window: Which day, month, session … of it.
        spent, reserved: What ended attempts have cost, and what open ones may cost.
        limit: Of the budget.
        requested: What the request would have reserved; None where its price is unknown.
        unit: What the numbers count.
        action: What was done.
        ends_at: When the window ends, µs UTC; None where it doesn't.
    """

    type: ClassVar[str] = "budget.exceeded"
    budget: str
    window: str
    spent: int
    reserved: int
    limit: int
    requested: int | None = None
    unit: Literal["nano_usd", "tokens"] = "nano_usd"
    action: Literal["block", "warn", "fallback"] = "block"
    ends_at: int | None = None


class ToolCalled(EventData, frozen=True):
    """A tool was started; `arguments` is a digest in `contents`."""

    type: ClassVar[str] = "tool.called"
    name: str
    tool_call_id: str
    arguments: str | None = None


class ToolReturned(EventData, frozen=True):
    """A tool gave its result; `result` is a digest in `contents`."""

    type: ClassVar[str] = "tool.returned"
    name: str
    tool_call_id: str
    duration_us: int
    result: str | None = None


class ToolFailed(EventData, frozen=True):
    """A tool gave an error instead of a result."""

    type: ClassVar[str] = "tool.failed"
    name: str
    tool_call_id: str
    duration_us: int
    error: ErrorInfo


CATALOGUE: dict[str, type[EventData]] = {cls.type: cls for cls in EventData.__subclasses__()}
"""Every event type by its name."""

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

UPCASTERS: dict[tuple[str, int], Upcaster] = {}
"""From a retired (type, version) to a function that turns its body into the next version's."""


# ------------------------------------------------------------------ envelopes


class NewEvent(Struct, frozen=True):
    """A fact to be appended; the store gives it its position, version and digest.

    Args:
        session_id: The stream it belongs to.
        data: The fact.
        turn_id, step_id, call_id: What it is part of.
        event_id: UUIDv7; the same id with the same body is appended once.
        recorded_at: µs UTC.
    """

    session_id: str
    data: EventData
    event_id: str
    recorded_at: int
    turn_id: str | None = None
    step_id: str | None = None
    call_id: str | None = None


class Event(Struct, frozen=True):
    """A fact of the log. `data` is None for one that was forgotten (its tombstone keeps all else)."""

    position: int
    event_id: str
    session_id: str
    version: int
    type: str
    v: int
    recorded_at: int
    turn_id: str | None
    step_id: str | None
    call_id: str | None
    data: EventData | None
    digest: str


_encoder = msgspec.json.Encoder()


def encode(data: EventData) -> str:
    """The body as the JSON text that stands in the file."""
    return _encoder.encode(data).decode()


def decode(
    type_: str,
    v: int,
    text: str,
    *,
    catalogue: Mapping[str, type[EventData]] = CATALOGUE,
    upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS,
) -> EventData:
    """Read a body of any released version.

    Args:
        type_: Name of the event's type.
        v: The version it was written in.
        text: Its JSON.
        catalogue: The types of this release.
        upcasters: What leads retired versions to them.

    Raises:
        StoreTooNew: The type or version comes from a newer release.
        StoreDamaged: The text isn't a body of that type.
    """
    cls = catalogue.get(type_)
    if cls is None or v > cls.v:
        msg = f"event type {type_!r} version {v} is from a newer release: update timeline to read it"
        raise StoreTooNew(msg)
    try:
        if v == cls.v:
            return msgspec.json.decode(text, type=cls)
        body = msgspec.json.decode(text, type=dict[str, Any])
        for old in range(v, cls.v):
            body = upcasters[type_, old](body)
        return msgspec.convert(body, cls)
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as exc:
        # An upcaster trusts its body to be what that version wrote; its lookups fail where it isn't.
        msg = f"the body of a {type_!r} event can't be read ({exc}): run 'timeline store verify', and restore a backup"
        raise StoreDamaged(msg) from exc


# ------------------------------------------------------------------ time and ids


class Clock:
    """Where time, randomness and ids come from; tests hand in one of their own."""

    def now(self) -> int:
        """µs since the epoch, UTC."""
        return time.time_ns() // 1000

    monotonic_ns: Callable[[], int] = staticmethod(time.perf_counter_ns)
    """Nanoseconds on a clock that never goes back."""

    def monotonic(self) -> float:
        """The same in seconds."""
        return self.monotonic_ns() / 1e9

    def random_bits(self, bits: int) -> int:
        """That many random bits."""
        return secrets.randbits(bits)

    def uuid7(self) -> str:
        """A UUIDv7 (RFC 9562, section 5.7); 12 sub-millisecond bits keep one process's ids in order."""
        micros = self.now()
        millis, rest = divmod(micros, 1000)
        value = millis << 80 | 0x7 << 76 | (rest * 4096 // 1000) << 64 | 0b10 << 62 | self.random_bits(62)
        return str(uuid.UUID(int=value))

    def short_id(self) -> str:
        """60 random bits as 12 lower-case characters: the id of a turn, step or call."""
        alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
        bits = self.random_bits(60)
        return "".join(alphabet[bits >> shift & 31] for shift in range(55, -1, -5))
