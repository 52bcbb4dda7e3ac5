"""The first step of a turn: which tools the text needs, what it is about, and how hard it is.

Builds the request and reads the answer; asking is the processor's. A model that can gets the tools' descriptions and
the signals, and answers in JSON. A very small one gets examples and a choice of words: the signals are prior odds, the
model's leaning towards some words is taken out, and both go with the request as llama.cpp's `logit_bias`, so that
the word it answers with is the decision, and the log holds all that led to it.

Sources: Zhao et al. 2021, "Calibrate Before Use"; Zhou et al. 2023, "Batch Calibration", whose estimate of the
leaning, the mean over texts without their labels, did better here: docs/cognition.md has the figures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from timeline.cognition.difficulty import complexity_of, kind_of
from timeline.cognition.signals import Signal
from timeline.config import Complexity
from timeline.providers.base import LLMRequest, LLMResponse, Message, Tool

__all__ = [
    "CALIBRATION",
    "NONE",
    "WORDS",
    "Asking",
    "Complexity",
    "Decision",
    "Malformed",
    "by_signals",
    "decide",
    "repair",
    "request",
    "supported",
]

LONGEST_TEXT = 8000
"""Characters of the user's words that a bigger model is shown: what is wanted is said at the beginning or the end."""
LONGEST_PAST = 1000
LONGEST_FOR_SMALL = 600
LONGEST_INTENT = 80
MOST_TOKENS = 1000
MOST_TOKENS_FOR_SMALL = 32


class Decision(Struct, frozen=True):
    """What a turn needs.

    Args:
        intent: What is wanted, in a few words.
        tools: Names of the tools to use, in the order in which they are wanted; none for a direct answer.
        complexity: How hard it is.
        source: Who decided: the `model`, the model after it was shown its mistake (`repaired`), the `signals` alone, or `none`.
        degraded: It isn't what the model decided at the first attempt.
        reason: Why, in words.
    """

    intent: str
    tools: tuple[str, ...]
    complexity: Complexity
    source: Literal["model", "repaired", "signals", "none"]
    degraded: bool = False
    reason: str | None = None


class Malformed(Struct, frozen=True):
    """The answer can't be read.

    Args:
        reason: What is wrong with it, in words that the model is told.
        answer: What came, for the model to see.
    """

    reason: str
    answer: str = ""


class Asking(Struct, frozen=True):
    """What is to be decided.

    Args:
        text: The user's words.
        tools: Those that are on.
        signals: What the text says by itself about them.
        small: The model that is asked is too small to describe a decision, so it chooses a word.
        model: Its name, by which its leaning is known; looked at for a small one alone.
        biased: A small one's server takes llama.cpp's `logit_bias` and `grammar`, as the embedded model's does.
        past: The last messages of the session, for a bigger model.
    """

    text: str
    tools: tuple[Tool, ...]
    signals: tuple[Signal, ...]
    small: bool = False
    model: str = ""
    biased: bool = True
    past: tuple[Message, ...] = ()

    @property
    def certain(self) -> tuple[Signal, ...]:
        """The signals of tools that are on and that the text leaves no doubt about."""
        names = {tool.name for tool in self.tools}
        return tuple(signal for signal in self.signals if signal.certain and signal.tool in names)

    @property
    def possible(self) -> tuple[Signal, ...]:
        """The other signals of tools that are on."""
        names = {tool.name for tool in self.tools}
        return tuple(signal for signal in self.signals if not signal.certain and signal.tool in names)


# ------------------------------------------------------------------ requests


def request(asking: Asking) -> LLMRequest:
    """The request that has a model decide; its `model` is left to be filled in.

    Args:
        asking: What is to be decided, and how much the model can do.
    """
    return _choice_request(asking) if asking.small else _description_request(asking)


