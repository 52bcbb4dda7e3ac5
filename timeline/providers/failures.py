"""How a provider says no: error bodies of every shape, mapped to the error tree and one sentence for people.

Pure: takes a status, headers and a body, gives back an error. Sources: the API references of OpenAI,
Anthropic, Groq, Ollama and OpenRouter on errors, and what users of these, of Azure, Gemini, xAI,
DeepSeek, Mistral, Together, Fireworks, Cerebras, Moonshot, DashScope, Zhipu, MiniMax, SiliconFlow and Volcengine report
that they say.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

import msgspec
from msgspec import Struct

from timeline.errors import (
    AuthenticationFailed,
    BadResponse,
    BrokenStream,
    ContentRefused,
    ContextTooLong,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    ProviderError,
    ProviderTimeout,
    QuotaExhausted,
    RateLimited,
    ServerError,
)
from timeline.events import RateLimit
from timeline.providers.address import blotted
from timeline.providers.base import UNREADABLE, utf8
from timeline.providers.limits import Headers, rate_limits, request_id, retry_after, seconds, whole_number

__all__ = ["Complaint", "Head", "Speaker", "error_from", "spell"]

# ------------------------------------------------------------------ what the body says


class Complaint(Struct, frozen=True):
    """What a provider's error object says.

    Args:
        message: Its text; empty where there is none.
        words: Its `type`, `code` and the like, verbatim, most telling first.
        status: The status it states itself, as errors within a stream do.
        request_id: The request's id, where it stands in the body.
        wait: Seconds to wait before it is asked again, where they stand beside the message.
        headers: What would be the response's headers, where it tells them in the body.
    """

    message: str = ""
    words: tuple[str, ...] = ()
    status: int | None = None
    request_id: str | None = None
    wait: float | None = None
    headers: Headers = {}

    @classmethod
    def read(cls, body: bytes) -> Complaint:
        """From the body of an error response: JSON of any shape, an event of a stream with it, text or HTML."""
        try:
            value = msgspec.json.decode(utf8(body))
        except UNREADABLE:
            if found := _EVENT.search(body, 0, 65536):
                return cls.read(found[1])
            text = body[:65536].decode("utf-8", "replace")
            return cls(_plain(text))
        return cls.of(value)

    @classmethod
    def of(cls, value: Any) -> Complaint:
        """From a decoded value: `{error: {…}}`, `{error: "…"}`, `{detail: …}`, `{message: …}`, a list of these."""
        while isinstance(value, list) and value:
            value = value[0]
        if not isinstance(value, dict):
            return cls(value if isinstance(value, str) else "")
        inner = value.get("error", value)
        outer_id = value.get("request_id")
        if isinstance(inner, str) and inner.lstrip()[:1] == "{":
            # A gateway passes on what it was told as a text.
            return cls.read(inner.encode())
        if isinstance(base := value.get("base_resp"), dict) and "error" not in value:
            # MiniMax's, with a status of 200.
            inner = {"message": base.get("status_msg"), "status": _MINIMAX.get(str(base.get("status_code")))}
        elif not isinstance(inner, dict):
            inner = {**value, "message": inner if isinstance(inner, str) else value.get("message")}
        message = next((m for key in _SAYING if (m := _text(inner.get(key)))), "")
        code, kind = inner.get("code"), inner.get("type")
        numbers = (inner.get("status_code"), code, inner.get("status"), inner.get("http_status"))
        words = tuple(word for word in (code, kind, inner.get("status")) if isinstance(word, str) and word)
        metadata, details, headers = inner.get("metadata"), inner.get("details"), {}
        if isinstance(metadata, dict):
            # OpenRouter's own words for what its upstream said are always the same.
            if isinstance(metadata.get("raw"), str):
                raw = cls.read(metadata["raw"].encode())
                message, words = ": ".join(filter(None, (message, raw.message))), (*words, *raw.words)
            if isinstance(metadata.get("headers"), dict):
                headers = {name.lower(): str(each) for name, each in metadata["headers"].items()}
        # Google's RetryInfo.
        waits = [
            each.get("retryDelay") for each in (details if isinstance(details, list) else ()) if isinstance(each, dict)
        ]
        return cls(
            message,
            tuple(word for word in words if word != "error"),
            next((n for raw in numbers if (n := _status(raw))), None),
            outer_id if isinstance(outer_id, str) else None,
            next((seconds(each) for each in waits if isinstance(each, str)), None),
            headers,
        )


_MINIMAX = {
    "1001": 504,
    "1002": 429,
    "1004": 401,
    "1008": 402,
    "1026": 451,
    "1027": 451,
    "1039": 429,
    "2013": 400,
    "2049": 401,
}
"""Which status MiniMax's codes stand for. Source: its API reference, "Error codes"."""

