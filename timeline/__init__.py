"""timeline: ask language models, record every event, replay it, know what it cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timeline.cognition.batch import BatchResult as BatchResult
    from timeline.cognition.batch import BatchStatus as BatchStatus
    from timeline.cognition.processor import CognitionProcessor as CognitionProcessor
    from timeline.cognition.processor import CognitionResult as CognitionResult
    from timeline.cognition.prompt_file import Prompt as Prompt
    from timeline.cognition.prompt_file import PromptFile as PromptFile
    from timeline.cognition.prompts import File as File
    from timeline.cognition.prompts import attach as attach
    from timeline.cognition.turn import TurnEnd as TurnEnd
    from timeline.config import Config as Config
    from timeline.events import Event as Event
    from timeline.llm.manager import Superseded as Superseded
    from timeline.providers.base import Delta as Delta
    from timeline.runtime import Timeline as Timeline

__version__ = "0.1.0"

__all__ = [
    "BatchResult",
    "BatchStatus",
    "CognitionProcessor",
    "CognitionResult",
    "Config",
    "Delta",
    "Event",
    "File",
    "Prompt",
    "PromptFile",
    "Superseded",
    "Timeline",
    "TurnEnd",
    "__version__",
    "attach",
]

_HOMES = {
    "BatchResult": "timeline.cognition.batch",
    "BatchStatus": "timeline.cognition.batch",
    "CognitionProcessor": "timeline.cognition.processor",
    "CognitionResult": "timeline.cognition.processor",
    "Config": "timeline.config",
    "Delta": "timeline.providers.base",
    "Event": "timeline.events",
    "File": "timeline.cognition.prompts",
    "Prompt": "timeline.cognition.prompt_file",
    "PromptFile": "timeline.cognition.prompt_file",
    "Superseded": "timeline.llm.manager",
    "Timeline": "timeline.runtime",
    "TurnEnd": "timeline.cognition.turn",
    "attach": "timeline.cognition.prompts",
}


def __getattr__(name: str) -> Any:
    # Importing the package must cost nothing: `timeline --version` imports it too.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
