"""Whom a call may go to, from made-up facts: no clock, no network, no file."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timeline.config import Auto, ModelRef
from timeline.errors import MissingKey
from timeline.events import Cost
from timeline.llm.pricing import ListPrice, Rates
from timeline.llm.ranking import ModelFacts, Request
from timeline.llm.router import Asked, Facts, LastAnswer, Routed, route
from timeline.projections.health import ModelStats
from timeline.providers.base import Capabilities

NOW = 1_000_000
HERE = ModelRef("embedded", "smollm2")
A, B, C = ModelRef("openai", "a"), ModelRef("groq", "b"), ModelRef("anthropic", "c")


def price(dollars_in: float, dollars_out: float) -> ListPrice:
    rates = Rates(Decimal(str(dollars_in)), Decimal(str(dollars_out)), None, None, None)
    return ListPrice("priced", rates)


def costing(price: ListPrice, **more: Any) -> ModelFacts:
    """Of a thousand tokens in, and as many out."""
    rates = price.rates
    nano = None if rates is None else int(((rates.input or 0) + (rates.output or 0)) * 1_000_000)
    return ModelFacts(price=price, estimate=Cost(price.state, nano), **more)


def facts(*configured: Any, known: dict[ModelRef, ModelFacts] | None = None, **more: Any) -> Facts:
    models = {HERE: costing(here=True, price=ListPrice("free"))} | (known or {})
    return Facts(**{"route": configured, "fallback": (HERE,), "models": models, **more})


def asked(*models: Any, **more: Any) -> Asked:
    request = Request(**{name: more.pop(name) for name in Request.__struct_fields__ if name in more})
    return Asked(models, request=request, **more)


def chain(routed: Routed) -> list[str]:
    return [str(candidate) for candidate in routed.candidates]


def whys(routed: Routed) -> list[str]:
    return [candidate.why for candidate in routed.candidates]


def decide(asked: Asked, facts: Facts) -> Routed:
    return route(asked, facts, NOW)


# ------------------------------------------------------------------ who comes first


def test_what_was_asked_for_comes_first_and_the_fallback_last() -> None:
    routed = decide(asked(A, B), facts(C, last=LastAnswer(C, "asked for")))

    assert ["openai:a", "groq:b", "embedded:smollm2"] == chain(routed)
    assert ["asked for", "asked for", "fallback"] == whys(routed)
    assert [False, False, True] == [candidate.fallback for candidate in routed.candidates]


def test_the_model_that_a_session_was_asked_with_stays() -> None:
    routed = decide(asked(), facts(B, last=LastAnswer(A, "asked for")))

    assert ["openai:a", "embedded:smollm2"] == chain(routed)
    assert "the session's model" == routed.candidates[0].why
    again = decide(asked(), facts(B, last=LastAnswer(A, "the session's model")))
    assert chain(routed) == chain(again)


def test_a_session_goes_on_with_the_model_of_its_route_and_the_others_behind_it() -> None:
    last = LastAnswer(B, "default route, choice 2 of 2")

    assert ["groq:b", "openai:a", "embedded:smollm2"] == chain(decide(asked(), facts(A, B, last=last)))
    assert ["groq:b", "embedded:smollm2"] == chain(decide(asked(), facts(C, last=last)))


@pytest.mark.parametrize(
    "why", ["fallback", "fallback, as x", "complexity low", "default route, auto:cheapest: free, the only one"]
)
def test_a_choice_of_the_moment_does_not_bind_a_session(why: str) -> None:
    routed = decide(asked(), facts(A, last=LastAnswer(B, why)))

    assert ["openai:a", "embedded:smollm2"] == chain(routed)


def test_who_wrote_the_answers_does_not_take_over_the_other_steps() -> None:
    known = facts(A, route_name="query_routing", last=LastAnswer(B, "response_formatting route"))

    assert "openai:a" == chain(decide(asked(task="query_routing"), known))[0]
    explicit = facts(A, route_name="query_routing", last=LastAnswer(B, "asked for"))
    assert "groq:b" == chain(decide(asked(task="query_routing"), explicit))[0]


def test_a_route_is_asked_in_the_order_of_its_list() -> None:
    routed = decide(asked(task="tool_calling"), facts(A, B, route_name="tool_calling"))

    assert ["openai:a", "groq:b", "embedded:smollm2"] == chain(routed)
    assert ["tool_calling route", "tool_calling route, choice 2 of 2", "fallback"] == whys(routed)


def test_without_a_fallback_the_chain_ends_with_the_route() -> None:
    assert ["openai:a"] == chain(decide(asked(), facts(A, fallback=())))


def test_nobody_is_asked_twice() -> None:
    assert ["embedded:smollm2", "openai:a"] == chain(decide(asked(HERE, A, HERE), facts()))
    assert not decide(asked(HERE), facts()).candidates[0].fallback


# ------------------------------------------------------------------ complexity


def test_complexity_chooses_who_writes_the_answer() -> None:
    known = facts(C, tiers={"low": (B,), "high": (A,)})
    hard = asked(task="response_formatting", complexity="high")

    assert ["openai:a", "embedded:smollm2"] == chain(decide(hard, known))
    assert "complexity high" == decide(hard, known).candidates[0].why
    assert "anthropic:c" == chain(decide(asked(task="response_formatting", complexity="medium"), known))[0]
    assert "anthropic:c" == chain(decide(asked(task="tool_calling", complexity="high"), known))[0]
    assert "groq:b" == chain(decide(asked(B, task="response_formatting", complexity="high"), known))[0]


def test_complexity_is_asked_anew_with_every_turn_of_a_session() -> None:
    hard = asked(task="response_formatting", complexity="high")

    assert "openai:a" == chain(decide(hard, facts(C, tiers={"high": (A,)}, last=LastAnswer(C, "default route"))))[0]
    assert "groq:b" == chain(decide(hard, facts(C, tiers={"high": (A,)}, last=LastAnswer(B, "asked for"))))[0]


# ------------------------------------------------------------------ auto


CHEAP, MIDDLE, DEAR = price(0.15, 0.6), price(1, 2), price(5, 25)


def offering(strategy: str, known: dict[ModelRef, ModelFacts], **more: Any) -> Facts:
    return facts(Auto(strategy), known=known, offered=tuple(known), **more)  # type: ignore[arg-type]


def test_cheapest_is_by_the_price_table_and_the_others_stay_behind_in_order() -> None:
    known = {A: costing(DEAR), B: costing(CHEAP), C: costing(MIDDLE)}
    routed = decide(asked(input_tokens=100), offering("cheapest", known))

    assert ["groq:b", "anthropic:c", "openai:a", "embedded:smollm2"] == chain(routed)
    assert (
        "default route, auto:cheapest: $0.15 in and $0.60 out per million tokens, the cheapest of 3"
        == routed.candidates[0].why
    )


def test_an_unknown_price_is_never_the_cheapest_and_free_always_is() -> None:
    known = {A: ModelFacts(), B: costing(DEAR), C: costing(ListPrice("free"))}
    routed = decide(asked(), offering("cheapest", known))

    assert ["anthropic:c", "groq:b", "openai:a"] == chain(routed)[:3]
    assert "of unknown price, number 3 of 3" in routed.candidates[2].why


def measured(first: float, rate: float, **more: Any) -> ModelFacts:
    stats = ModelStats(calls=10, time_to_first_token=first, tokens_per_second=rate, **more)
    return costing(MIDDLE, stats=stats)


def test_fastest_is_by_past_calls_and_who_was_never_asked_stands_behind() -> None:
    known = {A: costing(CHEAP), B: measured(0.2, 20), C: measured(0.9, 300)}
    routed = decide(asked(), offering("fastest", known))

    assert ["anthropic:c", "groq:b", "openai:a"] == chain(routed)[:3]
    assert "0.9 s to the first token and 300 tokens a second, the fastest of 3" in routed.candidates[0].why
    assert "not measured yet" in routed.candidates[2].why
    # A short answer is over before the other has begun.
    assert "groq:b" == chain(decide(asked(max_tokens=5), offering("fastest", known)))[0]


def test_who_often_fails_is_not_fast() -> None:
    known = {A: measured(0.5, 100, error_rate=0.5), B: measured(0.5, 80)}

    assert "groq:b" == chain(decide(asked(), offering("fastest", known)))[0]


def test_best_is_the_order_of_the_users_list() -> None:
    known = {B: costing(CHEAP), A: costing(DEAR)}
    routed = decide(asked(), offering("best", known))

    assert ["groq:b", "openai:a"] == chain(routed)[:2]
    assert "auto:best: number 1 in the list of models, the best of 2" in routed.candidates[0].why


def test_balanced_is_the_least_sum_of_places_by_price_and_by_time() -> None:
    known = {
        A: costing(DEAR, stats=ModelStats(9, 0, 0.1, 400)),
        B: costing(MIDDLE, stats=ModelStats(9, 0, 0.2, 300)),
        C: costing(CHEAP, stats=ModelStats(9, 0, 3.0, 9)),
        HERE: costing(here=True, price=ListPrice("free")),
    }

    # Places: A 4+1, B 3+2, C 2+3, and HERE 1+4, never measured: all alike, so the list decides; without HERE too.
    assert ["openai:a", "groq:b", "anthropic:c", "embedded:smollm2"] == chain(
        decide(asked(), offering("balanced", known))
    )
    del known[A]
    assert "groq:b" == chain(decide(asked(), offering("balanced", known)))[0]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"open_until": NOW + 1}, "behind the others as its circuit is open after failures"),
        ({"limited_until": NOW + 1}, "behind the others as its rate limit is reached"),
    ],
)
def test_who_had_better_not_be_asked_stands_behind_the_others(state: dict[str, Any], said: str) -> None:
    known = {A: costing(CHEAP, **state), B: costing(DEAR)}
    routed = decide(asked(), offering("cheapest", known))

    assert ["groq:b", "openai:a"] == chain(routed)[:2]
    assert said in routed.candidates[1].why


def test_who_is_well_again_is_asked_again() -> None:
    known = {A: costing(CHEAP, open_until=NOW, limited_until=NOW - 1), B: costing(DEAR)}

    assert "openai:a" == chain(decide(asked(), offering("cheapest", known)))[0]


def test_equal_ones_stay_in_the_users_order() -> None:
    for order in ((A, B, C), (C, B, A)):
        known = {ref: costing(CHEAP) for ref in order}
        for strategy in ("cheapest", "fastest", "best", "balanced"):
            assert [str(ref) for ref in order] == chain(decide(asked(), offering(strategy, known)))[:3]


def test_a_list_may_mix_models_and_strategies() -> None:
    known = {A: costing(CHEAP), B: costing(DEAR)}
    mixed = facts(B, Auto("cheapest"), known=known, offered=(A, B))

    assert ["groq:b", "openai:a", "embedded:smollm2"] == chain(decide(asked(), mixed))


def test_what_auto_chose_for_the_user_is_kept_by_the_session() -> None:
    known = {A: costing(CHEAP), B: costing(DEAR)}
    first = decide(asked(Auto("cheapest")), facts(known=known, offered=(A, B))).candidates[0]

    assert first.why.startswith("asked for, auto:cheapest: ")
    going_on = decide(asked(), facts(B, last=LastAnswer(A, first.why)))
    assert ["openai:a", "embedded:smollm2"] == chain(going_on)


# ------------------------------------------------------------------ who may not be asked


@pytest.mark.parametrize(
    ("need", "said"), [("tools", "calls no tools"), ("schema", "follows no schema"), ("images", "takes no images")]
)
def test_who_can_not_do_what_is_asked_is_left_out(need: str, said: str) -> None:
    known = {
        A: ModelFacts(capabilities=Capabilities()),
        B: ModelFacts(capabilities=Capabilities(True, True, True, True)),
    }
    routed = decide(asked(**{need: True}), facts(A, B, known=known, fallback=()))

    assert ["groq:b"] == chain(routed)
    assert [f"openai:a {said}"] == [str(each) for each in routed.rejected]
    assert f"default route, choice 2 of 2, as openai:a {said}" == routed.candidates[0].why


def test_a_prompt_that_is_too_long_goes_to_who_has_room_for_it() -> None:
    known = {A: ModelFacts(context=8_000), B: ModelFacts(context=128_000), C: ModelFacts()}
    routed = decide(asked(input_tokens=7_500, max_tokens=1_000), facts(A, B, C, known=known))

    assert ["groq:b", "anthropic:c", "embedded:smollm2"] == chain(routed)
    assert [128_000, None, None] == [candidate.context for candidate in routed.candidates]
    assert (
        "has a context of 8,000 tokens, which is too small for about 7,500 and 1,000 of the answer"
        == routed.rejected[0].why
    )


def test_if_nobody_seems_to_have_room_those_with_most_are_asked_all_the_same() -> None:
    known = {A: ModelFacts(context=8_000), B: ModelFacts(context=16_000), HERE: ModelFacts(here=True, context=8_192)}
    routed = decide(asked(input_tokens=20_000), facts(A, B, known=known))

    assert ["groq:b", "openai:a", "embedded:smollm2"] == chain(routed)
    assert () == routed.rejected


def test_wrong_settings_of_one_do_not_stop_the_others() -> None:
    known = {A: ModelFacts(problem=MissingKey("openai needs an API key"))}
    routed = decide(asked(), facts(A, B, known=known))

    assert ["groq:b", "embedded:smollm2"] == chain(routed)
    assert ["openai:a can't be used: openai needs an API key"] == [str(each) for each in routed.rejected]


def test_the_fallback_does_not_hide_a_mistake() -> None:
    known = {A: ModelFacts(problem=MissingKey("openai needs an API key"))}
    routed = decide(asked(A), facts(known=known))

    assert () == routed.candidates
    assert ["unusable"] == [each.ground for each in routed.rejected]
    text_only = {A: ModelFacts(capabilities=Capabilities()), HERE: ModelFacts(here=True)}
    assert () == decide(asked(A, images=True), facts(known=text_only)).candidates


# ------------------------------------------------------------------ offline


def test_offline_only_models_on_this_machine_are_asked() -> None:
    routed = decide(
        asked(),
        facts(A, ModelRef("ollama", "x"), known={ModelRef("ollama", "x"): ModelFacts(here=True)}, offline="configured"),
    )

    assert ["ollama:x", "embedded:smollm2"] == chain(routed)
    assert (
        "default route, choice 2 of 2, as openai:a is not on this machine, and only such may be asked (offline)"
        == routed.candidates[0].why
    )


def test_offline_the_fallback_stands_in_and_says_for_whom() -> None:
    routed = decide(asked(A), facts(offline="no network"))

    assert ["embedded:smollm2"] == chain(routed)
    assert "fallback, as openai:a is not on this machine, and there is no network" == routed.candidates[0].why
    assert routed.candidates[0].fallback


def test_what_the_user_forbade_is_not_asked_and_what_only_seems_out_of_reach_is_tried() -> None:
    assert () == decide(asked(A), facts(fallback=(), offline="configured")).candidates
    assert ["openai:a"] == chain(decide(asked(A), facts(fallback=(), offline="no network")))


def test_auto_chooses_among_what_is_here_when_offline() -> None:
    known = {A: costing(CHEAP), HERE: costing(here=True, price=ListPrice("free"))}
    routed = decide(asked(), offering("best", known, offline="configured"))

    assert ["embedded:smollm2"] == chain(routed)
    assert "the only one" in routed.candidates[0].why
    assert ["openai:a"] == [f"{each.provider}:{each.model}" for each in routed.rejected]


# ------------------------------------------------------------------ whatever the facts

refs = st.sampled_from([A, B, C, HERE])
choices = st.one_of(refs, st.builds(Auto, st.sampled_from(["cheapest", "fastest", "best", "balanced"])))
model_facts = st.builds(
    ModelFacts,
    here=st.booleans(),
    problem=st.sampled_from([None, MissingKey("no key")]),
    capabilities=st.sampled_from([None, Capabilities(), Capabilities(images=True)]),
    context=st.sampled_from([None, 100, 10_000]),
    price=st.sampled_from([CHEAP, DEAR, ListPrice("free"), ListPrice("unpriced")]),
    stats=st.sampled_from([None, ModelStats(10, 0.9, 0.1, 10.0), ModelStats(10, 0, 0.1, 10.0)]),
    open_until=st.sampled_from([None, NOW - 1, NOW + 1]),
)


questions = st.builds(
    Asked,
    st.lists(choices, max_size=2).map(tuple),
    request=st.builds(Request, st.sampled_from([1, 5_000]), images=st.booleans()),
)
all_facts = st.builds(
    Facts,
    route=st.lists(choices, min_size=1, max_size=3).map(tuple),
    fallback=st.lists(choices, max_size=1).map(tuple),
    offered=st.just((A, B, HERE)),
    models=st.dictionaries(refs, model_facts),
    offline=st.sampled_from([None, "configured", "no network"]),
)


@given(questions, all_facts)
def test_whoever_is_asked_may_be_asked_and_those_who_stand_in_come_last(question: Asked, known: Facts) -> None:
    found = decide(question, known)
    models = [known.of(ModelRef(each.provider, each.model)) for each in found.candidates]

    assert found == decide(question, known)
    assert len(chain(found)) == len(set(chain(found)))
    assert not set(chain(found)) & {f"{each.provider}:{each.model}" for each in found.rejected}
    assert [] == [each for each in models if each.problem]
    assert known.offline != "configured" or all(each.here for each in models)
    assert sorted(each.fallback for each in found.candidates) == [each.fallback for each in found.candidates]
