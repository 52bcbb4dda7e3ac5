"""A conversation over several processes, and what `timeline sessions` does with it."""

from __future__ import annotations

import csv
import io
import signal

import pytest
from support.answers import FOREVER, answer, error, refused, stream
from support.command import Backend, Home, Result


def ask(home: Home, backend: Backend, reply: str, *argv: str) -> Result:
    """A turn that succeeds."""
    backend.says(answer(reply))
    result = home.run("ask", *argv)
    assert (0, reply + "\n") == (result.code, result.out), result.err
    return result


def ids(home: Home) -> list[str]:
    return [row["session_id"] for row in home.events("session.started")]


# ------------------------------------------------------------------ going on


def test_a_width_of_nothing_is_no_width(home: Home, backend: Backend) -> None:
    backend.says(answer("Yes"))
    home.run("ask", "Why?")

    assert "Why?" in home.run("sessions", "list", env={"COLUMNS": "0"}).out


def test_continue_sends_the_conversation_so_far(home: Home, backend: Backend) -> None:
    ask(home, backend, "One", "first")
    ask(home, backend, "Two", "-c", "second")
    ask(home, backend, "Three", "--continue", "third")

    said = [("user", "first"), ("assistant", "One"), ("user", "second"), ("assistant", "Two"), ("user", "third")]
    assert said == backend.messages()
    assert 1 == len(set(ids(home)))


def test_a_chat_of_n_turns_stores_each_message_once(home: Home, backend: Backend) -> None:
    ask(home, backend, "Answer 0", "Question 0", "-s", "Be brief")
    for number in range(1, 5):
        ask(home, backend, f"Answer {number}", "-c", f"Question {number}")

    assert sorted(["Be brief", *(f"Question {number}" for number in range(5))]) == sorted(home.bodies())
    everything = home.bytes()
    # In `contents` once; the first one is also the title, in its event and in the list of sessions.
    assert [3, 1, 1, 1, 1] == [everything.count(b"Question %d" % number) for number in range(5)]
    assert [1] * 5 == [everything.count(b"Answer %d" % number) for number in range(5)]


def test_each_request_refers_to_what_was_sent(home: Home, backend: Backend) -> None:
    ask(home, backend, "One", "first", "-s", "Be brief")
    ask(home, backend, "Two", "-c", "second")

    first, second = home.events("request.sent")
    assert ["system", "user"] == [message["role"] for message in first["data"]["messages"]]
    system, user, assistant, last = second["data"]["messages"]
    assert [system, user] == first["data"]["messages"]
    assert {"role": "assistant", "call": first["call_id"]} == assistant
    assert ("user", False) == (last["role"], last["ref"] == user["ref"])


def test_a_session_is_named_by_its_id_a_prefix_its_title_or_last(home: Home, backend: Backend) -> None:
    ask(home, backend, "Other", "Another one")
    ask(home, backend, "One", "Why is it so?")
    wanted = ids(home)[1]
    said = [("user", "Why is it so?"), ("assistant", "One")]

    for name in ("last", wanted, wanted[:-4], "Why is it so?", "why IS it so?"):
        ask(home, backend, "Two", "--session", name, "second")

        said += [("user", "second")]
        assert said == backend.messages(), name
        said += [("assistant", "Two")]
        # Another one is the last now.
        ask(home, backend, "Last", "The last one")


def test_last_is_the_session_used_last_not_the_newest(home: Home, backend: Backend) -> None:
    ask(home, backend, "One", "first session")
    ask(home, backend, "Two", "second session")
    ask(home, backend, "Three", "--session", ids(home)[0], "go on")

    ask(home, backend, "Four", "-c", "and on")

    assert ("user", "first session") == backend.messages()[0]


def test_the_system_prompt_is_carried_on_and_can_be_replaced(home: Home, backend: Backend) -> None:
    ask(home, backend, "One", "first", "-s", "Be brief")
    ask(home, backend, "Two", "-c", "second")

    assert ("system", "Be brief") == backend.messages()[0]

    ask(home, backend, "Three", "-c", "third", "-s", "Be kind")
    ask(home, backend, "Four", "-c", "fourth")

    assert [("system", "Be kind")] == [message for message in backend.messages() if message[0] == "system"]


def test_an_interrupted_answer_stays_in_the_conversation(home: Home, backend: Backend) -> None:
    backend.says(stream("Half an ", "answer", FOREVER))
    process = home.start("ask", "first")
    process.read_until("answer")
    process.send(signal.SIGINT)
    process.wait()

    ask(home, backend, "Two", "-c", "second")

    assert [("user", "first"), ("assistant", "Half an answer"), ("user", "second")] == backend.messages()


