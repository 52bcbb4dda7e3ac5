"""The catalogue: what may stand in the log, and how every released form of it is read."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import msgspec
import pytest
from support.stores import NOON, TickingClock, every_event

from timeline import events
from timeline.errors import StoreDamaged, StoreTooNew
from timeline.events import CATALOGUE, UPCASTERS, Clock, EventData, decode, encode

PUBLIC_TYPES = [
    "session.started",
    "session.renamed",
    "session.forked",
    "session.redacted",
    "turn.started",
    "turn.completed",
    "turn.failed",
    "turn.interrupted",
    "step.started",
    "step.completed",
    "step.skipped",
    "step.failed",
    "request.sent",
    "chunk.received",
    "response.annotated",
    "response.completed",
    "call.failed",
    "call.interrupted",
    "call.retry_scheduled",
    "call.rerouted",
    "call.cache_hit",
    "rate_limit.waited",
    "budget.alerted",
    "budget.exceeded",
    "tool.called",
    "tool.returned",
    "tool.failed",
    "batch.started",
    "batch.ended",
    "batch.submitted",
]


# ------------------------------------------------------------------ the catalogue


def test_catalogue_holds_exactly_the_documented_types() -> None:
    assert set(PUBLIC_TYPES) == set(CATALOGUE)


def test_every_type_has_an_example_with_no_field_at_its_default() -> None:
    examples = every_event()

    assert set(CATALOGUE.values()) == {type(example) for example in examples}
    for example in examples:
        for field in msgspec.structs.fields(example):
            assert getattr(example, field.name) != field.default, f"{example.type}.{field.name}"


@pytest.mark.parametrize("data", every_event(), ids=lambda data: data.type)
def test_every_type_round_trips(data: EventData) -> None:
    text = encode(data)

    assert data == decode(data.type, data.v, text)
    assert text == encode(decode(data.type, data.v, text))
    assert "\n" not in text


@pytest.mark.parametrize("data", every_event(), ids=lambda data: data.type)
def test_events_are_frozen(data: EventData) -> None:
    name = data.__struct_fields__[0]

    with pytest.raises(AttributeError):
        setattr(data, name, None)


def test_every_name_of_the_module_is_listed_and_exists() -> None:
    assert len(set(events.__all__)) == len(events.__all__)
    for name in events.__all__:
        assert hasattr(events, name)
    assert {cls.__name__ for cls in CATALOGUE.values()} <= set(events.__all__)


def test_a_field_that_a_later_release_added_is_ignored() -> None:
    assert events.SessionRenamed("x") == decode("session.renamed", 1, '{"title":"x","colour":"blue"}')


# ------------------------------------------------------------------ what can't be read


def test_an_unknown_type_is_from_a_newer_release() -> None:
    with pytest.raises(StoreTooNew, match=r"'session\.dreamt' version 1 is from a newer release: update"):
        decode("session.dreamt", 1, "{}")


def test_a_higher_version_is_from_a_newer_release() -> None:
    with pytest.raises(StoreTooNew, match=r"'session\.renamed' version 2"):
        decode("session.renamed", 2, '{"title":"x"}')


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", '"title"', "{}", '{"title":1}', '{"title":null}', '{"title":"x"', '{"title":"x"}}', "\x00"],
)
def test_a_body_that_is_none_of_its_type_is_damage(text: str) -> None:
    with pytest.raises(StoreDamaged, match=r"'session\.renamed' event can't be read .*'timeline store verify'"):
        decode("session.renamed", 1, text)


@pytest.mark.parametrize("v", [0, -1])
def test_a_version_that_never_was_is_damage(v: int) -> None:
    with pytest.raises(StoreDamaged):
        decode("session.renamed", v, '{"title":"x"}')


# ------------------------------------------------------------------ retired versions


class Painted(EventData, frozen=True):
    """A type that has seen three releases: `colour`, then `colours`, then `colours` and `by`."""

    type: ClassVar[str] = "test.painted"
    v: ClassVar[int] = 3
    colours: tuple[str, ...]
    by: str


TABLES: dict[str, Any] = {
    "catalogue": {"test.painted": Painted},
    "upcasters": {
        ("test.painted", 1): lambda body: {"colours": [body["colour"]]},
        ("test.painted", 2): lambda body: {**body, "by": "nobody"},
    },
}


@pytest.mark.parametrize(
    ("v", "text"),
    [
        (1, '{"colour":"blue"}'),
        (2, '{"colours":["blue"]}'),
        (3, '{"colours":["blue"],"by":"nobody"}'),
    ],
)
def test_every_retired_version_is_led_to_the_present_one(v: int, text: str) -> None:
    assert Painted(("blue",), "nobody") == decode("test.painted", v, text, **TABLES)


@pytest.mark.parametrize("text", ["{}", "null", "[1]", "{", '{"colour":{}}'])
def test_damage_in_a_retired_version_is_damage(text: str) -> None:
    with pytest.raises(StoreDamaged):
        decode("test.painted", 1, text, **TABLES)


def test_every_version_before_the_present_one_has_an_upcaster() -> None:
    retired = {(name, v) for name, cls in CATALOGUE.items() for v in range(1, cls.v)}

    assert retired == set(UPCASTERS)


# ------------------------------------------------------------------ time and ids


def test_an_id_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    clock = TickingClock()

    made = uuid.UUID(clock.uuid7())

    assert (7, uuid.RFC_4122) == (made.version, made.variant)
    assert (NOON + 1000) // 1000 == made.int >> 80


def test_ids_made_later_sort_later() -> None:
    class Fine(TickingClock):
        def now(self) -> int:
            self._now += 1
            return self._now

    clock = Fine()

    ids = [clock.uuid7() for _ in range(3000)]

    assert sorted(ids) == ids
    assert len(set(ids)) == len(ids)


def test_ids_of_the_real_clock_never_meet() -> None:
    clock = Clock()

    assert 2000 == len({clock.uuid7() for _ in range(1000)} | {clock.short_id() for _ in range(1000)})


def test_a_short_id_is_12_characters_that_nobody_mistakes() -> None:
    made = {TickingClock(seed).short_id() for seed in range(200)}

    assert {12} == {len(one) for one in made}
    assert set("0123456789abcdefghjkmnpqrstvwxyz") == set("".join(made))