def repair(asking: Asking, malformed: Malformed) -> LLMRequest:
    """The one further request after an answer that can't be read: it shows the model its mistake.

    Args:
        asking: As it was asked.
        malformed: What is wrong with the answer.
    """
    asked = request(asking)
    mistake = (
        Message("assistant", _shortened(malformed.answer, LONGEST_FOR_SMALL) or "(nothing)"),
        Message("user", f"That can't be used: {malformed.reason}. Answer again, with nothing but what was asked for."),
    )
    return msgspec.structs.replace(asked, messages=(*asked.messages, *mistake))


def decide(asking: Asking, response: LLMResponse) -> Decision | Malformed:
    """What the model decided.

    Args:
        asking: As it was asked.
        response: Its answer.
    """
    answer = response.content
    read = _chosen(answer, asking) if asking.small else _described(answer, asking)
    return msgspec.structs.replace(read, answer=answer) if isinstance(read, Malformed) else read


def supported(asking: Asking, decision: Decision) -> Decision:
    """What is left of a description by a model too small for one, which was asked since those before it failed.

    Args:
        asking: As the bigger model was asked.
        decision: What the small one said.

    Returns:
        Every certain tool; if there is none, those it named that the text speaks for.
    """
    possible = {signal.tool for signal in asking.possible}
    certain = tuple(signal.tool for signal in asking.certain)
    names = certain or tuple(name for name in decision.tools if name in possible)
    reason = f"a very small model stood in, so only what the text speaks for counts; {decision.reason}"
    complexity = _complexity(asking, names)
    return msgspec.structs.replace(decision, tools=names, complexity=complexity, degraded=True, reason=reason)


def by_signals(asking: Asking, malformed: Malformed) -> Decision:
    """What the text alone says, for when no model could tell; without certain signals a direct answer.

    Args:
        asking: What was to be decided.
        malformed: What was wrong with the model's answer.
    """
    names = tuple(signal.tool for signal in asking.certain)
    found = (
        "; ".join(f"{signal.tool}: {signal.reason}" for signal in asking.certain)
        or "nothing in the text asks for a tool"
    )
    reason = f"no route could be read: {malformed.reason}; {found}"
    source: Literal["signals", "none"] = "signals" if names else "none"
    return Decision(_intent(asking, names), names, _complexity(asking, names), source, degraded=True, reason=reason)


# ------------------------------------------------------------------ a description, in JSON


def _description_request(asking: Asking) -> LLMRequest:
    tools = (
        "\n".join(f"- {tool.name}: {' '.join(tool.description.split())}" for tool in asking.tools) or "(there are none)"
    )
    hints = "\n".join(
        f"- {signal.tool} {'is needed' if signal.certain else 'may be needed'}: {signal.reason}"
        for signal in (*asking.certain, *asking.possible)
    )
    system = (
        "You decide how a request is to be answered; you don't answer it. Say in JSON:\n"
        "- intent: what the user wants, in at most eight words\n"
        "- tools: the names of the tools that are needed for a correct answer, in the order of their use; an empty list if"
        " the answer needs none. Use a tool only if the request itself calls for it, not because it names the tool's subject.\n"
        "- complexity: low for a fact, a greeting or one tool; medium for an explanation, a short text or several tools; high"
        " for long or careful work\n\n"
        f"Tools:\n{tools}"
    )
    if asking.past:
        system += "\n\nDecide about the last <request> alone; what was said before only tells what it refers to."
    if hints:
        system += f"\n\nWhat a search for patterns found in the request, which may be wrong:\n{hints}"
    return LLMRequest(
        model="",
        system=system,
        messages=(*_before(asking), Message("user", f"<request>\n{_shortened(asking.text, LONGEST_TEXT)}\n</request>")),
        temperature=0.0,
        max_tokens=MOST_TOKENS,
        response_schema={
            "title": "routing",
            "type": "object",
            "properties": {
                "intent": {"type": "string"},
                "tools": {
                    "type": "array",
                    "items": {
                        "type": "string",
                        **({"enum": [tool.name for tool in asking.tools]} if asking.tools else {}),
                    },
                },
                "complexity": {"type": "string", "enum": list(get_args(Complexity))},
            },
            "required": ["intent", "tools", "complexity"],
            "additionalProperties": False,
        },
    )


