"""What a second signal does: at once where a person sends it, nothing where torchrun passes the first one on."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from lrtrain.commands import signals
from lrtrain.commands.signals import ECHO_S, Requests
from lrtrain.world import World
from tests.forked import environment

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    return now


def begun(launched: bool) -> Requests:
    requests = Requests(World(launch="job" if launched else ""))
    requests.begin()
    return requests


def test_a_second_signal_ends_a_process_of_its_own_at_once(clock: list[float]) -> None:
    requests = begun(launched=False)
    requests.on_signal(INT, None)
    assert requests() == "SIGINT"
    with pytest.raises(SystemExit) as ended:
        requests.on_signal(INT, None)
    assert ended.value.code == 130


@pytest.mark.parametrize("first", [TERM, INT])
def test_what_torchrun_passes_on_is_no_second_signal(clock: list[float], first: signal.Signals) -> None:
    requests = begun(launched=True)
    requests.on_signal(first, None)
    clock[0] += 0.9 * ECHO_S
    requests.on_signal(first, None)  # torchrun has heard it too, and passes it on
    assert requests() == first.name
    clock[0] += 0.2 * ECHO_S
    with pytest.raises(SystemExit):
        requests.on_signal(first, None)  # a person, again


def test_torchrun_makes_a_sigterm_of_a_second_interrupt(clock: list[float]) -> None:
    requests = begun(launched=True)
    requests.on_signal(INT, None)
    clock[0] += 0.9 * ECHO_S
    requests.on_signal(TERM, None)
    assert requests() == "SIGINT"
    clock[0] += 0.2 * ECHO_S
    with pytest.raises(SystemExit) as ended:
        requests.on_signal(TERM, None)
    assert ended.value.code == 130


def test_the_end_of_torchrun_is_no_second_signal(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    requests = begun(launched=True)
    requests.on_signal(signal.SIGUSR1, None)  # to the whole job; torchrun dies of it
    clock[0] += 2 * ECHO_S
    monkeypatch.setattr(signals.os, "getppid", lambda: 1)
    requests.on_signal(TERM, None)
    assert requests() == "SIGUSR1"
    clock[0] += 2 * ECHO_S
    with pytest.raises(SystemExit) as ended:
        requests.on_signal(TERM, None)  # a person
    assert ended.value.code == 75


def test_the_end_of_torchrun_may_be_the_first_signal(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    requests = begun(launched=True)
    monkeypatch.setattr(signals.os, "getppid", lambda: 1)
    requests.on_signal(TERM, None)
    clock[0] += 2 * ECHO_S
    with pytest.raises(SystemExit):
        requests.on_signal(TERM, None)


@pytest.mark.parametrize("to", ["2> /dev/null", "2> /dev/full", "2> >(true)", "2>&-", "2> >(sleep 20)"])
def test_a_signal_ends_a_process_that_cannot_say_so(to: str) -> None:
    code = "import os, signal, time, lrtrain.__main__ as m; signal.signal(15, m._end); time.sleep(0.3); "
    if "sleep" in to:  # nobody reads, and no more has room
        code += "os.set_blocking(2, False); os.write(2, bytes(10**6)); os.set_blocking(2, True); "
    line = f"{sys.executable} -c '{code}os.kill(os.getpid(), 15); time.sleep(5)' {to}"
    assert subprocess.run(["bash", "-c", line], env=environment(), timeout=10).returncode == 143


def wrapped(requests: Requests) -> None:
    """As libraries do with what their callbacks raise."""
    try:
        requests.on_signal(TERM, None)
    except BaseException as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


@pytest.mark.parametrize("began", [False, True])
def test_what_comes_out_once_a_signal_was_to_end_the_process_does_that(began: bool) -> None:
    requests = Requests(World())
    if began:
        requests.begin()
        requests.on_signal(TERM, None)
    with pytest.raises(SystemExit) as ended, requests.ending():
        wrapped(requests)
    assert ended.value.code == 143


def test_a_signal_whose_exception_went_nowhere_ends_the_process_as_training_begins() -> None:
    requests = Requests(World())
    with suppress(ValueError), requests.ending():
        raise ValueError  # of no signal
    with suppress(SystemExit):
        requests.on_signal(INT, None)
    with pytest.raises(SystemExit) as ended:
        requests.begin()
    assert ended.value.code == 130
