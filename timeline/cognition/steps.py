"""The steps before the answer: which tools a prompt needs, and what they find out; every call and every tool recorded.

Degrades before it fails: no route that can be read → one repair → the tools' own signals → no tools. A step whose
models can't be had at all ends the turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress

import msgspec

from timeline.cognition import routing
from timeline.cognition.prompts import tool_arguments, tool_system, user_message
from timeline.cognition.tools import Signal, ToolOutcome, Tools, Workspace
from timeline.cognition.turn import Ask, Record, fitting
from timeline.config import Complexity
from timeline.errors import (
    DISPENSABLE,
    ContextTooLong,
    StoreError,
    TimelineError,
    ToolError,
)
from timeline.events import (
    ErrorInfo,
    Event,
    EventData,
    MessageRef,
    StepCompleted,
    StepFailed,
    ToolCalled,
    ToolFailed,
    ToolReturned,
    TurnFailed,
)
from timeline.llm.attempt import CallEnd, error_info
from timeline.llm.manager import LLMManager
from timeline.llm.pricing import estimate_tokens
from timeline.llm.ranking import Request
from timeline.llm.router import Candidate
from timeline.providers.base import (
    LLMProvider,
    LLMRequest,
    LLMResponse,
    Message,
    Part,
    TextPart,
    ToolCall,
    parse_arguments,
)
from timeline.providers.base import Tool as ToolSchema

__all__ = ["Steps", "is_small", "route_request"]

MOST_CALLS = 16
"""Tools that a model may call at once."""
INSTRUCTIONS_TOKENS = 300
"""Of the route's request without the user's words and the tools."""
TOOLS_TOKENS = 200
"""Of the descriptions of the tools that come with timeline."""
DECISION_TOKENS = 50
"""About what the route's answer has; it may have `routing.MOST_TOKENS`."""


def route_request(prompt: str, past: Sequence[Message] = ()) -> Request:
    """About what the route's call takes, known without opening the tools: those of others come on top.

    Args:
        prompt: The user's words.
        past: What was said before in the session.
    """
    said = (prompt[: routing.LONGEST_TEXT], *(message.text[: routing.LONGEST_PAST] for message in past[-2:]))
    return Request(estimate_tokens(*said) + INSTRUCTIONS_TOKENS + TOOLS_TOKENS, DECISION_TOKENS)


