"""Drive managers through seeded histories: ``python -m tasks.simulator --seed 1 --attempts 1000000``.

A history is some dozens of tasks with random policies under one manager after another: each is killed between any two
of its actions, or closed, or its journal fails, and the next one recovers. A failing seed replays exactly.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import random
import sys
import time
from collections import Counter
from typing import Any

from doorman import Backoff, State, Task
from doorman.errors import JournalError
from doorman.states import ENDED
from tasks.manager import GRACE_S, SLOTS, Manager
from tasks.world import ManagerKilled, World

__all__ = ["SimulationFailed", "main", "simulate"]

TASKS = 60
"""Tasks of one history."""
LIVING = 12
"""Tasks that wait or run at a time."""
KILL_CHANCES = (0.0, 0.001, 0.004, 0.02)
MOST_TICKS = 20_000
CALL = pickle.dumps((len, ("",), {}))
FACTS: Any = [{}, {}, {}, {"retries": 1}, {"retries": 2}, {"restart": "transient"}, {"expires_in": 0.5}]


class SimulationFailed(AssertionError):
    """Raised with the seed of a history that breaks a promise."""


def simulate(seed: int) -> Counter[str]:
    """Run one history; return what was counted. Raises SimulationFailed."""
    level = logging.root.manager.disable
    logging.disable()  # A journal that fails is logged, again and again.
    try:
        return _History(seed).run()
    except Exception as error:
        raise SimulationFailed(f"seed {seed}: {type(error).__name__}: {error}") from error
    finally:
        logging.disable(level)


def ended(world: World, task: Task, *, leaving: bool) -> None:
    """Check the end of a task as its manager sees it."""
    if task.id not in world.journal.ended:
        world.check(leaving or world.journal.failing, "the journal knows of an end first", task.id)
        world.counts["left to the next manager"] += 1
        return
    world.check(task.id not in world.finished, "a task ends once", task.id)
    world.finished[task.id] = task.state
    world.counts[str(task.state)] += 1


class _History:
    def __init__(self, seed: int) -> None:
        random.seed(seed)  # The jitter of a backoff.
        self.world = world = World(seed)
        world.kill_chance = world.random.choice(KILL_CHANCES)
        self._added = 0
        self._policies: dict[str, dict[str, Any]] = {}
        self._manager: Manager | None = None

    def run(self) -> Counter[str]:
        world = self.world
        ticks = 0
        while self._added < TASKS or self._busy():
            ticks += 1
            world.check(ticks < MOST_TICKS, "a history ends", self._manager and self._manager.running)
            if self._added >= TASKS and ticks > MOST_TICKS // 2:
                world.kill_chance = 0.0
            try:
                self._turn()
            except ManagerKilled:
                self._replace()
            except JournalError:
                self._close() if self._manager is not None else self._replace()
        self._check_end()
        return world.counts

    def _busy(self) -> bool:
        return self._manager is None or self._manager.busy

    def _turn(self) -> None:
        world, manager = self.world, self._manager
        if manager is None:
            world.journal.failing = False
            self._manager = manager = Manager(world)
            for task in manager.recovered:
                self._observe(manager, task)
        while self._added < TASKS and len(manager.waiting) + len(manager.running) < LIVING:
            self._add(manager)
        if world.chance(0.03):
            self._interfere(manager)
        manager.tick()
        world.check(len(manager.running) <= SLOTS, "rules bound what runs", len(manager.running))
        if world.kill_chance and world.chance(0.002):
            self._close()
            return
        wait = manager.next_timeout()
        world.now = max(world.now, world.next_at(world.now + wait))
        world.happen()

    def _add(self, manager: Manager) -> None:
        world = self.world
        policy: dict[str, Any] = dict(world.random.choice(FACTS))
        policy["detach"] = world.chance(0.3)
        policy["priority"] = world.random.randrange(3)
        policy["handler"] = world.random.choice("abc")
        if policy.get("retries") and world.chance(0.5):
            policy["backoff"] = Backoff(first=0.5, most=2.0)
        policy["stops_siblings"] = world.chance(0.02)
        task: Task
        if world.chance(0.1):
            task = Task.command(["true"], **policy)
        else:
            task = Task(len, "", **policy)
            task._release(CALL)  # Pickling a call for each of a million tasks would take longer than the rest.
        self._added += 1
        task.id = f"{self._added}"
        self._observe(manager, task)
        if world.chance(0.02):
            task.cancel_when = _raises
        manager.add_task(task)  # May raise JournalError: then it was never added.
        self._policies[task.id] = policy

    def _observe(self, manager: Manager, task: Task) -> None:
        end = task._finish  # A callback at the end would not see a second one.

        def observed(state: State, *result: Any, **options: Any) -> None:
            end(state, *result, **options)
            ended(self.world, task, leaving=manager.closed)

        task._finish = observed  # type: ignore[method-assign]

    def _interfere(self, manager: Manager) -> None:
        """Do what a user may do at any time. In the end only user code that hangs is cancelled."""
        tasks = (*manager.waiting, *manager.running)
        if self._added >= TASKS:
            tasks = tuple(task for task in tasks if task.state is State.RUNNING)
        if tasks:
            self.world.counts["cancels"] += 1
            manager.cancel(self.world.random.choice(tasks))

    def _close(self) -> None:
        """Leave the manager's block; the next manager has the journal."""
        world, manager = self.world, self._manager
        assert manager is not None
        world.counts["closes"] += 1
        try:
            manager.leave()
            until = world.now + GRACE_S + 5.0
            while manager.tick() and world.now < until:
                world.now = max(world.now, world.next_at(min(until, world.now + manager.next_timeout())))
                world.happen()
            for process in list(world.processes.values()):
                if not process.detach:
                    process.end(None, 9)  # As closing the launcher does.
            manager.give_up()
            manager.check_empty()
        except ManagerKilled:
            pass
        self._replace()

    def _replace(self) -> None:
        self.world.manager_gone()
        self._manager = None

    def _check_end(self) -> None:
        world, manager = self.world, self._manager
        assert manager is not None
        manager.check_empty()
        world.now += 3600
        world.happen()
        # Without inodes an adopted process that does not prove itself again is left alone.
        alive = [
            process for process in world.processes.values() if process.alive and (world.inodes or not process.detach)
        ]
        world.check(not alive, "no process is left", [process.attempt for process in alive])
        for task, policy in self._policies.items():
            state = world.journal.ended.get(task) or world.finished.get(task)
            world.check(state in ENDED, "every task ends", task, state)
            most = 1 + policy.get("retries", 0)
            if "restart" not in policy:
                world.check(world.runs[task] <= most, "user code runs once for each try", task, world.runs[task])


def _raises() -> bool:
    raise LookupError("the user's question")


def main(arguments: list[str]) -> int:
    """Run histories until so many attempts were started, and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--attempts", type=int, default=100_000)
    given = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    began, seed = time.monotonic(), given.seed
    while counts["attempts"] < given.attempts:
        counts += simulate(seed)
        counts["histories"] += 1
        seed += 1
    for name, count in sorted(counts.items()):
        print(f"{count:>12,} {name}")
    print(f"{time.monotonic() - began:12.1f} seconds; seeds {given.seed} to {seed - 1}: every promise was kept")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
