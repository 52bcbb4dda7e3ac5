"""Which settings there are, where they and the files lie, who wins over whom, and what a project may not set.

Precedence, highest first: command line, environment, the project's `.timeline.yaml`, the user's
`config.yaml`, built-in defaults. `${VAR}` and keys are resolved when a provider is used, not before.
"""

from __future__ import annotations

from timeline.config.keys import FoundKey
from timeline.config.loading import load, load_sound
from timeline.config.paths import PROJECT_FILE, Paths, find_paths
from timeline.config.resolved import Auto, Choice, Config, ModelRef, Setting
from timeline.config.settings import (
    KINDS,
    MAX_COST,
    MOST_TOKENS,
    TOOLS,
    BudgetConfig,
    CacheConfig,
    Complexity,
    Kind,
    McpServer,
    Price,
    ProviderConfig,
    ResolvedProvider,
    Retry,
    Routing,
    Settings,
    StoreConfig,
    Strategy,
    Task,
    ToolsConfig,
    max_cost,
)
from timeline.config.tools import ResolvedServer, allowed_dirs, mcp_server

__all__ = [
    "KINDS",
    "MAX_COST",
    "MOST_TOKENS",
    "PROJECT_FILE",
    "TOOLS",
    "Auto",
    "BudgetConfig",
    "CacheConfig",
    "Choice",
    "Complexity",
    "Config",
    "FoundKey",
    "Kind",
    "McpServer",
    "ModelRef",
    "Paths",
    "Price",
    "ProviderConfig",
    "ResolvedProvider",
    "ResolvedServer",
    "Retry",
    "Routing",
    "Setting",
    "Settings",
    "StoreConfig",
    "Strategy",
    "Task",
    "ToolsConfig",
    "allowed_dirs",
    "find_paths",
    "load",
    "load_sound",
    "max_cost",
    "mcp_server",
]
