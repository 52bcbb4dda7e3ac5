"""Makes `store_0001.db`, the file that stands for every store of schema 0001: `python tests/golden/make_store.py`.

It is made once, by the release that first wrote that schema, and then only ever read: whatever
comes later has to open, verify and fold it. So this script refuses to write over it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.stores import Scribe, TickingClock, every_event, opened

from timeline import events as e
from timeline.store import schema

SECRET = "What the user took back"


async def make(path: Path) -> None:
    """A session of every event type, one of whole turns, a private one, and one that was forgotten."""
    scribe = Scribe(TickingClock(1))
    async with opened(path) as store:
        await store.append(
            [
                scribe.event("every type", data, turn_id=f"turn {n}", step_id=f"step {n}", call_id=f"call {n}")
                for n, data in enumerate(every_event())
            ],
            contents=["a body"],
        )
        await store.append([scribe.session("a chat", "Blue skies")])
        for prompt in ("Why is the sky blue?", "And why is it red at night?"):
            await store.append(scribe.turn("a chat", prompt=prompt), contents=[prompt])
        private = e.TurnStarted("direct", scribe.turn("")[0].data.owner, private=True)
        await store.append([scribe.session("private"), scribe.event("private", private, turn_id="private turn")])
        await store.append([scribe.session("forgotten", SECRET)])
        await store.append(scribe.turn("forgotten", prompt=SECRET, texts=[SECRET]), contents=[SECRET, b"\x00bytes"])
        await store.forget("forgotten", lambda data: scribe.event("forgotten", data))


def main() -> None:
    """Write the file beside this one."""
    path = Path(__file__).with_name(f"store_{schema.HEAD}.db")
    if path.exists():
        sys.exit(f"{path} exists: a released schema has one golden file for ever")
    asyncio.run(make(path))
    Path(f"{path}.lock").unlink()


if __name__ == "__main__":
    main()