_EVENT = re.compile(rb"^data:[ \t]*(\{.*\})\s*$", re.MULTILINE)


def _status(raw: Any) -> int | None:
    number = whole_number(raw) if isinstance(raw, str) else raw
    return number if isinstance(number, int) and not isinstance(number, bool) and 400 <= number <= 599 else None  # noqa: PLR2004


_SAYING = ("message", "msg", "detail", "error", "errors", "title")
"""Under which names an error's text may stand."""


def _text(value: Any) -> str:
    """FastAPI nests its `detail` in lists and objects."""
    if isinstance(value, list):
        return "; ".join(filter(None, map(_text, value)))
    if isinstance(value, dict):
        return next((m for key in ("message", "msg", "detail", "error") if (m := _text(value.get(key)))), "")
    return value if isinstance(value, str) else ""


def _plain(text: str) -> str:
    """Of an HTML page, its title; of other text, the text."""
    return (_title(text) or "an HTML page") if _is_page(text) else text.strip()


def _is_page(text: str) -> bool:
    return "<html" in text[:1000].lower() or text[:15].lower().startswith("<!doctype")


def _title(page: str) -> str:
    """Of an HTML page; empty where it has none."""
    title = re.search(r"<title[^>]*>(.*?)</title>", page, re.IGNORECASE | re.DOTALL)
    return " ".join(title[1].split()) if title else ""


# ------------------------------------------------------------------ which error it is

_CONTEXT = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context length|context window|context size"
    r"|prompt (?:is )?too long|input is too long|too many (?:input )?tokens|reduce the length of|model_context_window"
    r"|exceed(?:s|ed)? (?:the )?(?:max(?:imum)? )?context|exceed context limit|maximum prompt length"
    r"|input token count .{1,40}exceeds|`inputs` tokens|range of input length|exceeds max length|model token limit"
    r"|tokens_limit_reached|contextwindowexceeded|`inputs` must have less than|must be less than max_seq_len",
    re.IGNORECASE,
)
_QUOTA = re.compile(
    r"insufficient_quota|credit_balance|spend_limit|usage_limit_exceeded|billing_|insufficient_credits|budget_exceeded"
    # Cerebras calls its limits per minute quotas.
    r"|(?<!token_)(?<!request_)quota_exceeded|exceeded_current_quota|blocked_api_access|arrearage"
    r"|allocationquota\.free|accountoverdue|setlimitexceeded|credits are depleted|not enough balance|余额不足"
    r"|balance is insufficient|daily free allocation"
    r"|credit balance is too low|exceeded your current quota|api usage limits|insufficient credits|insufficient balance"
    r"|spend(?:ing)? limit|available credits|\bany credits|call volume quota|reached your \w+ usage limit",
    re.IGNORECASE,
)
_CONTENT = re.compile(
    r"content_filter|content_policy|moderation_blocked|responsibleaipolicy|content management policy"
    r"|flagged as potentially violating|requires moderation|invalid_prompt|content filter|content exists risk"
    r"|data_inspection_failed|inappropriate content|violates usage guidelines|contentpolicyviolation|sensitivecontent"
    r"|敏感内容",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"model_not_found|model_decommissioned|model_terms|model .{1,200} (?:not found|does not exist)|unknown model|invalid model id"
    r"|not a valid model|model not exist|model does not exist|\binvalid_model\b|model_not_available|model_not_supported"
    r"|no such model|model identifier is invalid|invalid model name|模型不存在",
    re.IGNORECASE | re.DOTALL,
)
_BUSY = re.compile(
    r"overloaded|insufficient_system_resource|over[_ ]capacity|capacity_exceeded|server busy|slow_down|engine is currently",
    re.IGNORECASE,
)
_KEY = re.compile(r"(?:incorrect|invalid) api key|api key (?:is )?(?:not valid|invalid)|api_key_invalid", re.IGNORECASE)
_NOT_ALLOWED = re.compile(
    r"location is not supported|organization_restricted|organization has been disabled", re.IGNORECASE
)

_STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "too_many_requests": 429,
    "api_error": 500,
    "server_error": 500,
    "internal_server_error": 500,
    "overloaded_error": 529,
    "timeout_error": 504,
}
"""What an error's own type means where no status came with it: errors within a stream."""

