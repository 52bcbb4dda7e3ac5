"""The page about settings is true: its examples load, and no setting is missing from it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from timeline import config

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "configuration.md"
COSTS = DOCS / "costs.md"
EXAMPLES = [
    example
    for page in (PAGE, COSTS)
    for example in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize(
    "example", [*EXAMPLES, *(f"budgets: [{row}]" for row in re.findall(r"`(\{name: .*\})`", COSTS.read_text()))]
)
def test_example_on_the_page_loads(tmp_path: Path, example: str) -> None:
    listed = "" if "llm_providers" in example else "llm_providers: {work: {kind: openai}}\n"
    (tmp_path / "config.yaml").write_text(f"{listed}{example}")
    loaded = config.load(environ={"TIMELINE_HOME": str(tmp_path), "HOME": str(tmp_path)}, cwd=tmp_path)

    assert loaded.default_route()


@pytest.mark.parametrize(
    "struct",
    [
        config.Settings,
        config.ProviderConfig,
        config.Routing,
        config.StoreConfig,
        config.Price,
        config.Retry,
        config.BudgetConfig,
        config.CacheConfig,
        config.ToolsConfig,
        config.McpServer,
    ],
)
def test_every_setting_is_on_the_page(struct: type[msgspec.Struct]) -> None:
    page = PAGE.read_text()

    assert [] == [name for name in struct.__struct_fields__ if f"`{name}`" not in page]