class Steps:
    """The route step and the tool step of one turn.

    Attributes:
        outcomes: What the tools found out.
        complexity: Of the prompt, as far as that was told.
        error: Why the turn failed; what led to it is recorded.
    """

    def __init__(
        self,
        record: Record,
        ask: Ask,
        manager: LLMManager,
        get: Callable[[str], LLMProvider],
        tools: Tools,
        workspace: Workspace,
        *,
        max_rounds: int,
    ) -> None:
        self._record = record
        self._ask = ask
        self._manager = manager
        self._get = get
        self._tools = tools
        self._workspace = workspace
        self._max_rounds = max_rounds
        self._end: CallEnd | None = None
        self._decision = routing.Decision("answer", (), "low", "none")
        self._without: list[str] = []
        self._degraded = False
        self.outcomes: list[ToolOutcome] = []
        self.complexity: Complexity | None = None
        self.error: TimelineError | None = None

    async def run(self) -> AsyncGenerator[Event]:
        """Take both steps.

        Yields:
            Events, as they are committed.

        Raises:
            TimelineError: Nothing was recorded.
            StoreError: It can't be recorded.
        """
        record, ask = self._record, self._ask
        step_id, began = "", record.elapsed_us
        if not self._tools.names or not ask.prompt:
            record.skip_step("route", 0, "no tools are on" if ask.prompt else "there are no words to route")
            record.skip_step("tool", 1, "no tool is needed")
            return
        try:
            signals = self._tools.signals(ask.prompt, self._workspace)
            step_id = record.begin_step("route", 0)
            async with aclosing(self._route(step_id, signals)) as events:
                async for event in events:
                    yield event
            decision = self._decision
            self.complexity = decision.complexity
            told = None if ask.private else _told(decision)
            reason = None if ask.private else decision.reason
            record.end_step(step_id, StepCompleted(record.elapsed_us - began, told, reason, decision.degraded))
            if not decision.tools:
                record.skip_step("tool", 1, "no tool is needed")
                return
            began = record.elapsed_us
            step_id = record.begin_step("tool", 1)
            async with aclosing(self._use_tools(step_id, decision, signals)) as events:
                async for event in events:
                    yield event
            without = "; ".join(self._without) or None
            duration = record.elapsed_us - began
            record.end_step(step_id, StepCompleted(duration, None, without, self._degraded))
        except StoreError:
            raise
        except TimelineError as exc:
            if not record.begun:
                raise
            error = error_info(exc, private=ask.private)
            failed = record.new(StepFailed(error, record.elapsed_us - began), step_id)
            for event in await record.commit(failed, record.new(TurnFailed(error, record.elapsed_us))):
                yield event
            self.error = exc

    # -------------------------------------------------------------- route

    async def _route(self, step_id: str, signals: Sequence[Signal]) -> AsyncGenerator[Event]:
        """Ask what the prompt needs; what came of it is `_decision`."""
        schemas = self._tools.schemas()
        said = (self._ask.prompt[: routing.LONGEST_TEXT], *(schema.description for schema in schemas))
        candidates = await self._ask.choose(
            "query_routing", None, Request(estimate_tokens(*said) + INSTRUCTIONS_TOKENS, DECISION_TOKENS)
        )
        first = candidates[0]
        small = is_small(self._get, first)
        if small:
            # What a small one is asked would make no sense to others.
            candidates = [candidate for candidate in candidates if is_small(self._get, candidate)]
        past = () if small else tuple(message for message, _ in self._ask.past[-2:])
        asking = routing.Asking(self._ask.prompt, schemas, tuple(signals), small=small, model=first.model, past=past)
        request = routing.request(asking)
        decided: routing.Decision | routing.Malformed
        for last in (False, True):
            try:
                async with aclosing(self._call(step_id, candidates, request, dispensable=True)) as events:
                    async for event in events:
                        yield event
            except DISPENSABLE as exc:
                # There is no answer whose mistake a model could be shown.
                decided = routing.Malformed(exc.kind)
                break
            answer = self._answer()
            decided = routing.decide(asking, answer)
            if isinstance(decided, routing.Decision) and not small:
                answered = Candidate(answer.provider, answer.model, "")
                decided = routing.supported(asking, decided) if is_small(self._get, answered) else decided
            if isinstance(decided, routing.Decision):
                self._decision = msgspec.structs.replace(decided, source="repaired", degraded=True) if last else decided
                return
            request = routing.repair(asking, decided)
        if isinstance(decided, routing.Malformed):
            self._decision = routing.by_signals(asking, decided)

    # -------------------------------------------------------------- tools

    async def _use_tools(
        self, step_id: str, decision: routing.Decision, signals: Sequence[Signal]
    ) -> AsyncGenerator[Event]:
        ask = self._ask
        fixed = self._beside(self._tools.schemas(decision.tools))
        tokens = fixed + estimate_tokens(
            *(message.text for message, _ in ask.past), user_message(ask.prompt, ask.files).text
        )
        candidates = await ask.choose("tool_calling", None, Request(tokens))
        native = [candidate for candidate in candidates if self._calls_tools(candidate)]
        # Whoever calls tools comes before who doesn't, though not before what was wanted where it only stands in.
        if native and (native[0] == candidates[0] or not native[0].fallback):
            async with aclosing(self._natively(step_id, native, decision)) as events:
                async for event in events:
                    yield event
            if self.outcomes or not self._degraded:
                return
            # Without the conversation, the words alone may do.
            others = native
        else:
            others = [candidate for candidate in candidates if candidate not in native]
        async with aclosing(self._by_arguments(step_id, others, decision, signals)) as events:
            async for event in events:
                yield event

    async def _natively(
        self, step_id: str, candidates: Sequence[Candidate], decision: routing.Decision
    ) -> AsyncGenerator[Event]:
        """The model calls tools, and is told what came of it, until it has no more wishes."""
        ask, record = self._ask, self._record
        schemas = self._tools.schemas(decision.tools)
        past = ask.past
        said = [(user_message(ask.prompt, ask.files), record.message)]
        rounds = 0
        while rounds < self._max_rounds:
            beside = self._beside(schemas) + estimate_tokens(*(_words(message) for message, _ in said[1:]))
            kept, _ = fitting([*past, said[0]], candidates[0].context, beside=beside)
            past = tuple(kept[:-1])
            messages = [*past, *said]
            request = LLMRequest(
                "",
                tuple(message for message, _ in messages),
                system=tool_system(ask.system),
                tools=schemas,
                temperature=ask.temperature,
                seed=ask.seed,
            )
            refs = [MessageRef("system", ref=record.keep(request.system or "")), *(ref for _, ref in messages)]
            try:
                async with aclosing(self._call(step_id, candidates, request, refs)) as events:
                    async for event in events:
                        yield event
            except ContextTooLong:
                if not past:
                    self._give_up("further tools")
                    break
                past = ()
                continue
            rounds += 1
            answer, call_id = self._answer(), self._end.call_id if self._end else ""
            if not answer.tool_calls:
                break
            parts: tuple[Part, ...] = (*answer.opaque, *([TextPart(answer.content)] if answer.content else []))
            content = parts if answer.opaque else answer.content
            said.append(
                (Message("assistant", content, tool_calls=answer.tool_calls), MessageRef("assistant", call=call_id))
            )
            begun = len(self.outcomes)
            async with aclosing(self._run(step_id, answer.tool_calls, decision.tools)) as events:
                async for event in events:
                    yield event
            for outcome in self.outcomes[begun:]:
                call, failed = outcome.call, outcome.error is not None
                told = Message("tool", outcome.text, tool_call_id=call.id, name=call.name, is_error=failed)
                said.append((told, MessageRef("tool", ref=record.keep(outcome.text))))
        if len(past) < len(ask.past):
            left_out = (len(ask.past) - len(past)) // 2
            self._without.insert(0, f"left out the oldest {left_out} turns: the model's context is full")

    def _give_up(self, what: str) -> None:
        self._degraded = True
        self._without.append(f"went on without {what}: the model's context is full")

    def _beside(self, schemas: Sequence[ToolSchema]) -> int:
        """About how many tokens go with the messages of a model that calls tools."""
        told = (f"{tool.name} {tool.description} {msgspec.json.encode(tool.parameters).decode()}" for tool in schemas)
        return estimate_tokens(tool_system(self._ask.system), *told)

    async def _by_arguments(
        self,
        step_id: str,
        candidates: Sequence[Candidate],
        decision: routing.Decision,
        signals: Sequence[Signal],
    ) -> AsyncGenerator[Event]:
        """The text itself gives the arguments, or the model writes them under the constraint of the tool's schema."""
        given = {signal.tool: signal.arguments for signal in reversed(signals) if signal.arguments is not None}
        calls = []
        for number, schema in enumerate(self._tools.schemas(decision.tools)):
            arguments = given.get(schema.name)
            if arguments is None and schema.parameters.get("required"):
                system = tool_arguments(schema)
                message = user_message(self._ask.prompt, ())
                request = LLMRequest(
                    "", (message,), system=system, temperature=0, response_schema=schema.parameters, max_tokens=256
                )
                refs = [MessageRef("system", ref=self._record.keep(system)), self._record.message]
                try:
                    async with aclosing(self._call(step_id, candidates, request, refs)) as events:
                        async for event in events:
                            yield event
                except ContextTooLong:
                    self._give_up(schema.name)
                    continue
                arguments = parse_arguments(self._answer().content)
            calls.append(ToolCall(f"call_{number}", schema.name, arguments or {}))
        async with aclosing(self._run(step_id, calls, decision.tools)) as events:
            async for event in events:
                yield event

    async def _run(self, step_id: str, calls: Sequence[ToolCall], offered: Sequence[str]) -> AsyncGenerator[Event]:
        """Run tools side by side; each is recorded before it begins and as soon as it has ended."""
        record, began = self._record, self._record.elapsed_us
        called = [
            record.new(
                ToolCalled(call.name, call.id, record.keep(msgspec.json.encode(call.arguments).decode())), step_id
            )
            for call in calls
        ]
        running: list[asyncio.Task[ToolOutcome]] = []
        recorded: set[int] = set()
        try:
            for event in await record.commit(*called):
                yield event
            running += [asyncio.create_task(self._outcome(call, n, offered)) for n, call in enumerate(calls)]
            while len(recorded) < len(running):
                await asyncio.wait(
                    [task for n, task in enumerate(running) if n not in recorded],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                ended = [n for n, task in enumerate(running) if n not in recorded and task.done()]
                rows = [record.new(self._ended(running[n].result()), step_id) for n in ended]
                recorded.update(ended)
                for event in await record.commit(*rows):
                    yield event
            # In the order of the calls, whichever was first.
            self.outcomes += [task.result() for task in running]
        except (asyncio.CancelledError, GeneratorExit):
            # In line for the log before the turn's own end is; nobody waits for it.
            took = record.elapsed_us - began
            error = ErrorInfo("interrupted", "the turn was stopped before this ended")
            rest = [call for n, call in enumerate(calls) if n not in recorded]
            with suppress(StoreError):
                record.enqueue(*(record.new(ToolFailed(call.name, call.id, took, error), step_id) for call in rest))
            raise
        finally:
            for task in running:
                task.cancel()
            if running:
                # Each ends in bounded time.
                await asyncio.wait(running)

    async def _outcome(self, call: ToolCall, number: int, offered: Sequence[str]) -> ToolOutcome:
        if number >= MOST_CALLS:
            error = ToolError(f"too many calls at once: only the first {MOST_CALLS} were run, call again for the rest")
            return ToolOutcome(call, call.arguments, 0, error=error_info(error))
        return await self._tools.run(call, self._workspace, offered)

    def _ended(self, outcome: ToolOutcome) -> EventData:
        call, error = outcome.call, outcome.error
        if error is None:
            return ToolReturned(call.name, call.id, outcome.duration_us, self._record.keep(outcome.text))
        if self._ask.private:
            error = error_info(ToolError(error.message), private=True)
        return ToolFailed(call.name, call.id, outcome.duration_us, error)

    # -------------------------------------------------------------- calls

    async def _call(
        self,
        step_id: str,
        candidates: Sequence[Candidate],
        request: LLMRequest,
        refs: Sequence[MessageRef] = (),
        *,
        dispensable: bool = False,
    ) -> AsyncGenerator[Event]:
        """Make one call that the user doesn't see; how it ended is `_end`.

        Raises:
            TimelineError: It failed on all candidates.
        """
        record = self._record
        refs = refs or record.refs_of(request)
        context = record.context(step_id, refs, shown=False, dispensable=dispensable)
        stream = self._manager.stream(candidates, request, context, opening=record.pending, contents=record.bodies)
        async with aclosing(stream) as items:
            async for item in items:
                if isinstance(item, Event):
                    record.committed()
                    yield item
                elif isinstance(item, CallEnd):
                    self._end = item
        if self._end is not None and self._end.error is not None:
            raise self._end.error

    def _answer(self) -> LLMResponse:
        """What the last call said."""
        if self._end is None or self._end.response is None:
            msg = "no call has answered"
            raise ValueError(msg)
        return self._end.response

    def _calls_tools(self, candidate: Candidate) -> bool:
        try:
            return self._get(candidate.provider).capabilities.tools
        except TimelineError:
            return False


def is_small(get: Callable[[str], LLMProvider], candidate: Candidate) -> bool:
    """Whether a model has to be asked in few words."""
    try:
        return get(candidate.provider).is_small(candidate.model)
    except TimelineError:
        return False


def _words(message: Message) -> str:
    """All that a message of this turn tells a model."""
    return message.text + "".join(
        f"{call.name} {msgspec.json.encode(call.arguments).decode()}" for call in message.tool_calls
    )


def _told(decision: routing.Decision) -> dict[str, object]:
    return {
        "intent": decision.intent,
        "tools": list(decision.tools),
        "complexity": decision.complexity,
        "source": decision.source,
    }