def test_a_failed_turn_without_an_answer_leaves_no_hole_in_the_conversation(home: Home, backend: Backend) -> None:
    backend.says(refused(500))
    home.run("ask", "first")
    ask(home, backend, "Two", "-c", "second")

    assert [("user", "second")] == backend.messages()

    backend.says(stream("Half", error()))
    home.run("ask", "-c", "third")
    ask(home, backend, "Four", "-c", "fourth")

    said = [("user", "second"), ("assistant", "Two"), ("user", "third"), ("assistant", "Half"), ("user", "fourth")]
    assert said == backend.messages()


def test_attachments_stay_in_the_conversation(home: Home, backend: Backend) -> None:
    (home.work / "notes.txt").write_text("remember the milk")
    ask(home, backend, "One", "what?", "-f", "notes.txt")
    ((_, sent),) = backend.messages()

    ask(home, backend, "Two", "-c", "sure?")

    assert ("user", sent) == backend.messages()[0]
    assert "remember the milk" in sent


def test_a_private_turn_is_not_sent_again(home: Home, backend: Backend) -> None:
    ask(home, backend, "One", "first")
    ask(home, backend, "Two", "-c", "secret", "--private")
    ask(home, backend, "Three", "-c", "third")

    assert [("user", "first"), ("assistant", "One"), ("user", "third")] == backend.messages()


NO_SESSION = {
    "unknown": (("--session", "nope"), 6),
    "empty": (("--session", ""), 6),
    "wildcard": (("--session", "%"), 6),
    "ambiguous": (("--session", "01"), 2),
    "both": (("-c", "--session", "last"), 2),
}


def test_no_session_or_too_many_ask_nothing(home: Home, backend: Backend) -> None:
    ask(home, backend, "One", "first")
    ask(home, backend, "Two", "second")
    before = home.events()
    backend.says(answer("never"))

    for name, (argv, code) in NO_SESSION.items():
        result = home.run("ask", "third", *argv)

        assert (code, "", 1) == (result.code, result.out, len(result.err.splitlines())), name
        assert ([], before) == (backend.requests, home.events()), name


def test_continuing_without_any_session_says_so(home: Home, backend: Backend) -> None:
    backend.says(answer("never"))

    result = home.run("ask", "-c", "hi")

    assert (6, "Error: there is no session yet: 'timeline ask' begins one\n") == (result.code, result.err)
    assert [] == backend.requests


# ------------------------------------------------------------------ list, show, rename


def test_list_shows_the_session_used_last_first(home: Home, backend: Backend) -> None:
    ask(home, backend, "One", "first session")
    ask(home, backend, "Two", "second session")
    ask(home, backend, "Three", "--session", "first session", "go on")

    table = home.run("sessions", "list")
    objects = home.run("sessions", "list", "--json").json()
    rows = list(csv.DictReader(io.StringIO(home.run("sessions", "list", "--csv").out)))

    assert table.out.index("first session") < table.out.index("second session")
    assert 1 == objects["schema_version"]
    assert [("first session", 2), ("second session", 1)] == [(o["title"], o["turns"]) for o in objects["sessions"]]
    assert {"id", "title", "turns", "started_at", "last_at"} <= set(objects["sessions"][0])
    assert [o["id"] for o in objects["sessions"]] == [row["id"] for row in rows]


def test_list_shows_as_many_as_asked_for(home: Home, backend: Backend) -> None:
    for number in range(3):
        ask(home, backend, "x", f"session {number}")

    some = home.run("sessions", "list", "--json", "--limit", "2").json()["sessions"]
    every = home.run("sessions", "list", "--json", "--limit", "0").json()["sessions"]

    assert (["session 2", "session 1"], 3) == ([row["title"] for row in some], len(every))


def test_list_says_where_there_are_more_than_it_shows(home: Home, backend: Backend) -> None:
    for number in range(3):
        ask(home, backend, "x", f"session {number}")

    few = home.run("sessions", "list", "--limit", "2")

    assert "session 1" in few.out
    assert (False, "there are more: --limit 0 shows all\n") == ("session 0" in few.out, few.err)
    assert ["", ""] == [home.run("sessions", "list", "--limit", limit).err for limit in ("3", "0")]


def test_what_list_shows_of_an_id_is_enough_to_find_it(home: Home, backend: Backend) -> None:
    for number in range(2):
        ask(home, backend, "x", f"session {number}")

    shown = home.run("sessions", "list").out.split("\n")[3].split()[0]

    assert 0 == home.run("sessions", "show", shown).code


