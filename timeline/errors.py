"""The whole error tree of timeline.

Every failure the library raises on purpose is one of these, so a caller reads on this
page what can go wrong and which exit code the command line gives it::

    TimelineError                    1   anything below
    ├── UsageError                   2   the caller asked for something that makes no sense
    │   ├── ConfigError              2   a configuration file, key path or value is wrong
    │   └── AmbiguousName            2   a prefix or name matches more than one thing
    ├── NotFound                     6   a session, provider, model or file that isn't there
    ├── MissingKey                   4   a provider needs an API key and none was found
    ├── BudgetExceeded               3   the request would pass a blocking budget
    ├── StoreError                   1   the event store can't do what was asked
    │   ├── NotATimelineStore        1   the file is something else
    │   ├── StoreTooNew              1   written by a newer version of timeline
    │   ├── StoreReadOnly            1   the file or its folder can't be written
    │   ├── StoreFull                1   no space left for the event
    │   ├── StoreBusy                1   another process held the write lock too long
    │   ├── StoreDamaged             1   SQLite or the hash chain says the file is damaged
    │   ├── VersionConflict          1   someone else appended to the session first
    │   └── IdempotencyConflict      1   the event id exists with another body
    ├── ModelUnavailable             1   the embedded model can't be fetched or loaded
    ├── PluginError                  1   a plugin breaks the provider or tool contract
    ├── ToolError                    1   a tool can't do what it was asked; the model is told, too
    └── ProviderError                1   one attempt failed; carries status, code, retryable
        ├── AuthenticationFailed     4   the key was refused
        ├── PermissionDenied         4   the key may not do this
        ├── ModelNotFound            6   the provider doesn't know the model
        ├── InvalidRequest           1   the provider refused the request as malformed
        │   └── ContextTooLong       1   prompt and answer don't fit the model's context
        ├── ContentRefused           1   the provider's filter refused the content
        ├── RateLimited              5   too many requests; may succeed later
        ├── QuotaExhausted           1   the credit or quota is gone; waiting won't help
        ├── Overloaded               1   the provider has no capacity now
        ├── ServerError              1   the provider failed
        ├── NetworkError             1   no connection (DNS, refused, reset, TLS)
        ├── ProviderTimeout          1   no connection, first byte or next chunk in time
        ├── BrokenStream             1   the stream ended before its terminator
        └── BadResponse              1   bytes that aren't the provider's format

A message is one sentence: what happened, to what, and what to do next. No message, ``repr``
or traceback of these classes carries an API key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from timeline.events import RateLimit

__all__ = [
    "DISPENSABLE",
    "AmbiguousName",
    "AuthenticationFailed",
    "BadResponse",
    "BrokenStream",
    "BudgetExceeded",
    "ConfigError",
    "ContentRefused",
    "ContextTooLong",
    "IdempotencyConflict",
    "InvalidRequest",
    "MissingKey",
    "ModelNotFound",
    "ModelUnavailable",
    "NetworkError",
    "NotATimelineStore",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "PluginError",
    "ProviderError",
    "ProviderTimeout",
    "QuotaExhausted",
    "RateLimited",
    "ServerError",
    "StoreBusy",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
    "StoreTooNew",
    "TimelineError",
    "ToolError",
    "UsageError",
    "VersionConflict",
]


class TimelineError(Exception):
    """Base of every error raised on purpose; ``str()`` is the sentence for the user."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1


class UsageError(TimelineError):
    """The caller asked for something that makes no sense."""

    kind = "usage"
    exit_code = 2


class ConfigError(UsageError):
    """A configuration file, key path or value is wrong."""

    kind = "config"


class AmbiguousName(UsageError):
    """A prefix or name matches more than one thing."""

    kind = "ambiguous"


class NotFound(TimelineError):
    """A session, provider, model or file that isn't there."""

    kind = "not_found"
    exit_code = 6


class MissingKey(TimelineError):
    """A provider needs an API key and none was found."""

    kind = "missing_key"
    exit_code = 4


class BudgetExceeded(TimelineError):
    """The request would pass a blocking budget."""

    kind = "budget_exceeded"
    exit_code = 3


