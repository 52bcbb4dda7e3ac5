"""Who began something is told alive from dead, and never taken for somebody else."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import msgspec
import pytest
from support.processes import alone

from timeline.events import Owner
from timeline.store import is_alive, this_process
from timeline.store.integrity import _started


def other(**changes: object) -> Owner:
    return msgspec.structs.replace(this_process(), **changes)


def test_this_process_is_alive() -> None:
    assert is_alive(this_process())
    assert os.getpid() == this_process().pid


def test_a_child_is_alive_until_it_ends_even_if_nobody_has_waited_for_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = _started(child.pid)
    assert started is not None
    owner = other(pid=child.pid, started=started)
    assert is_alive(owner)

    assert child.stdin is not None
    child.stdin.close()
    for _ in range(500):
        if not is_alive(owner):
            break
        time.sleep(0.02)

    assert not is_alive(owner), "a zombie counts as dead"
    child.wait()
    assert not is_alive(owner)


@pytest.mark.parametrize("seconds", [-86400, -2, 2, 86400])
def test_a_process_that_bears_the_pid_of_another_is_not_it(seconds: float) -> None:
    assert not is_alive(other(started=this_process().started + seconds))


def test_a_pid_that_nobody_bears_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()

    assert not is_alive(other(pid=child.pid))


def test_a_process_on_another_machine_counts_as_alive() -> None:
    name, *rest = this_process().host.split("/")

    assert is_alive(Owner("another machine", os.getpid(), 0.0))
    assert is_alive(other(host="/".join([f"{name}x", *rest]), started=0.0))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what /proc tells")
def test_a_process_in_another_container_counts_as_alive() -> None:
    name, _, boot = this_process().host.split("/")

    assert is_alive(Owner(f"{name}/1/{boot}", os.getpid(), 0.0))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what /proc tells")
def test_a_process_of_before_the_machine_started_anew_is_dead() -> None:
    name, namespace, _ = this_process().host.split("/")

    assert not is_alive(Owner(f"{name}/{namespace}/00000000", os.getpid(), this_process().started))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what /proc tells")
def test_a_process_whose_name_looks_like_its_state_is_read_right() -> None:
    code = """
    import ctypes
    ctypes.CDLL(None).prctl(15, b") Z 1 2 3 (", 0, 0, 0)
    from timeline.store import is_alive, this_process
    print(is_alive(this_process()), open("/proc/self/comm").read())
    """

    done = alone(code)

    assert done.stdout.startswith("True ) Z 1 2 3 ("), done.stderr
