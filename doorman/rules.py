"""Rules: may a task start now, and if not, why not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from doorman.errors import BadRule
from doorman.load import Cost, Load

__all__ = ["Rule", "Rules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A bound on how many processes may run while the load lies within some bands.

    ``processes`` is the bound; None bounds nothing, 0 lets nothing start. Loads are those of the running tasks
    together: per cent of the whole machine, all cores, or of its memory; 100 at the most, and cut to whole per cent, so
    that the bands 0-50 and 51-75 leave no gap. A band with one end given is open at the other. The rule holds while any
    of its bands contains the load; without a band it always holds.

    With ``handler`` the rule is about tasks of that handler alone, and counts only these. Sibling bands look at the
    load of the tasks with the same handler as the one that wants to start, and count only these. Raises BadRule.
    """

    processes: int | None = None
    handler: str | None = None
    minimum_processor_load: float | None = None
    maximum_processor_load: float | None = None
    minimum_memory_load: float | None = None
    maximum_memory_load: float | None = None
    minimum_sibling_processor_load: float | None = None
    maximum_sibling_processor_load: float | None = None
    minimum_sibling_memory_load: float | None = None
    maximum_sibling_memory_load: float | None = None

    def __post_init__(self) -> None:
        if self.processes is not None and not (isinstance(self.processes, int) and self.processes >= 0):
            raise BadRule(f"processes is a number of processes or None, not {self.processes!r}")
        for field in fields(self):
            bound = getattr(self, field.name)
            if field.name.endswith("_load") and bound is not None and not 0 <= bound <= 100:
                raise BadRule(f"{field.name} is per cent from 0 to 100, not {bound!r}")
        for name in ("processor", "memory", "sibling_processor", "sibling_memory"):
            low, high = self._band(name)
            if low is not None and high is not None and low > high:
                raise BadRule(f"minimum_{name}_load {low} is above maximum_{name}_load {high}")

    @property
    def by_load(self) -> bool:
        """Whether the rule asks for the load at all."""
        return any(getattr(self, field.name) is not None for field in fields(self) if field.name.endswith("_load"))

    def holds_back(self, handler: str, load: Load) -> str | None:
        """Return why a task of this handler may not start now, with figures; None if this rule lets it."""
        if self.processes is None or self.handler not in (None, handler):
            return None
        siblings = load.siblings(handler)
        counted = load.everyone if self.handler is None else siblings
        whose = "" if self.handler is None else f" of handler {handler!r}"
        if counted.processes >= self.processes:
            many = f"{counted.processes} of {self.processes} processes{whose} run"
            if not self.by_load:
                return many
            for kind in ("processor", "memory"):
                if (band := self._met(kind, kind, load.everyone)) is not None:
                    return f"{many} while {band}"
        if siblings.processes >= self.processes:
            for kind in ("processor", "memory"):
                if (band := self._met(f"sibling_{kind}", kind, siblings)) is not None:
                    return f"{siblings.processes} of {self.processes} siblings run while their {band}"
        return None

    def _met(self, name: str, kind: str, cost: Cost) -> str | None:
        """Tell in words which band contains the cost; None if this one does not, or is not given."""
        low, high = self._band(name)
        now = min(100.0, getattr(cost, kind))
        if (low is None and high is None) or now < (low or 0) or (high is not None and int(now) > high):
            return None
        told = f"{kind} load is {int(now)} %"
        if kind == "processor" and cost.unmeasured:
            told += f", counting a busy core for each of {cost.unmeasured} not measured yet"
        if high is None:
            return f"{told} ({low:g} % or more)"
        return f"{told} ({low or 0:g} to {high:g} %)"

    def _band(self, name: str) -> tuple[float | None, float | None]:
        return getattr(self, f"minimum_{name}_load"), getattr(self, f"maximum_{name}_load")


class Rules:
    """Several rules: a task may start if none of them holds it back."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._rules = list(rules)

    def add(self, rule: Rule) -> None:
        """Obey one more rule."""
        if not isinstance(rule, Rule):
            raise TypeError(f"not a rule: {rule!r}")
        self._rules.append(rule)

    def remove(self, rule: Rule) -> bool:
        """Obey it no more; False if it was not there."""
        if rule not in self._rules:
            return False
        self._rules.remove(rule)
        return True

    @property
    def by_load(self) -> bool:
        """Whether any rule asks for the load."""
        return any(rule.by_load for rule in self._rules)

    def holds_back(self, handler: str, load: Load) -> str | None:
        """Return why a task of this handler may not start now; None if it may."""
        for rule in self._rules:
            why = rule.holds_back(handler, load)
            if why is not None:
                return why
        return None

    def __iter__(self) -> Iterator[Rule]:
        return iter(tuple(self._rules))

    def __len__(self) -> int:
        return len(self._rules)