class StoreError(TimelineError):
    """The event store can't do what was asked."""

    kind = "store"


class NotATimelineStore(StoreError):
    """The file is something else."""

    kind = "not_a_store"


class StoreTooNew(StoreError):
    """The file was written by a newer version of timeline."""

    kind = "store_too_new"


class StoreReadOnly(StoreError):
    """The file or its folder can't be written."""

    kind = "store_read_only"


class StoreFull(StoreError):
    """No space is left for the event."""

    kind = "store_full"


class StoreBusy(StoreError):
    """Another process held the write lock too long."""

    kind = "store_busy"


class StoreDamaged(StoreError):
    """SQLite or the hash chain says the file is damaged."""

    kind = "store_damaged"


class VersionConflict(StoreError):
    """Someone else appended to the session first."""

    kind = "version_conflict"


class IdempotencyConflict(StoreError):
    """The event id exists with another body."""

    kind = "idempotency_conflict"


class ModelUnavailable(TimelineError):
    """The embedded model can't be fetched or loaded."""

    kind = "model_unavailable"


class PluginError(TimelineError):
    """A plugin breaks the provider or tool contract; the message names both."""

    kind = "plugin"


class ToolError(TimelineError):
    """A tool can't do what it was asked; the sentence is for the model as much as for the user."""

    kind = "tool"


class ProviderError(TimelineError):
    """One attempt at a provider failed.

    Args:
        message: The sentence for the user, without secrets.
        provider: Name of the provider as configured, e.g. ``openai``.
        status: HTTP status, if a response arrived.
        code: The provider's own error code or type, verbatim.
        retry_after: Seconds the provider asked to wait, if it did.
        retryable: Overrides the class's default where the provider says so
            (``x-should-retry``).
        request_id: The provider's id of the request, for its support.
        rate_limits: Limits the response's headers told.
    """

    kind = "provider"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        status: int | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        retryable: bool | None = None,
        request_id: str | None = None,
        rate_limits: tuple[RateLimit, ...] = (),
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.retryable = self.default_retryable if retryable is None else retryable
        self.request_id = request_id
        self.rate_limits = rate_limits


class AuthenticationFailed(ProviderError):
    """The key was refused."""

    kind = "authentication"
    exit_code = 4


class PermissionDenied(ProviderError):
    """The key may not do this."""

    kind = "permission"
    exit_code = 4


class ModelNotFound(ProviderError):
    """The provider doesn't know the model."""

    kind = "model_not_found"
    exit_code = 6


class InvalidRequest(ProviderError):
    """The provider refused the request as malformed."""

    kind = "invalid_request"


class ContextTooLong(InvalidRequest):
    """Prompt and answer don't fit the model's context."""

    kind = "context_too_long"


class ContentRefused(ProviderError):
    """The provider's filter refused the content."""

    kind = "content_refused"


class RateLimited(ProviderError):
    """Too many requests; the same request may succeed later."""

    kind = "rate_limited"
    exit_code = 5
    default_retryable = True


class QuotaExhausted(ProviderError):
    """The credit or quota is gone; waiting won't help."""

    kind = "quota_exhausted"


class Overloaded(ProviderError):
    """The provider has no capacity now."""

    kind = "overloaded"
    default_retryable = True


class ServerError(ProviderError):
    """The provider failed."""

    kind = "server"
    default_retryable = True


class NetworkError(ProviderError):
    """No connection: DNS, refused, reset or TLS."""

    kind = "network"
    default_retryable = True


class ProviderTimeout(ProviderError):
    """No connection, first byte or next chunk came in time."""

    kind = "timeout"
    default_retryable = True


class BrokenStream(ProviderError):
    """The stream ended before its terminator."""

    kind = "broken_stream"
    default_retryable = True


class BadResponse(ProviderError):
    """The bytes aren't the provider's format."""

    kind = "bad_response"
    default_retryable = True


DISPENSABLE = (BadResponse, BrokenStream, ContentRefused, InvalidRequest)
"""So may the call end whose answer a turn can do without, its route: nothing is said about the question's own answer."""
