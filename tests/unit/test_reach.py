"""Whether there is a network, from what Linux says of its routes; and who can be asked without one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from timeline.config import Config, ModelRef, load
from timeline.providers.reach import network, on_own_link, runs_here

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the interfaces are asked")

IPV4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
LINK = "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
DEFAULT = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
TUNNEL = "wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n"
HALVES = "tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\ntun0\t00000080\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n"
BEYOND = "eth0\t0000000A\t010200C0\t0003\t0\t0\t0\t000000FF\t0\t0\t0\n"
UNREACHABLE = "eth0\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n"
NOWHERE = "0" * 32
LOCAL6 = f"fe80{'0' * 28} 40 {NOWHERE} 00 {NOWHERE} 00000100 00000001 00000000 00000001     eth0\n"
LOOPBACK6 = f"{'0' * 31}1 80 {NOWHERE} 00 {NOWHERE} 00000000 00000002 00000000 80200001       lo\n"
REJECT6 = f"{NOWHERE} 00 {NOWHERE} 00 {NOWHERE} ffffffff 00000001 00000000 00200200       lo\n"
DEFAULT6 = f"{NOWHERE} 00 {NOWHERE} 00 fe80{'0' * 27}1 00000400 00000001 00000000 00000003     eth0\n"


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "expected"),
    [
        (DEFAULT + LINK, LOCAL6, "routed"),
        (TUNNEL, "", "routed"),
        (HALVES, "", "routed"),
        (BEYOND, "", "routed"),
        ("", DEFAULT6 + LOCAL6, "routed"),
        (LINK, LOCAL6 + REJECT6, "link"),
        ("", LOOPBACK6 + REJECT6 + LOCAL6, "none"),
        (UNREACHABLE, "", "none"),
        ("", "", "none"),
        ("lo garbage\n", "", "routed"),
    ],
)
def test_a_network_is_there_if_a_route_leads_out_of_the_own_one(
    tmp_path: Path, ipv4: str, ipv6: str, expected: str
) -> None:
    (tmp_path / "route").write_text(IPV4 + ipv4)
    (tmp_path / "ipv6_route").write_text(ipv6)

    assert expected == network({}, tmp_path)


def test_where_it_can_not_be_told_there_is_one(tmp_path: Path) -> None:
    assert "routed" == network({}, tmp_path)
    (tmp_path / "route").write_text(IPV4)

    # A kernel without IPv6.
    assert "none" == network({}, tmp_path)


def test_whoever_has_a_proxy_needs_no_route(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(IPV4)

    assert "routed" == network({"https_proxy": "http://127.0.0.1:3128"}, tmp_path)
    assert "none" == network({"HTTPS_PROXY": ""}, tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "config.yaml").write_text("""
        llm_providers:
          near: {kind: openai, base_url: "http://localhost:8080/v1"}
          proxy: {kind: openai, base_url: "http://127.0.0.1:4000/v1", local: false}
          room: {kind: openai, base_url: "http://192.168.1.7:8000/v1"}
          bonjour: {kind: openai, base_url: "http://gpu.local/v1"}
          short: {kind: openai, base_url: "http://gpu/v1"}
          far: {kind: openai, base_url: "https://llm.example.com/v1"}
    """)
    return load(environ={"TIMELINE_HOME": str(tmp_path), "HOME": str(tmp_path)}, cwd=tmp_path)


@pytest.mark.parametrize(
    ("model", "here", "link"),
    [
        ("embedded:smollm2", True, False),
        ("ollama:llama3.1", True, True),
        ("ollama:gpt-oss:120b-cloud", False, True),
        ("near:m", True, True),
        ("proxy:m", False, True),
        ("room:m", False, True),
        ("bonjour:m", False, True),
        ("short:m", False, True),
        ("far:m", False, False),
        ("openai:gpt-4o", False, False),
    ],
)
def test_who_can_be_asked_without_a_network(config: Config, model: str, here: bool, link: bool) -> None:
    ref = ModelRef(*model.split(":", 1))

    assert here == runs_here(config, ref)
    assert here or link == on_own_link(config, ref)
