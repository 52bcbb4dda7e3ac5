"""How a conversation and a schema are said in OpenAI's format.

Source: OpenAI's API reference, "Chat Completions" and "Structured Outputs". What single services want
besides stands with their providers.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from timeline.providers.base import ImagePart, LLMRequest, Message, OpaquePart, TextPart, ToolCall

__all__ = ["Kept", "chat_messages", "is_strict", "put_in_words"]


def chat_messages(request: LLMRequest, provider: str) -> list[dict[str, Any]]:
    """The conversation in OpenAI's words.

    Args:
        request: Whose conversation it is.
        provider: Who will be asked, by the name as configured: what it sent to have it back goes back.
    """
    messages: list[dict[str, Any]] = []
    if request.system is not None:
        messages.append({"role": "system", "content": request.system})
    messages += [_message(message, provider) for message in request.messages]
    return messages


def _message(message: Message, provider: str) -> dict[str, Any]:
    match message.role:
        case "tool":
            return {"role": "tool", "tool_call_id": message.tool_call_id or "", "content": message.text}
        case "assistant":
            # Templates of local models join `content` to text: an empty one is safer than null.
            plain: dict[str, Any] = {"role": "assistant", "content": message.text}
            if message.tool_calls:
                kept = _kept(message, provider)
                extras = kept.get("extra_content") or {}
                plain |= {name: kept[name] for name in _THOUGHTS if name in kept}
                plain["tool_calls"] = [
                    _call(call, extras.get(str(number))) for number, call in enumerate(message.tool_calls)
                ]
            return plain
    content: str | list[dict[str, Any]] = message.text
    if not isinstance(message.content, str) and any(isinstance(part, ImagePart) for part in message.content):
        content = [_part(part) for part in message.content if isinstance(part, TextPart | ImagePart)]
    return {"role": message.role, "content": content}


class Kept:
    """What servers want to see again beside the results of an answer's calls, or refuse them.

    Attributes:
        thoughts: DeepSeek's, piece by piece.
        extras: Gemini's signatures, by the call's number.
    """

    __slots__ = ("_blocks", "_details", "extras", "thoughts")

    def __init__(self) -> None:
        self.thoughts: list[str] = []
        self.extras: dict[str, Any] = {}
        self._details: list[dict[str, Any]] = []
        self._blocks: list[dict[str, Any]] = []

    def add_details(self, pieces: Any) -> None:
        """Take OpenRouter's thoughts with their signatures, whole or a piece of them.

        Source: its guide "Reasoning Tokens", "Preserving reasoning".
        """
        _join(self._details, pieces)

    def add_blocks(self, pieces: Any) -> None:
        """Take Claude's thoughts with their signatures as LiteLLM passes them on, whole or a piece of them.

        Source: its documentation, "'Thinking' / 'Reasoning Content'".
        """
        _join(self._blocks, pieces)

    def block(self) -> dict[str, Any]:
        """All of it, as `chat_messages` knows it; empty where there is nothing."""
        told = zip(_THOUGHTS, ("".join(self.thoughts), self._details, self._blocks), strict=True)
        return {name: value for name, value in (*told, ("extra_content", self.extras)) if value}


def _join(whole: list[dict[str, Any]], pieces: Any) -> None:
    """Continue the last block with each piece of it; what is encrypted or signed is whole."""
    for piece in pieces if isinstance(pieces, list) else ():
        if not isinstance(piece, dict):
            continue
        last = whole[-1] if whole else {}
        kind = _GROWING.get(str(piece.get("type")))
        other = any(piece.get(name) != last.get(name) for name in ("type", "index"))
        if kind is None or other or last.get("signature"):
            whole.append({**piece})
            continue
        grown = "".join(each for each in (last.get(kind), piece.get(kind)) if isinstance(each, str))
        last |= {name: value for name, value in piece.items() if value is not None} | {kind: grown}


_THOUGHTS = ("reasoning_content", "reasoning_details", "thinking_blocks")
_GROWING = {"reasoning.text": "text", "reasoning.summary": "summary", "thinking": "thinking"}
"""What comes in pieces, and in which field; what is encrypted comes whole."""


def _kept(message: Message, provider: str) -> dict[str, Any]:
    for part in message.content:
        if isinstance(part, OpaquePart) and part.provider == provider:
            return part.block
    return {}


def _call(call: ToolCall, extra: Any) -> dict[str, Any]:
    # Always JSON, whatever the model wrote: llama-server and vLLM refuse a history that isn't.
    arguments = msgspec.json.encode(call.arguments).decode()
    plain = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
    return plain if extra is None else {**plain, "extra_content": extra}


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    data = base64.b64encode(part.data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{part.media_type};base64,{data}"}}


def is_strict(schema: Any) -> bool:
    """Whether a schema keeps OpenAI's rules for `strict`: every object closed, every property required."""
    if isinstance(schema, list):
        return all(map(is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties") or {}
        if schema.get("additionalProperties") is not False or set(schema.get("required") or ()) != set(properties):
            return False
        return all(map(is_strict, [*properties.values(), *(schema.get("$defs") or {}).values()]))
    return all(map(is_strict, schema.values()))


def put_in_words(body: dict[str, Any], schema: dict[str, Any]) -> None:
    """Tell a model its answer's schema as a rule, where the service can't hold it to one.

    Args:
        body: The request's; its messages are replaced.
        schema: The answer's.
    """
    text = msgspec.json.encode(schema).decode()
    rule = {"role": "system", "content": f"Answer with one JSON object that follows this JSON Schema: {text}"}
    body["messages"] = [rule, *body["messages"]]
