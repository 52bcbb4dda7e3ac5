"""`timeline report`: sums that agree with the log."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.answers import FOREVER, answer, error, limited, refused, stream
from support.command import Backend, Home, Zygote

TODAY = dt.datetime.now().astimezone().date()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote, running_backend: Backend) -> Iterator[Home]:
    """Two sessions, two models: three calls that succeed, one refused, one that breaks."""
    path: Path = tmp_path_factory.mktemp("used") / "home"
    with Home(path, zygote, running_backend.url) as home:
        running_backend.says(answer("one", tokens=(10, 1)), answer("two", tokens=(20, 2)), limited())
        home.run("ask", "first")
        home.run("ask", "-c", "second")
        home.run("ask", "-c", "third")
        running_backend.says(answer("four", tokens=(30, 3)), stream("five!", error()))
        home.run("ask", "other", "-m", "t:big")
        home.run("ask", "-c", "again", "-m", "t:big")
        yield home


LONG = "meta-llama/llama-4-maverick-17b-128e-instruct"


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote, running_backend: Backend) -> Iterator[Home]:
    """Three sessions: one at a price and, once that is taken away, at none; one at a price; one at none, of a long name."""
    path: Path = tmp_path_factory.mktemp("priced") / "home"
    with Home(path, zygote, running_backend.url) as home:
        price = {"input_per_million": 1, "output_per_million": 10}
        running_backend.says(answer("one", tokens=(12_000, 1234)))
        home.configure({"prices": {"t:m": price, "t:big": price}}, local=False)
        home.run("ask", "Why is the sky blue, and the sunset red?")
        home.run("ask", "Who, then, would know?", "-m", "t:big")
        home.configure(local=False)
        running_backend.says(*[answer("two", tokens=(700, 50))] * 2, refused(500))
        home.run("ask", "again", "--session", home.events("session.started")[0]["session_id"])
        home.run("ask", "What about it?", "-m", f"t:{LONG}")
        home.run("ask", "-c", "And then?", "-m", f"t:{LONG}")
        yield home


def rows(home: Home, *argv: str) -> list[tuple[str, int, int, int, int]]:
    by = argv[argv.index("--by") + 1] if "--by" in argv else "day"
    found = home.run("report", "--json", *argv).json()["rows"]
    return [(row[by], row["calls"], row["failed"], row["input"], row["output"]) for row in found]


def test_days_sum_up_all_calls(used: Home) -> None:
    # The call that broke is estimated: `again` and what came before it are a few tokens.
    ((day, calls, failed, tokens_in, tokens_out),) = rows(used)

    assert (str(TODAY), 5, 2) == (day, calls, failed)
    assert (60, 6) <= (tokens_in, tokens_out) <= (70, 8)


def test_more_failures_than_calls_are_explained(home: Home, backend: Backend) -> None:
    home.configure({"retry": {"max_attempts": 3, "base_delay": 0.01}})
    backend.says(refused(500), refused(500), answer("at last"))
    home.run("ask", "Why?")

    assert [(str(TODAY), 1, 2, 5, 2)] == rows(home)
    assert "failed are attempts: a call that is tried again may fail more than once\n" == home.run("report").err


def test_models_and_sessions_are_told_apart(used: Home) -> None:
    first, second = [row["session_id"] for row in used.events("session.started")]

    (big, m) = rows(used, "--by", "model")

    assert (("t:big", 2, 1), ("t:m", 3, 1, 30, 3)) == (big[:3], m)
    assert [first, second] == [row[0] for row in rows(used, "--by", "session")]
    assert [("t", 5, 2)] == [row[:3] for row in rows(used, "--by", "provider")]
    assert [(str(TODAY)[:7], 5, 2)] == [row[:3] for row in rows(used, "--by", "month")]


def test_totals_are_the_sum_of_the_rows(used: Home) -> None:
    for by in ("day", "model", "session"):
        value = used.run("report", "--json", "--by", by).json()
        for name in ("calls", "failed", "input", "output", "estimated", "unpriced"):
            assert value["totals"][name] == sum(row[name] for row in value["rows"]), (by, name)


def test_one_session_alone(used: Home) -> None:
    value = used.run("report", "--json", "--session", "other").json()

    assert 2 == value["totals"]["calls"]


@pytest.mark.parametrize(
    ("argv", "calls"),
    [
        (("--since", "today"), 5),
        (("--since", "0d"), 5),
        (("--since", "7d"), 5),
        (("--since", "yesterday"), 5),
        (("--since", str(TODAY)), 5),
        (("--since", str(TODAY + dt.timedelta(days=1))), 0),
        (("--until", "today"), 5),
        (("--until", "1d"), 0),
        (("--until", "yesterday"), 0),
        (("--until", "2020-01-01"), 0),
        (("--since", "2020-01-01", "--until", "9999-12-31"), 5),
        (("--since", "0001-01-01"), 5),
    ],
)
def test_since_and_until_take_whole_days(used: Home, argv: tuple[str, ...], calls: int) -> None:
    result = used.run("report", "--json", *argv)

    assert (0, calls) == (result.code, result.json()["totals"]["calls"])


@pytest.mark.parametrize(
    "day", ["tomorrow", "2026-13-01", "99999999999d", "99999999999h", "1" * 5000 + "d", "²d", "", "d", "h"]
)
def test_a_day_that_can_t_be_is_refused(used: Home, day: str) -> None:
    result = used.run("report", "--since", day)

    if day:
        assert (2, "", 1) == (result.code, result.out, len(result.err.splitlines()))
        assert "YYYY-MM-DD" in result.err
    else:
        assert 0 == result.code


def test_hours_back_are_counted_from_now(home: Home, backend: Backend) -> None:
    backend.says(answer("x"))
    home.run("ask", "hi")
    calls = [
        home.run("report", "--json", *argv).json()["totals"]["calls"]
        for argv in (("--since", "1h"), ("--since", "24h"), ("--until", "1h"), ("--since", "0h"), ("--until", "0h"))
    ]

    assert [1, 1, 0, 0, 1] == calls


def test_csv_has_a_header_and_a_line_a_group(used: Home) -> None:
    result = used.run("report", "--csv", "--by", "model")

    table = list(csv.DictReader(io.StringIO(result.out)))
    assert ["t:big", "t:m"] == [row["model"] for row in table]
    assert ["2", "3"] == [row["calls"] for row in table]


def test_csv_leaves_an_unknown_cost_empty_and_keeps_what_is_known_of_it(priced: Home) -> None:
    table = csv.DictReader(io.StringIO(priced.run("report", "--csv", "--by", "model").out))

    found = {row["model"]: (row["nano_usd"], row["unpriced"]) for row in table}
    assert {"t:big": ("24340000", "0"), "t:m": ("24340000", "1"), f"t:{LONG}": ("", "1")} == found


@pytest.mark.parametrize("width", [24, 40, 60, 80, 120])
@pytest.mark.parametrize("by", ["day", "model", "session"])
def test_costs_and_names_are_whole_however_narrow_it_is(priced: Home, by: str, width: int) -> None:
    result = priced.run("report", "--by", by, env={"COLUMNS": str(width)})

    lines = [line.rstrip() for line in result.out.splitlines() if line.strip(" ─")]
    sessions = [row["session_id"] for row in priced.events("session.started")]
    names, costs = {
        "day": ([str(TODAY)], ["$0.049 + ?"]),
        "model": (["t:big", "t:m", f"t:{LONG}"], ["$0.024", "$0.024 + ?", "?", "$0.049 + ?"]),
        "session": ([value[:13] for value in sessions], ["$0.024 + ?", "$0.024", "?", "$0.049 + ?"]),
    }[by]
    seen = [match[0] for line in lines[1:] if (match := re.search(r"(?<= )(\$[\d.]+( \+ \?)?|\?)$", line))]
    assert ("cost", costs) == (lines[0].split()[-1], seen)
    first = "".join(line.split()[0] for line in lines)
    assert [] == [name for name in names if name not in first]
    # Below, there is nothing left that could be left out.
    assert width < 40 or max(map(len, lines)) <= width
    told = "; a wider terminal, --json or --csv shows all" in result.err
    assert ("input" not in lines[0] or "output" not in lines[0] or "failed" not in lines[0]) == told


def test_what_matters_least_is_left_out_first_and_named(priced: Home) -> None:
    result = priced.run("report", "--by", "session", env={"COLUMNS": "60"})

    assert ["session", "calls", "output", "cost"] == result.out.splitlines()[1].split()
    assert "left out for the width: failed, input; a wider terminal, --json or --csv shows all" in result.err


def test_the_heading_of_the_cost_counts_where_no_cost_is_as_long(home: Home, backend: Backend) -> None:
    backend.says(refused(500))
    home.run("ask", "first")

    lines = home.run("report", "--by", "model", env={"COLUMNS": "40"}).out.splitlines()

    assert ["model", "calls", "input", "output", "cost"] == lines[1].split()
    assert max(map(len, lines)) <= 40


def test_the_table_fits_and_marks_what_is_estimated(used: Home) -> None:
    result = used.run("report", "--by", "model", env={"COLUMNS": "60"})

    assert 0 == result.code
    assert max(len(line) for line in result.out.splitlines()) <= 60
    assert "t:big" in result.out
    assert "free" in result.out
    assert "estimates" in result.err


def test_at_60_columns_a_day_is_whole_beside_all_that_can_be_counted(home: Home, backend: Backend) -> None:
    backend.says(answer("one", tokens=(12_345, 1234)), refused(500), stream("two", FOREVER))
    home.run("ask", "first")
    home.run("ask", "second")
    process = home.start("ask", "third")
    process.read_until("two")
    process.send(signal.SIGINT)
    process.wait()

    lines = home.run("report", env={"COLUMNS": "60"}).out.splitlines()

    assert ["day", "calls", "failed", "stopped", "input", "output", "cost"] == lines[1].split()
    assert [str(TODAY), "3", "1", "1"] == lines[3].split()[:4]
    assert max(map(len, lines)) <= 60


def test_days_are_those_of_this_time_zone(used: Home) -> None:
    # 26 hours apart, as far as zones go: between them there is always a midnight.
    zones = [{"TZ": "UTC-14"}, {"TZ": "UTC+12"}]

    days = {used.run("report", "--json", env=zone).json()["rows"][0]["day"] for zone in zones}

    assert 2 == len(days)


def test_nothing_asked_is_said(home: Home, backend: Backend) -> None:
    backend.says(answer("x"))
    home.run("ask", "hi")

    result = home.run("report", "--until", "2020-01-01")

    assert (0, "", "nothing was asked in that time\n") == (result.code, result.out, result.err)


def test_where_nothing_was_ever_asked_the_report_says_so_and_its_totals_are_nothing(home: Home) -> None:
    totals = home.run("report", "--json").json()["totals"]

    assert "nothing was asked yet: 'timeline ask' does\n" == home.run("report").err
    assert (0, None, None) == (totals["calls"], totals["cost_state"], totals["cost_usd"] or None)
    assert 1 == len(home.run("report", "--csv").out.splitlines())
