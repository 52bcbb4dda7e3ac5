"""The real local model for tests, and llama.cpp's own server around it.

Run as a script it is that server: `python local_model.py MODEL KEY`. It prints its address, and serves
until its standard input is closed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["LlamaServer", "fetched_models"]

CONTEXT = 2048


def fetched_models() -> Path:
    """The folder named by TIMELINE_TEST_MODELS, or one in the user's cache, with the model in it."""
    import asyncio

    import platformdirs
    import pytest

    from timeline.errors import ModelUnavailable
    from timeline.providers.models import ModelStore

    pytest.importorskip("xllamacpp", reason="the local model needs xllamacpp: pip install 'llm-timeline[local]'")
    folder = Path(os.environ.get("TIMELINE_TEST_MODELS") or platformdirs.user_cache_path("llm-timeline-tests"))
    store = ModelStore(folder)
    try:
        asyncio.run(store.fetch("smollm2"))
    except ModelUnavailable as exc:
        if "what came isn't" in str(exc):
            raise
        pytest.skip(str(exc))
    return folder


class LlamaServer:
    """The server in a process of its own, with the model `smollm2` and a context of 2048 tokens."""

    key = "sk-of-the-llama-server"

    def __init__(self, models_dir: Path) -> None:
        from timeline.providers.models import ModelStore

        path = ModelStore(models_dir).locate("smollm2")
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(path), self.key],
            env={**os.environ, "GOMP_SPINCOUNT": "1000"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.url = self._process.stdout.readline().decode().strip()

    @property
    def slot(self) -> dict[str, Any]:
        """What the server says of the one request it can work on: `is_processing`, `next_token`, …"""
        import httpx

        slots = httpx.get(f"{self.url}/slots", headers={"authorization": f"Bearer {self.key}"}, trust_env=False)
        return slots.json()[0]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def _serve(model: str, key: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {"smollm2"}
    params.n_ctx = CONTEXT
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [key]
    params.verbosity = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
