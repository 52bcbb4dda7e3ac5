"""Error bodies of every shape end in the right place of the tree, with a sentence that helps."""

from __future__ import annotations

import json

import pytest

from timeline.events import RateLimit
from timeline.providers.failures import Complaint, Speaker, error_from

NOW = 1_700_000_000_000_000
ADVICE = "set OPENAI_API_KEY or run 'timeline keys set openai'"
SPEAKER = Speaker("openai", "https://api.openai.com/v1", ADVICE, ("sk-secret-1", "secret"))


def mapped(status, body, headers=None, *, model="m"):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return error_from(SPEAKER, Complaint.read(raw), status=status, headers=headers or {}, now=NOW, model=model)


def said(message, **more):
    return {"error": {"message": message, **more}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "retryable"),
    [
        (400, said("no", type="invalid_request_error"), "invalid_request", False),
        (401, said("no", code="invalid_api_key"), "authentication", False),
        (401, said("You have insufficient permissions. Missing scopes: model.request"), "permission", False),
        (403, said("no"), "permission", False),
        (404, said("no", code="model_not_found"), "model_not_found", False),
        (404, b"404 page not found", "model_not_found", False),
        (400, said("The model `x` has been decommissioned", code="model_decommissioned"), "model_not_found", False),
        (400, {"error": "model 'x' not found"}, "model_not_found", False),
        (408, said("slow"), "timeout", True),
        (409, said("conflict"), "server", True),
        (413, said("too large"), "invalid_request", False),
        (413, said("Request too large", code="rate_limit_exceeded", type="tokens"), "invalid_request", False),
        (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, "invalid_request", False),
        (429, said("slow down", code="rate_limit_exceeded"), "rate_limited", True),
        (429, b"", "rate_limited", True),
        (429, said("x", code="insufficient_quota"), "quota_exhausted", False),
        (429, said("x", type="insufficient_quota"), "quota_exhausted", False),
        (429, said("x", code="credit_balance_exhausted"), "quota_exhausted", False),
        (429, said("x", code="organization_spend_limit_exceeded"), "quota_exhausted", False),
        (429, said("x", code="project_usage_limit_exceeded"), "quota_exhausted", False),
        (429, said("You exceeded your current quota"), "quota_exhausted", False),
        (402, said("Insufficient credits"), "quota_exhausted", False),
        (400, said("Your credit balance is too low to access the API"), "quota_exhausted", False),
        (498, said("flex capacity"), "overloaded", True),
        (500, said("oops"), "server", True),
        (500, said("bad parameter", type="invalid_request_error"), "invalid_request", False),
        (502, b"<html><head><title>502 Bad  Gateway</title></head></html>", "server", True),
        (503, {"error": "server busy, please try again.  maximum pending requests exceeded"}, "overloaded", True),
        (504, b"", "timeout", True),
        (520, b"", "server", True),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "overloaded", True),
        (400, said("x", code="context_length_exceeded"), "context_too_long", False),
        (400, said("This model's maximum context length is 8192 tokens."), "context_too_long", False),
        (400, said("n", type="exceed_context_size_error", n_prompt_tokens=9, n_ctx=4), "context_too_long", False),
        (400, said("prompt is too long: 208310 tokens > 200000 maximum"), "context_too_long", False),
        (400, said("input length and `max_tokens` exceed context limit: 1 + 2 > 3"), "context_too_long", False),
        (400, {"error": "prompt too long; exceeded max context length by 4 tokens"}, "context_too_long", False),
        (500, {"error": "the input length exceeds the context length"}, "context_too_long", False),
        (400, said("x", code="content_filter"), "content_refused", False),
        (400, said("x", code="content_policy_violation"), "content_refused", False),
        (403, said("The request requires moderation on x"), "content_refused", False),
        (200, said("x", type="overloaded_error"), "overloaded", True),
        (200, said("x", type="rate_limit_error"), "rate_limited", True),
        (200, said("x", type="api_error"), "server", True),
        (200, said("x", type="invalid_request_error"), "invalid_request", False),
        (200, said("x", code=429), "rate_limited", True),
        (200, said("x", code="502"), "server", True),
        (200, {"error": "llama runner process has terminated"}, "server", True),
        (200, {"error": {}}, "server", True),
        (400, said("Output blocked by content filtering policy"), "content_refused", False),
        (
            200,
            said("Output blocked by content filtering policy", type="invalid_request_error"),
            "content_refused",
            False,
        ),
        (400, said("Content Exists Risk", code="invalid_request_error"), "content_refused", False),
        (
            400,
            said("Input may contain inappropriate content.", code="data_inspection_failed"),
            "content_refused",
            False,
        ),
        (400, said("API access is blocked", code="blocked_api_access"), "quota_exhausted", False),
        (400, said("Access denied", code="Arrearage"), "quota_exhausted", False),
        (403, {"code": "no permission", "error": "Your team doesn't have any credits yet."}, "quota_exhausted", False),
        (403, said("Out of call volume quota. Quota will be replenished in 2.12:00:00."), "quota_exhausted", False),
        (412, said("Account x is suspended, possibly due to reaching the spending limit"), "quota_exhausted", False),
        (429, {"code": "exhausted", "error": "Your team has used all available credits"}, "quota_exhausted", False),
        (429, said("This organization has reached its monthly spend limit."), "quota_exhausted", False),
        (429, said("Your account is suspended", type="exceeded_current_quota_error"), "quota_exhausted", False),
        (429, {"error": "you (me) have reached your weekly usage limit, upgrade for more"}, "quota_exhausted", False),
        (429, {"message": "Tokens per minute limit exceeded", "code": "token_quota_exceeded"}, "rate_limited", True),
        (429, {"message": "Requests per minute exceeded", "code": "request_quota_exceeded"}, "rate_limited", True),
        (429, [said("You exceeded your current quota.\nPlease retry in 36.5s.", code=429)], "rate_limited", True),
        (400, [said("API key not valid.", code=400, status="INVALID_ARGUMENT")], "authentication", False),
        (400, {"code": "invalid argument", "error": "Incorrect API key provided: xa***."}, "authentication", False),
        (403, {"message": "The API key is invalid."}, "authentication", False),
        (400, said("User location is not supported for the API use."), "permission", False),
        (400, said("Organization has been restricted.", code="organization_restricted"), "permission", False),
        (400, said("foo/bar is not a valid model ID", code=400), "model_not_found", False),
        (400, said("Model Not Exist", code="invalid_request_error"), "model_not_found", False),
        (400, {"message": "Invalid model: foo", "type": "invalid_model", "code": "1500"}, "model_not_found", False),
        (400, said("Unable to access model x.", code="model_not_available"), "model_not_found", False),
        (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 4096."}, "context_too_long", False),
        (400, [said("The input token count (12) exceeds the maximum (10).", code=400)], "context_too_long", False),
        (400, {"error": "This model's maximum prompt length is 10 but it has 12 tokens."}, "context_too_long", False),
        (400, said("Range of input length should be [1, 129024]"), "context_too_long", False),
        (400, said("Prompt exceeds max length", code="1261"), "context_too_long", False),
        (400, said("Your request exceeded model token limit: 8192"), "context_too_long", False),
        (413, said("Body too large. Max size: 8000 tokens.", code="tokens_limit_reached"), "context_too_long", False),
        (400, said("litellm.ContextWindowExceededError: …", code="400"), "context_too_long", False),
        (413, said("Request too large for model `x` on tokens per minute: Limit 8000"), "context_too_long", False),
        (429, said("Request too large for x on TPM", code="rate_limit_exceeded"), "context_too_long", False),
        (422, {"error": "`inputs` must have less than 4096 tokens. Given: 5000"}, "context_too_long", False),
        (
            400,
            {"code": 20015, "message": "prompt_tokens (9) must be less than max_seq_len (8)."},
            "context_too_long",
            False,
        ),
        (400, said("This organization has been disabled."), "permission", False),
        (400, said("Not supported.", code="model_not_supported"), "model_not_found", False),
        (400, {"code": 20012, "message": "Model does not exist. Please check it."}, "model_not_found", False),
        (400, {"errors": [{"message": "No such model @cf/x"}]}, "model_not_found", False),
        (400, {"message": "The provided model identifier is invalid."}, "model_not_found", False),
        (400, said("Invalid model name passed in model=x.", code="400"), "model_not_found", False),
        (400, said("模型不存在，请检查模型代码。", code="1211"), "model_not_found", False),
        (200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}, "model_not_found", False),
        (
            403,
            {"code": "denied", "error": "Content violates usage guidelines. Failed check: X"},
            "content_refused",
            False,
        ),
        (400, said("May contain sensitive information.", code="SensitiveContentDetected"), "content_refused", False),
        (400, said("litellm.ContentPolicyViolationError: …", code="400"), "content_refused", False),
        (400, said("可能包含不安全或敏感内容", code="1301"), "content_refused", False),
        (403, said("The free tier is exhausted", code="AllocationQuota.FreeTierOnly"), "quota_exhausted", False),
        (403, said("An overdue balance.", code="AccountOverdueError"), "quota_exhausted", False),
        (403, {"code": 30001, "message": "Sorry, your account balance is insufficient"}, "quota_exhausted", False),
        (403, {"code": 403, "message": "not enough balance"}, "quota_exhausted", False),
        (429, said("The model service has been paused.", code="SetLimitExceeded"), "quota_exhausted", False),
        (429, [said("Your prepayment credits are depleted.", code=429)], "quota_exhausted", False),
        (429, said("余额不足或无可用资源包,请充值。", code="1113"), "quota_exhausted", False),
        (429, {"errors": [{"message": "you have used up your daily free allocation"}]}, "quota_exhausted", False),
        (
            429,
            said("You exceeded your current quota: https://x/error-code#token-limit", code="insufficient_quota"),
            "rate_limited",
            True,
        ),
        (200, {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "x"}}, "quota_exhausted", False),
        (200, {"base_resp": {"status_code": 1002, "status_msg": "x"}}, "rate_limited", True),
        (200, {"base_resp": {"status_code": 7, "status_msg": "x"}}, "server", True),
        (500, {"error": "model requires more system memory (5.6 GiB) than is available"}, "invalid_request", False),
        (501, said("This server does not support chat", type="not_supported_error"), "invalid_request", False),
        (200, {"error": "over_capacity"}, "overloaded", True),
        (418, b"\xff\xfe", "invalid_request", False),
        (400, [said("first of a list")], "invalid_request", False),
        (400, {"object": "error", "message": "n", "type": "BadRequestError", "code": 400}, "invalid_request", False),
        (500, b'{"error":' + b"[" * 5000, "server", True),
        (400, b'{"error":{"message":"\xff","code":"content_filter"}}', "content_refused", False),
    ],
)
def test_errors_have_their_place_in_the_tree(status, body, kind, retryable):
    error = mapped(status, body)

    assert (kind, retryable) == (error.kind, error.retryable)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (
            said("Provider returned error", code=400, metadata={"raw": json.dumps(said("prompt is too long: 5 > 4"))}),
            "context_too_long",
            "(it said: Provider returned error: prompt is too long: 5 > 4)",
        ),
        (
            said("Provider returned error", metadata={"raw": "x is paused", "provider_name": "Y"}),
            "invalid_request",
            "(it said: Provider returned error: x is paused)",
        ),
        ({"error": json.dumps(said("model 'x' not found"))}, "model_not_found", "(it said: model 'x' not found)"),
        (
            b'event: error\ndata: {"error":{"message":"prompt is too long"}}\n\n',
            "context_too_long",
            "(it said: prompt is too long)",
        ),
        (b":HTTP_STATUS/400\nid:1\ndata:[broken\n", "invalid_request", "data:[broken)"),
        (
            {"errors": [{"message": "no route", "code": 7003}], "success": False},
            "invalid_request",
            "(it said: no route)",
        ),
        ({"type": "about:blank", "title": "Bad Gateway", "status": 400}, "invalid_request", "(it said: Bad Gateway)"),
        ({"detail": {"error": "no such user"}}, "invalid_request", "(it said: no such user)"),
    ],
)
def test_what_a_gateway_passes_on_is_read_too(body, kind, words):
    error = mapped(400, body)

    assert kind == error.kind
    assert str(error).endswith(words)


