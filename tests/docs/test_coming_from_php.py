"""The page "Coming from PHP" has every name of the PHP package, and no name that does not exist here."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/coming-from-php.md").read_text()
TESTS = "\n".join(path.read_text() for path in sorted((ROOT / "tests/doorman").glob("test_ancestor*.py")))
LOADS = ("ProcessorLoad", "MemoryLoad", "SiblingProcesses", "SiblingProcessorLoad", "SiblingMemoryLoad")
BANDS = [f"{end}{of}Usage" for end in ("Minimum", "Maximum") for of in ("Processor", "Memory")]
BANDS += [band.replace("mum", "mumSibling") for band in BANDS]
ANCESTOR = {
    "Task": ["getHandler", "getData", "ignoresRules", "stopsSiblings", "canRunTask"],
    "Process": ["getId", "setId"],
    "Expires": ["getExpiresIn", "shouldExpire"],
    "Cancellable": ["isCancelled"],
    "Handler": ["handle"],
    "Manager": ["addTask", "tick"],
    "Rule": ["getProcesses", "getHandler", *(f"get{band}" for band in BANDS)],
    "Rules": ["addRule", "removeRule", "canRunTask"],
    "Profile": ["getProcesses", *(f"get{load}" for load in LOADS)],
    "Shell": ["exec"],
    "ProcessManager": [
        *("getWaiting", "getRunning", "addRule", "removeRule", "getCommand", "__destruct"),
        *(f"{verb}{what}" for verb in ("get", "set") for what in ("Shell", "Rules", "Binary", "Worker", "LogPath")),
    ],
    "GroupProcessManager": ["addTaskGroup", "__call"],
    "ProcessCallbackTask": ["hasExpired"],
}
CLASSES = ("CallbackTask", "CallbackHandler", "InMemoryRule", "InMemoryRules", "InMemoryProfile", "BashShell")
OURS = ("doorman", "doorman.errors", "doorman.load", "doorman.launcher.command", "doorman.launcher.zygote")


def test_each_name_of_the_ancestor_has_a_row() -> None:
    names = [f"`{owner}.{name}`" for owner, members in ANCESTOR.items() for name in members]
    names += [f"`{name}`" for name in (*CLASSES, "SynchronousManager", "GroupProcessManager")]
    assert [name for name in names if name not in PAGE] == []


def test_each_class_and_member_of_ours_exists() -> None:
    rows = [line.split("|")[2] for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(rows) > 35
    named = [word for row in rows for word in re.findall(r"`([\w.]+)", row)]
    subjects = {"manager": "ProcessManager", "groups": "GroupManager", "task": "Task"}
    classes = {name: getattr(module, name) for module in map(importlib.import_module, OURS) for name in module.__all__}
    missing = []
    for word in named:
        head, *members = word.split(".")
        if head == "doorman":
            module, _, name = word.rpartition(".")
            missing += [] if hasattr(importlib.import_module(module), name) else [word]
        elif subjects.get(head, head)[0].isupper() and head != "None":
            owner = classes[subjects.get(head, head)]
            known = {*dir(owner), *owner.__dict__, *getattr(owner, "__annotations__", {}), *_made(owner)}
            missing += [word for member in members[:1] if member not in known]
    assert missing == []


def _made(owner: type) -> set[str]:
    """Return the attributes that a class or its bases assign to their instances."""
    modules = {each.__module__ for each in owner.__mro__ if each is not object}
    source = "\n".join(Path(importlib.import_module(module).__file__ or "").read_text() for module in sorted(modules))
    return set(re.findall(r"\bself\.(\w+)(?:, self\.\w+)*(?:: [^=]+)? =", source)) | set(
        re.findall(r"self\.\w+, self\.(\w+)", source)
    )


@pytest.mark.parametrize("number", range(1, 21))
def test_each_bug_of_the_ancestor_is_kept_or_fixed_and_has_a_test(number: int) -> None:
    [shown] = re.findall(rf"^\| B{number} \|.*\|(.*)\|$", PAGE, re.MULTILINE)
    [docstring] = re.findall(rf'def test_B{number:02}_[^\n]*\n    """([^\n]*)"""', TESTS)
    decided = [[word for word in ("Fix:", "Keep:") if word in text] for text in (shown, docstring)]
    assert decided[0] == decided[1] != []
