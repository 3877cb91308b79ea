"""Load: what tasks cost, read once for all rules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from doorman.load import SAMPLE_INTERVAL_S, STALE_AFTER_S, Meter, Reading, read_process


class Machine:
    """A machine of four cores and 1000 bytes whose clock and processes do as they are told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reads = 0
        self.processes: dict[int, Reading] = {}
        self.meter = Meter(self.read, clock=lambda: self.now, cores=4, memory=1000)

    def read(self, pid: int) -> Reading | None:
        self.reads += 1
        return self.processes.get(pid)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_what_has_not_been_read_twice_counts_as_one_busy_core(machine):
    machine.processes[7] = Reading(0.0, 100)
    load = machine.meter.measure([("a1", "a", 7), ("a2", "a", None)])
    assert (load.everyone.processes, load.everyone.processor, load.everyone.memory) == (2, 50.0, 10.0)


def test_load_is_what_was_used_between_two_readings(machine):
    machine.processes[7] = Reading(5.0, 100)
    machine.meter.measure([("a1", "a", 7)])
    machine.now, machine.processes[7] = 2.0, Reading(6.0, 250)
    load = machine.meter.measure([("a1", "a", 7)])
    assert load.everyone.processor == pytest.approx(100 * 1.0 / 2.0 / 4)
    assert load.everyone.memory == pytest.approx(25.0)


def test_loads_are_told_apart_by_handler(machine):
    load = machine.meter.measure([("1", "a", None), ("2", "a", None), ("3", "b", None)])
    assert [load.siblings(name).processes for name in ("a", "b", "c")] == [2, 1, 0]
    assert load.everyone.processes == 3


def test_no_process_is_read_more_often_than_its_clock_ticks(machine):
    machine.processes[7] = Reading(0.0, 0)
    for _ in range(100):
        machine.meter.measure([("a1", "a", 7)])
    assert machine.reads == 1
    machine.now += SAMPLE_INTERVAL_S
    machine.meter.measure([("a1", "a", 7)])
    assert machine.reads == 2


def test_another_attempt_does_not_inherit_the_readings_of_the_one_before(machine):
    machine.processes[7] = Reading(100.0, 0)
    machine.meter.measure([("a1", "a", 7)])
    machine.now, machine.processes[7] = 1.0, Reading(0.0, 0)  # the number is another process's now
    assert machine.meter.measure([("a2", "a", 7)]).everyone.processor == 25.0


def test_a_process_that_has_ended_keeps_its_last_load(machine):
    machine.processes[7] = Reading(0.0, 100)
    machine.meter.measure([("a1", "a", 7)])
    machine.now = 1.0
    del machine.processes[7]
    assert machine.meter.measure([("a1", "a", 7)]).everyone.memory == 10.0


def test_a_stranger_under_the_number_of_a_process_that_has_ended_costs_nothing(machine):
    machine.processes[7] = Reading(0.0, 100, born=1)
    machine.meter.measure([("a1", "a", 7)])
    machine.now, machine.processes[7] = 1.0, Reading(50.0, 900, born=2)
    assert machine.meter.measure([("a1", "a", 7)]).everyone.memory == 10.0


def test_how_many_have_not_been_measured_is_known(machine):
    machine.processes[7] = Reading(0.0, 100)
    machine.meter.measure([("a1", "a", 7)])
    machine.now = 1.0
    load = machine.meter.measure([("a1", "a", 7), ("b1", "b", None)])
    machine.meter.add_unmeasured(load, "b")
    counts = (load.everyone, load.siblings("a"), load.siblings("b"))
    assert [(each.processes, each.unmeasured, each.processor) for each in counts] == [
        (3, 2, 50.0),
        (1, 0, 0.0),
        (2, 2, 50.0),
    ]


@pytest.mark.parametrize(("pause", "processor"), [(STALE_AFTER_S, 0.0), (STALE_AFTER_S + 1, 25.0)])
def test_after_a_pause_a_load_is_measured_anew(machine, pause, processor):
    machine.processes[7] = Reading(0.0, 0)
    machine.meter.measure([("a1", "a", 7)])
    machine.now = pause
    machine.meter.drop_stale()
    assert machine.meter.measure([("a1", "a", 7)]).everyone.processor == processor


def test_the_real_machine_counts_what_a_process_has_started():
    """Its children, those of its threads, theirs, and those that have ended."""
    script = """
import os, sys, threading, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
def beget(*generations):
    child = os.fork()
    if child:
        return child
    burn(0.1)
    if generations: beget(*generations[1:])
    held = bytearray(40_000_000)
    print(end="!", flush=True)
    time.sleep(1000)
ended = os.fork()
if not ended: burn(0.1); os._exit(0)
os.waitpid(ended, 0)
beget(1)
thread = threading.Thread(target=beget); thread.start(); thread.join()
print(end="!", flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(4) == b"!!!!"
            reading = read_process(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # by number: our own child, not reaped
    assert reading is not None
    assert reading.cpu >= 0.38  # four of 0.1 s, counted in ticks of 0.01 s
    assert reading.memory >= 3 * 40_000_000


def test_the_real_machine_sees_a_busy_process():
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    busy = "import time\ninput()\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        meter.measure([("1", "a", process.pid)])
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        now[0] = 1.0
        load = meter.measure([("1", "a", process.pid)])
        process.stdin.write(b"\n")
        process.stdin.flush()
    # It used 0.3 s, all but its start after the first look.
    assert load.everyone.processor >= 20 / (os.cpu_count() or 1)
    assert load.everyone.memory > 0