_CLASS_OF = {
    401: AuthenticationFailed,
    402: QuotaExhausted,
    403: PermissionDenied,
    404: ModelNotFound,
    408: ProviderTimeout,
    409: ServerError,
    410: ModelNotFound,
    425: ServerError,
    429: RateLimited,
    451: ContentRefused,
    498: Overloaded,
    501: InvalidRequest,
    503: Overloaded,
    504: ProviderTimeout,
    529: Overloaded,
}


_PLAIN: tuple[tuple[str, Container[int], type[ProviderError]], ...] = (
    # OpenAI's and Groq's, of a request with more tokens than they allow in a minute: no wait helps.
    ("request too large for ", (413, 429), ContextTooLong),
    # DashScope says of its limits per minute that the quota is gone; the page it points to tells which they are.
    ("error-code#token-limit", (429,), RateLimited),
    # Ollama's.
    ("requires more system memory", (500,), InvalidRequest),
    # LM Studio's, with a status of 200.
    ("unexpected endpoint or method", (404, 500), ModelNotFound),
)
"""What says more than the status does: a phrase, in small letters, the statuses it comes with, and what it means."""


def _class_of(status: int, complaint: Complaint) -> type[ProviderError]:  # noqa: PLR0911 - a list of rules
    words = " ".join(complaint.words)
    said = f"{words} {complaint.message}"
    client_error = status // 100 == 4 or "invalid_request_error" in words  # noqa: PLR2004
    for phrase, statuses, kind in _PLAIN:
        if status in statuses and phrase in complaint.message.lower():
            return kind
    if status == 402 or _QUOTA.search(words):  # noqa: PLR2004
        return QuotaExhausted
    # Gemini says of each limit that the quota is exceeded, and of those that pass how long to wait.
    passes = complaint.wait is not None or retry_after({}, complaint.message, 0) is not None
    if status in (400, 403, 412, 429) and _QUOTA.search(said) and not passes:
        return QuotaExhausted
    if status not in (401, 403, 404, 429, 498) and _CONTEXT.search(said):
        return ContextTooLong
    if (client_error and _CONTENT.search(words)) or (status in (400, 403) and _CONTENT.search(said)):
        return ContentRefused
    if (status == 401 and "missing scopes" in complaint.message.lower()) or (  # noqa: PLR2004
        status == 400 and _NOT_ALLOWED.search(said)  # noqa: PLR2004
    ):
        return PermissionDenied
    if "invalid_api_key" in words or "authentication_error" in words or (status in (400, 403) and _KEY.search(said)):
        return AuthenticationFailed
    if client_error and status not in (401, 403, 429, 498) and _NO_MODEL.search(said):
        return ModelNotFound
    if status in _CLASS_OF:
        return _CLASS_OF[status]
    if client_error:
        return InvalidRequest
    return Overloaded if _BUSY.search(said) else ServerError


# ------------------------------------------------------------------ the sentence


class Speaker(Struct, frozen=True):
    """Whose errors these are, and what must not be repeated.

    Args:
        name: The provider's name as configured.
        address: Its base URL without credentials and query.
        key_advice: What to do about a refused key, e.g. `set OPENAI_API_KEY`.
        secrets: Keys and passwords that no message may carry.
        unreachable_advice: What to do when no connection can be had.
    """

    name: str
    address: str
    key_advice: str
    secrets: tuple[str, ...] = ()
    unreachable_advice: str = "check the network"

    def __repr__(self) -> str:
        return f"Speaker({self.name!r})"

    def quote(self, text: str) -> str:
        """A provider's own words on one line, without secrets, at most 500 characters."""
        text = " ".join(blotted(text, self.secrets)[:20_000].split())
        return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"


LONGEST_QUOTE = 500
_SHORTEST_MINUTES = 120


def spell(wait: float) -> str:
    """Seconds for people: `0.3 s`, `42 s`, `6 min`."""
    if wait >= _SHORTEST_MINUTES:
        return f"{wait / 60:.0f} min"
    return f"{wait:.1f} s" if wait != round(wait) else f"{wait:.0f} s"