@pytest.mark.parametrize(("told", "expected"), [("true", True), ("false", False), ("maybe", None)])
def test_x_should_retry_wins_over_the_status(told, expected):
    assert (True if expected is None else expected) is mapped(500, b"", {"x-should-retry": told}).retryable
    assert bool(expected) is mapped(400, b"", {"x-should-retry": told}).retryable


def test_an_empty_purse_is_never_tried_again():
    assert not mapped(429, said("x", code="insufficient_quota"), {"x-should-retry": "true"}).retryable


def test_retry_after_is_heeded_where_waiting_helps():
    assert 7.0 == mapped(429, b"", {"retry-after": "7"}).retry_after
    assert 7.0 == mapped(503, b"", {"retry-after": "7"}).retry_after
    assert None is mapped(400, b"", {"retry-after": "7"}).retry_after
    assert None is mapped(200, said("x", type="overloaded_error"), {"retry-after": "7"}).retry_after


def test_a_wait_and_limits_that_the_body_tells_are_heeded():
    info = [{"@type": "google.rpc.Help"}, {"@type": "google.rpc.RetryInfo", "retryDelay": "57.5s"}]
    waits = mapped(429, [said("You exceeded your current quota, check your plan", details=info)])
    daily = mapped(429, said("free-models-per-day", metadata={"headers": {"X-RateLimit-Remaining": "0"}}))

    assert ("rate_limited", 57.5, True) == (waits.kind, waits.retry_after, waits.retryable)
    assert (RateLimit("requests", remaining=0),) == daily.rate_limits
    assert 3.0 == mapped(200, said("x", code=429, metadata={"headers": {"Retry-After": 3}})).retry_after