def _before(asking: Asking) -> tuple[Message, ...]:
    """What was said before, as far as it helps to understand "and times two?"."""
    return tuple(Message(said.role, _shortened(said.text, LONGEST_PAST) or "(an image)") for said in asking.past)


class _Described(Struct):
    """What is read leniently: not every server holds its model to the schema."""

    complexity: str
    tools: list[str] | str | None = None
    tool: str | None = None
    intent: str = ""


def _described(answer: str, asking: Asking) -> Decision | Malformed:
    start, end = answer.find("{"), answer.rfind("}")
    if start < 0 or end < start:
        return Malformed("there is no JSON object in it")
    try:
        found = msgspec.json.decode(answer[start : end + 1], type=_Described)
    except (msgspec.DecodeError, RecursionError) as exc:
        return Malformed(f"it is not the JSON that was asked for ({exc})")
    complexity = found.complexity.strip().lower()
    if complexity not in get_args(Complexity):
        return Malformed("complexity is not one of low, medium, high")
    named = found.tools if found.tools is not None else found.tool
    wished = [named] if isinstance(named, str) else named or []
    wished = [name for name in wished if name.strip().lower() not in ("", "none", "null")]
    known = {tool.name for tool in asking.tools}
    names = tuple(dict.fromkeys(name for name in wished if name in known))
    if wished and not names:
        return Malformed(f"{wished[0][:64]!r} is no tool; there are: {', '.join(sorted(known)) or 'none'}")
    intent = " ".join(found.intent.split())[:LONGEST_INTENT] or _intent(asking, names)
    hints = "; ".join(f"{signal.tool}: {signal.reason}" for signal in (*asking.certain, *asking.possible))
    reason = f"the model's decision, told of {hints}" if hints else "the model's decision; the text gave no signal"
    return Decision(intent, names, msgspec.convert(complexity, Complexity), "model", reason=reason)


# ------------------------------------------------------------------ a choice of words

NONE = "chat"
WORDS = {
    "calculator": "math",
    "clock": "time",
    "read_file": "file",
    "list_files": "folder",
    "search_timeline": "history",
    "fetch_url": "web",
}
"""One token each for the tools that come with timeline; others go by their own name."""
_EXAMPLES = (
    ("What is 8 + 5?", "math"),
    ("Tell me a story.", "chat"),
    ("What day is it?", "time"),
    ("Show me what report.txt says.", "file"),
    ("Who wrote Faust?", "chat"),
    ("Which files are there?", "folder"),
    ("What did we talk about last week?", "history"),
    ("Read https://example.org for me.", "web"),
    ("How do birds fly?", "chat"),
    ("25 percent of 80", "math"),
    ("What's the date today?", "time"),
    ("Open src/app.py", "file"),
    ("list the directory", "folder"),
    ("Did I ask you about cats before?", "history"),
    ("summarize www.example.com/news", "web"),
    ("Write a poem about rain.", "chat"),
    ("thank you!", "chat"),
)
CALIBRATION: Mapping[str, Mapping[str, float]] = {
    "smollm2": {
        "math": -4.20,
        "time": -4.31,
        "file": -3.85,
        "folder": -4.92,
        "history": -3.19,
        "web": -3.53,
        "chat": -2.10,
    }
}
"""How a model leans: its mean log-probability of each word after the examples, over texts of all kinds without labels.
Measured by `benchmarks/routing.py --calibrate`; holds for these examples alone."""
POSSIBLE = -1.0
UNSIGNALLED = -5.0
"""Natural logarithms of the prior odds of a tool against none, with a signal that leaves a doubt and without any: most
texts with such a signal need no tool. Chosen on 130 texts without a certain signal, 8 of which need one."""


