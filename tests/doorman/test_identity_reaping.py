"""The catalogue of identity failures: who hears of an end, and who is taken for alive. Entries I17 and I18."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import reapers
from chores import stay
from impostors import honest, zygote
from managing import tick_until
from namespaces import apart
from waiting import DEADLINE

from doorman import ProcessManager, Task
from doorman.errors import IdentityRefused, WorkerDied
from doorman.process import Process

# -- I17: a zombie looks alive -------------------------------------------------------------------------------------


def test_I17_a_zombie_is_not_alive_whatever_its_number_says(short_path):
    """Its zygote is stopped and cannot reap it."""
    launcher = zygote(honest)
    with ProcessManager(f"unix://{short_path}/m", launcher=launcher, grace=0.1) as manager:
        task = manager.add_task(Task(stay))
        tick_until(manager, lambda: task.identity)
        with Process.open(launcher.pid) as reaper, task.identity.open() as process:
            reaper.signal(signal.SIGSTOP)
            process.signal(signal.SIGKILL)
            assert process.wait(DEADLINE)
            assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            os.kill(process.pid, 0)  # as if it were there
            assert not process.alive()
            assert not process.signal(signal.SIGTERM)
            with pytest.raises(IdentityRefused, match="has ended"):
                task.identity.open()
            assert not task.done()
            reaper.signal(signal.SIGCONT)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            task.result(DEADLINE)


# -- I18: somebody else reaps --------------------------------------------------------------------------------------


def test_I18_a_foreign_reaper_takes_no_exit_code_of_a_tasks_and_never_makes_it_0():
    told = apart(reapers.with_foreign_reaper)
    assert told.pop("stolen") == ["lost", None, None, "WorkerDied"]
    assert told == {"values": True, "code": 7, "signal": signal.SIGTERM}