def test_an_error_carries_what_a_caller_needs():
    error = mapped(
        429,
        {"type": "error", "error": {"type": "rate_limit_error", "message": "no"}, "request_id": "req_body"},
        {"x-ratelimit-remaining-requests": "0", "retry-after": "5.25"},
    )

    assert ("openai", 429, "rate_limit_error", 5.25, "req_body") == (
        error.provider,
        error.status,
        error.code,
        error.retry_after,
        error.request_id,
    )
    assert 0 == error.rate_limits[0].remaining
    assert "req_head" == mapped(400, b"", {"x-request-id": "req_head"}).request_id


@pytest.mark.parametrize(
    ("status", "body", "headers", "sentence"),
    [
        (401, said("no"), {}, f"openai refused the key (401): {ADVICE} (it said: no)"),
        (429, b"", {"retry-after": "5.3"}, "openai is rate limiting (429): try again in 5.3 s"),
        (429, b"", {"retry-after": "600"}, "openai is rate limiting (429): try again in 10 min"),
        (429, b"", {}, "openai is rate limiting (429): try again later"),
        (
            404,
            said("no"),
            {},
            "openai doesn't know m (404): check the model's name and https://api.openai.com/v1 (it said: no)",
        ),
        (502, b"<html><title>Bad Gateway</title>", {}, "openai failed (502): try again later (it said: Bad Gateway)"),
        (
            200,
            said("no", type="overloaded_error"),
            {},
            "openai has no capacity now: try again later (it said: no)",
        ),
    ],
)
def test_the_sentence_says_what_happened_to_what_and_what_to_do(status, body, headers, sentence):
    assert sentence == str(mapped(status, body, headers))


def test_no_secret_and_no_flood_gets_into_a_message():
    error = mapped(401, said("Incorrect key sk-secret-1 or\nsecret! " + "x" * 5000, code="sk-secret-1"))

    assert "secret" not in str(error)
    assert "secret" not in str(error.code)
    assert "Incorrect key [key] or [key]!" in str(error)
    assert len(str(error)) < 700
    assert "secret" not in repr(SPEAKER)