def _choice_request(asking: Asking) -> LLMRequest:
    # The same words in the same order whichever tools are on: so the calibration holds, and the server's cache.
    named = [*WORDS.values(), *(tool.name for tool in asking.tools if tool.name not in WORDS), NONE]
    prior = _prior(asking)
    examples = [
        message
        # Where the text settles it there is nothing to learn from them, and reading them takes most of the time.
        for text, word in (() if asking.certain else _EXAMPLES)
        for message in (Message("user", text), Message("assistant", word if asking.biased else json.dumps(word)))
    ]
    asked = LLMRequest(
        model="",
        system=f"Sort each request into one topic: {', '.join(named)}.",
        messages=(*examples, Message("user", _shortened(asking.text, LONGEST_FOR_SMALL))),
        temperature=0.0,
        max_tokens=MOST_TOKENS_FOR_SMALL,
    )
    if not asking.biased:
        return msgspec.structs.replace(asked, response_schema={"type": "string", "enum": list(prior)})
    leaning = CALIBRATION.get(asking.model, {})
    grammar = " | ".join(json.dumps(word) for word in prior)
    odds = [[word, round(odds - leaning.get(word, 0.0), 2)] for word, odds in prior.items()]
    return msgspec.structs.replace(asked, extra={"grammar": f"root ::= {grammar}", "logit_bias": odds})


def _prior(asking: Asking) -> dict[str, float]:
    """The words that may be chosen, with their log-odds before the model is asked.

    What the text leaves no doubt about is settled: then only these words may be chosen. Where nothing is known of how
    a model leans, or its server takes no odds, a tool needs a signal to be chosen at all.
    """
    if asking.certain:
        return {_word(signal.tool): 0.0 for signal in asking.certain}
    signalled = {signal.tool for signal in asking.possible}
    open_to_all = asking.biased and asking.model in CALIBRATION
    return {
        _word(tool.name): POSSIBLE if tool.name in signalled else UNSIGNALLED
        for tool in asking.tools
        if tool.name in signalled or (open_to_all and tool.name in WORDS)
    } | {NONE: 0.0}


def _word(tool: str) -> str:
    return WORDS.get(tool, tool)


def _chosen(answer: str, asking: Asking) -> Decision | Malformed:
    word = re.sub(r"^\W+|\W+$", "", answer)
    allowed = _prior(asking)
    if word not in allowed:
        return Malformed(f"it is not one of the words {', '.join(allowed)}")
    if asking.certain:
        names = tuple(signal.tool for signal in asking.certain)
        reason = "; ".join(f"{signal.tool}: {signal.reason}" for signal in asking.certain)
        if len(names) > 1:
            reason += f"; of these the model named {word}"
    else:
        names = tuple(tool.name for tool in asking.tools if _word(tool.name) == word)
        found = {signal.tool: signal.reason for signal in asking.possible}
        considered = (
            "; ".join(f"{tool} was possible: {why}" for tool, why in found.items()) or "the text gave no signal"
        )
        reason = f"the model chose {word}; {considered}"
    return Decision(_intent(asking, names), names, _complexity(asking, names), "model", reason=reason)


# ------------------------------------------------------------------ in common

_INTENTS = {
    "calculator": "calculate",
    "clock": "tell the date or time",
    "read_file": "read a file",
    "list_files": "list files",
    "search_timeline": "recall an earlier conversation",
    "fetch_url": "read a page",
}


def _intent(asking: Asking, names: tuple[str, ...]) -> str:
    return ", then ".join(_INTENTS.get(name, name) for name in names) or kind_of(asking.text)


def _complexity(asking: Asking, names: tuple[str, ...]) -> Complexity:
    # A very small model's own opinion was measured: no weight of it did better than the guess alone.
    return complexity_of(asking.text, len(names))


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2].rstrip()} … {text[-most // 2 :].lstrip()}"