def test_show_draws_every_turn(home: Home, backend: Backend) -> None:
    ask(home, backend, "One", "first", "-s", "Be brief")
    backend.says(refused(500, "boom"))
    home.run("ask", "-c", "second")

    shown = home.run("sessions", "show", "last")
    session = home.run("sessions", "show", "last", "--json").json()

    assert 0 == shown.code
    for text in ("first", "One", "second", "boom"):
        assert text in shown.out
    assert [("first", "One", "completed", "Be brief"), ("second", "", "failed", "Be brief")] == [
        (turn["prompt"], turn["answer"], turn["state"], turn["system"]) for turn in session["turns"]
    ]
    assert "server" == session["turns"][1]["error"]["kind"]


def test_a_renamed_session_is_found_by_its_new_title(home: Home, backend: Backend) -> None:
    ask(home, backend, "One", "first")

    result = home.run("sessions", "rename", "last", "My talk")

    assert (0, "") == (result.code, result.out)
    assert "My talk" == home.run("sessions", "show", "my talk", "--json").json()["title"]
    assert 6 == home.run("sessions", "show", "first").code
    assert 2 == home.run("sessions", "rename", "last", "  ").code


def test_a_long_prompt_makes_a_short_title(home: Home, backend: Backend) -> None:
    ask(home, backend, "One", "Why   is\nthe sky " + "so very " * 50 + "blue?")

    title = home.events("session.started")[0]["data"]["title"]
    assert title.startswith("Why is the sky so very")
    assert len(title) <= 60


@pytest.mark.parametrize("models", [(), ("-m", "t:m", "-m", "t:other")])
def test_what_is_piped_in_is_asked_about_and_titles_nothing_beside_words(
    home: Home, backend: Backend, models: tuple[str, ...]
) -> None:
    backend.says(answer("Yes"))
    home.run("ask", *models, "Write a commit message", stdin="diff --git a/docs b/docs")
    asked = backend.messages()
    home.run("ask", "-", stdin="All of it\nis piped")

    assert [("user", "diff --git a/docs b/docs\n\nWrite a commit message")] == asked
    titles = [row["data"]["title"] for row in home.events("session.started")]
    assert [*["Write a commit message"] * (len(titles) - 1), "All of it is piped"] == titles


def test_a_title_that_looks_like_markup_is_listed_as_it_is(home: Home, backend: Backend) -> None:
    title = "[/b] [red]hi[/red] :smile:"
    ask(home, backend, "One", title)

    assert title in home.run("sessions", "list").out
    assert title in home.run("report", "--by", "session").out


@pytest.mark.parametrize("columns", ["20", "60"])
def test_ids_keep_their_width_beside_a_long_title(home: Home, backend: Backend, columns: str) -> None:
    ask(home, backend, "One", "a" * 200)

    listed = home.run("sessions", "list", env={"COLUMNS": columns}).out
    assert home.run("sessions", "list", "--json").json()["sessions"][0]["id"][:13] in listed


# ------------------------------------------------------------------ forget


def test_forget_takes_the_text_out_of_every_page_and_leaves_the_totals(home: Home, backend: Backend) -> None:
    (home.work / "notes.txt").write_text("the secret of the file")
    ask(home, backend, "secret answer", "secret question", "-s", "secret system", "-f", "notes.txt")
    ask(home, backend, "kept answer", "kept question")
    totals = home.run("report", "--json").json()["totals"]

    result = home.run("sessions", "forget", "secret question", "--yes")

    assert 0 == result.code
    assert b"secret" not in home.bytes()
    assert b"kept answer" in home.bytes()
    assert totals == home.run("report", "--json").json()["totals"]
    assert 0 == home.run("store", "verify").code
    assert "session.redacted" == home.types()[-1]


def test_a_forgotten_session_can_still_be_shown_and_gone_on_with(home: Home, backend: Backend) -> None:
    ask(home, backend, "secret answer", "secret question")
    (session,) = ids(home)
    home.run("sessions", "forget", session, "--yes")

    shown = home.run("sessions", "show", session)
    played = home.run("replay", session)
    ask(home, backend, "Two", "--session", session, "second")

    assert (0, 0) == (shown.code, played.code)
    assert 2 == shown.out.count("[not recorded]")
    assert [("user", "second")] == backend.messages()


@pytest.mark.parametrize(("said", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 2)], ids=["y", "n", "enter", "eof"])
def test_forget_asks_first(home: Home, backend: Backend, said: str, code: int) -> None:
    ask(home, backend, "secret answer", "secret question")

    result = home.run("sessions", "forget", "last", stdin=said)

    assert (code, "") == (result.code, result.out)
    assert "secret question" in result.err
    assert (code == 0) == (b"secret answer" not in home.bytes())