def error_from(
    speaker: Speaker,
    complaint: Complaint,
    *,
    status: int,
    headers: Headers,
    now: int,
    model: str = "",
) -> ProviderError:
    """The error a response or an error object within a stream stands for.

    Args:
        speaker: Whose it is.
        complaint: What the body or the object says.
        status: HTTP status; 200 for an error after a good start, which then is told by its own words.
        headers: The response's.
        now: The present, µs UTC.
        model: What was asked for, named where it isn't known.
    """
    in_stream = status < 400  # noqa: PLR2004
    told = complaint.status if in_stream and complaint.status else status
    meant = told
    if meant < 400:  # noqa: PLR2004
        meant = next((_STATUS_OF[w] for w in complaint.words if w in _STATUS_OF), 500)
    kind = _class_of(meant, complaint)
    waits = kind in (RateLimited, Overloaded, ServerError, ProviderTimeout)
    limits = {**complaint.headers, **headers}
    wait = retry_after(complaint.headers if in_stream else limits, complaint.message, now) if waits else None
    if waits and wait is None:
        wait = complaint.wait
    said = speaker.quote(complaint.message)
    retryable: bool | None = None
    if not in_stream and kind is not QuotaExhausted:
        retryable = {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())
    return kind(
        _sentence(speaker, kind, told, said, wait, model),
        provider=speaker.name,
        status=told,
        code=speaker.quote(complaint.words[0]) if complaint.words else None,
        retry_after=wait,
        retryable=retryable,
        request_id=request_id(headers) or complaint.request_id,
        rate_limits=rate_limits(limits, now),
    )


def _sentence(
    speaker: Speaker, kind: type[ProviderError], status: int, said: str, wait: float | None, model: str
) -> str:
    """What happened, to what, and what to do next; then the provider's own words."""
    later = f"try again in {spell(wait)}" if wait is not None else "try again later"
    happened, advice = {
        AuthenticationFailed: ("refused the key", speaker.key_advice),
        PermissionDenied: ("doesn't allow this key to do that", "check what the key may use"),
        ModelNotFound: (
            f"doesn't know {model or 'what was asked for'}",
            f"check the model's name and {speaker.address}",
        ),
        ContextTooLong: ("can't fit the prompt into the model's context", "shorten it or choose a larger model"),
        ContentRefused: ("refused the content", "rephrase it"),
        QuotaExhausted: ("says the credit or quota is gone", "check its billing page"),
        RateLimited: ("is rate limiting", later),
        Overloaded: ("has no capacity now", later),
        ServerError: ("failed", later),
        ProviderTimeout: ("took too long", later),
        InvalidRequest: ("refused the request", "change it or the model"),
    }[kind]
    place = f" ({status})" if status >= 400 else ""  # noqa: PLR2004 - an error after a good start has no status
    return f"{speaker.name} {happened}{place}: {advice}" + (f" (it said: {said})" if said else "")


class Head(Struct, frozen=True):
    """What a response says before its body.

    Args:
        speaker: Whose response it is.
        status: HTTP status.
        headers: Names in lower case.
        now: When it came, µs UTC.
        model: What was asked for.
    """

    speaker: Speaker
    status: int
    headers: Headers
    now: int
    model: str

    @property
    def request_id(self) -> str | None:
        """The provider's id of the request."""
        return request_id(self.headers)

    @property
    def rate_limits(self) -> tuple[RateLimit, ...]:
        """What the headers tell about limits."""
        return rate_limits(self.headers, self.now)

    def error(self, complaint: Complaint) -> ProviderError:
        """The error that a body or an error object within the stream stands for."""
        return error_from(
            self.speaker, complaint, status=self.status, headers=self.headers, now=self.now, model=self.model
        )

    def bad(self, payload: bytes = b"", *, what: str) -> BadResponse:
        """The bytes aren't the provider's format; `what` says what they are, unless they are a web page."""
        text = payload[:65536].decode("utf-8", "replace").lstrip()
        if text[:1] == "<" and (_is_page(text) or "text/html" in self.headers.get("content-type", "")):
            return self._page(self.speaker.quote(_title(text)))
        quoted = self.speaker.quote(text[:2000])
        shown = f" ({quoted[:200]})" if quoted else ""
        return BadResponse(
            f"{self.speaker.name} sent {what}{shown}: check that {self.speaker.address} speaks its API",
            provider=self.speaker.name,
            status=self.status,
            request_id=self.request_id,
        )

    def _page(self, title: str) -> BadResponse:
        """A login of the network's, or a site: to ask again would bring the same page."""
        titled = f" titled '{title[:100]}'" if title else ""
        return BadResponse(
            f"{self.speaker.name} answered with a web page{titled}: check that base_url is where its API stands "
            f"({self.speaker.address}), and that this network asks for no login",
            provider=self.speaker.name,
            status=self.status,
            retryable=False,
            request_id=self.request_id,
        )

    def broken(self) -> BrokenStream:
        """The stream ended before its terminator."""
        return BrokenStream(
            f"{self.speaker.name} ended the stream before the answer was whole: ask again",
            provider=self.speaker.name,
            status=self.status,
            request_id=self.request_id,
            rate_limits=self.rate_limits,
        )
