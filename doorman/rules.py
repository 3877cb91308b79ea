"""Bounds on the number of running processes, depending on the load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from doorman.errors import BadRule
from doorman.load import Cost, Load

__all__ = ["Rule", "Rules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A bound on the number of running processes while the load is within a band.

    ``processes`` is the bound; None for no bound, 0 to start nothing. A load is the sum over the running tasks, in per
    cent of all cores or of the machine's memory, at most 100 and rounded down, so that the bands 0-50 and 51-75 have no
    gap. A band with only one end is open at the other. The rule applies while any of its bands contains the load;
    without bands it always applies.

    With ``handler`` the rule applies to tasks of that handler and counts only them. Sibling bands use the load of the
    tasks that have the same handler as the next task, and count only them. Raises BadRule.
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
            raise BadRule(f"processes must be 0 or more, or None, not {self.processes!r}")
        for field in fields(self):
            bound = getattr(self, field.name)
            if field.name.endswith("_load") and bound is not None and not 0 <= bound <= 100:
                raise BadRule(f"{field.name} must be from 0 to 100 per cent, not {bound!r}")
        for name in ("processor", "memory", "sibling_processor", "sibling_memory"):
            low, high = self._band(name)
            if low is not None and high is not None and low > high:
                raise BadRule(f"minimum_{name}_load {low} is above maximum_{name}_load {high}")

    @property
    def by_load(self) -> bool:
        """Whether the rule has a band."""
        return any(getattr(self, field.name) is not None for field in fields(self) if field.name.endswith("_load"))

    def holds_back(self, handler: str, load: Load) -> str | None:
        """Return why the rule prevents a start of a task of this handler, with figures; None if it does not."""
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
        """Return a text about the band that contains the load; None if it does not, or if there is no band."""
        low, high = self._band(name)
        now = min(100.0, getattr(cost, kind))
        if (low is None and high is None) or now < (low or 0) or (high is not None and int(now) > high):
            return None
        text = f"{kind} load is {int(now)} %"
        if kind == "processor" and cost.unmeasured:
            text += f", counting a busy core for each of {cost.unmeasured} not measured yet"
        if high is None:
            return f"{text} ({low:g} % or more)"
        return f"{text} ({low or 0:g} to {high:g} %)"

    def _band(self, name: str) -> tuple[float | None, float | None]:
        return getattr(self, f"minimum_{name}_load"), getattr(self, f"maximum_{name}_load")


class Rules:
    """A list of rules. A task may start if none of them prevents it."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._rules = list(rules)

    def add(self, rule: Rule) -> None:
        """Add a rule."""
        if not isinstance(rule, Rule):
            raise TypeError(f"not a rule: {rule!r}")
        self._rules.append(rule)

    def remove(self, rule: Rule) -> bool:
        """Remove a rule; return False if it is not in the list."""
        if rule not in self._rules:
            return False
        self._rules.remove(rule)
        return True

    @property
    def by_load(self) -> bool:
        """Whether any rule has a band."""
        return any(rule.by_load for rule in self._rules)

    def holds_back(self, handler: str, load: Load) -> str | None:
        """Return why a task of this handler may not start now; None if it may."""
        reasons = (rule.holds_back(handler, load) for rule in self._rules)
        return next((why for why in reasons if why is not None), None)

    def __iter__(self) -> Iterator[Rule]:
        return iter(tuple(self._rules))

    def __len__(self) -> int:
        return len(self._rules)
