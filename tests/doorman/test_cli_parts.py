"""The parts of the command line that need no process: templates, plans, tables."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import pytest

from doorman.cli.map_io import Inputs, Template, split_command
from doorman.cli.procfile import Program, load_plan, read_environment, read_procfile, read_table
from doorman.cli.ps import align, format_age, format_memory
from doorman.errors import BadCommandLine
from doorman.retry import Backoff, Intensity


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("{}", "/a/b.c/d.tar.gz"),
        ("{.}", "/a/b.c/d.tar"),
        ("{/}", "d.tar.gz"),
        ("{//}", "/a/b.c"),
        ("{/.}", "d.tar"),
        ("{#}", "7"),
        ("x{}y{#}", "x/a/b.c/d.tar.gzy7"),
        ("{x}", "{x}"),
    ],
)
def test_placeholders_stand_for_the_input(word: str, filled: str) -> None:
    assert Template([word, "{}"]).fill("/a/b.c/d.tar.gz", 7) == [filled, "/a/b.c/d.tar.gz"]


def test_an_input_is_appended_where_no_placeholder_is() -> None:
    assert Template(["gzip", "-9"]).fill("a b", 1) == ["gzip", "-9", "a b"]


def test_an_input_with_placeholders_is_no_template() -> None:
    assert Template(["{}", "{#}"]).fill("{#}", 3) == ["{#}", "3"]


def test_a_folder_with_a_dot_has_no_extension() -> None:
    assert Template(["{.}"]).fill("a.b/c", 1) == ["a.b/c"]


def test_inputs_stand_behind_their_mark() -> None:
    assert split_command(["a", ":::", "b", "c"]) == (["a"], ["b", "c"])
    assert split_command(["a", ":::"]) == (["a"], [])
    assert split_command(["a"]) == (["a"], None)


def test_inputs_that_are_read_end() -> None:
    reader, writer = os.pipe()
    woken: deque[int] = deque()
    inputs = Inputs.read(reader, b"\n", lambda: woken.append(1))
    assert (inputs.pop(), inputs.total, inputs.exhausted) == (None, None, False)
    os.write(writer, b"a\n\xff")
    os.close(writer)
    taken = []
    while not inputs.exhausted:
        text = inputs.pop()
        taken += [] if text is None else [text]
    os.close(reader)
    assert (taken, inputs.total) == (["a", "\udcff"], 2)


def test_a_procfile_names_commands() -> None:
    lines = read_procfile("# all\n\nweb: sleep 'a b'\n  work-1 :  echo $PORT | cat\nthird: cd /\n4: exec ls\r\n")
    programs = read_table(lines)
    assert {name: program.argv for name, program in programs.items()} == {
        "web": ["/bin/sh", "-c", "exec sleep 'a b'"],
        "work-1": ["/bin/sh", "-c", "echo $PORT | cat"],
        "third": ["/bin/sh", "-c", "cd /"],
        "4": ["/bin/sh", "-c", "exec ls"],
    }


def test_an_environment_file_sets_variables() -> None:
    text = '# all\nA=1\nexport B = two words # not this\nC=\'$x # "\'\nD="a\\nb\\"" # c\nE=\nF=a#b\n'
    variables = {"A": "1", "B": "two words", "C": '$x # "', "D": 'a\nb"', "E": "", "F": "a#b"}
    assert read_environment(text) == variables
    with pytest.raises(BadCommandLine, match="line 2: '1A=x' is not 'NAME=value'"):
        read_environment("A=1\n1A=x")


def test_user_group_and_umask_are_commands_in_front() -> None:
    program = Program(command="cd /", umask="027", user="root")
    shell = ["/bin/sh", "-c", 'umask 027; exec "$@"', "sh", "/bin/sh", "-c", "cd /"]
    assert program.argv == ["setpriv", "--reuid=0", "--init-groups", "--regid=0", "--", *shell]
    assert Program(command=["x"], group="root").argv == ["setpriv", "--regid=0", "--clear-groups", "--", "x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("web python", "line 1: 'web python' is not 'name: command'"),
        ("a: x\na: y", "line 2: 'a' occurs twice"),
        ("# nothing", "it names no process"),
        ("a: 'x", "the shell cannot read the command"),
    ],
)
def test_an_invalid_procfile_is_reported(text: str, message: str) -> None:
    with pytest.raises(BadCommandLine, match=message):
        read_table(read_procfile(text))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"web": "x"}, r"'web' is not a table: write, for example, \[web\]"),
        ({"web": {"comand": "x"}}, "has no key 'comand'; did you mean 'command'"),
        ({"web": {}}, r"\[web\]: .*command"),
        ({"web": {"command": "x", "restart": "always"}}, "restart must be one of temporary, transient, permanent"),
        ({"web": {"command": "x", "processes": 0}}, "processes must be at least 1"),
        ({"web": {"command": "x", "period": 0}}, "seconds must be greater than 0"),
        ({"web": {"command": "x", "intensity": -1}}, "restarts must be 0 or more, not -1"),
        ({"web": {"command": "x", "backoff": -1}}, "backoff's first must be 0 or more, not -1.0"),
        ({"web": {"command": "x", "expires": 0}}, r"expires must be a number of seconds, finite and greater than 0"),
        ({"web": {"command": "x", "stop_signal": "STOPP"}}, "stop_signal is the name of a signal, such as 'INT'"),
        ({"web": {"command": "x", "grace": -1}}, "grace must be"),
        ({"web": {"command": "x", "umask": "8"}}, "umask is a text of octal digits"),
        ({"web": {"command": "x", "user": "no such"}}, "no such.*; name a user"),
        ({"web": {"command": []}}, "the command is empty"),
        ({"a b": {"command": "x"}}, "'a b' cannot name a process"),
        ({}, "it names no process"),
    ],
)
def test_an_invalid_table_is_reported(table: dict[str, object], message: str) -> None:
    with pytest.raises(BadCommandLine, match=message):
        read_table(table)


def test_the_first_file_that_is_here_is_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadCommandLine, match=r"there is no doorman\.toml"):
        load_plan(None)
    files = {
        "Procfile": "c: true",
        "pyproject.toml": "[tool.doorman.b]\ncommand = 'true'",
        "doorman.toml": "[a]\ncommand = ['true']",
    }
    for (file, text), name in zip(files.items(), "cba", strict=True):
        (tmp_path / file).write_text(text)
        plan = load_plan(None)
        assert (plan.folder, list(plan.programs)) == (tmp_path, [name])


def test_a_program_has_the_restart_options_of_its_table() -> None:
    program = Program(command="x", restart="transient", intensity=3, period=20.0, backoff=1.0, max_backoff=0.5)
    assert program.restart_options == {
        "restart": "transient",
        "intensity": Intensity(restarts=3, seconds=20.0),
        "backoff": Backoff(first=1.0, most=1.0),
    }
    assert Program(command="x", restart="temporary").restart_options == {}


def test_sizes_and_ages_have_units() -> None:
    assert [format_memory(size) for size in (None, 5, 2048, 5 << 20, 3 << 30)] == ["-", "5", "2.0K", "5.0M", "3.0G"]
    assert [format_age(seconds) for seconds in (None, 1.25, 187, 7500, 273600)] == [
        "-",
        "1.2s",
        "3m07s",
        "2h05m",
        "3d04h",
    ]


def test_a_cell_cannot_paint_the_terminal() -> None:
    assert align([("a\x1b[31m\n", "b"), ("x" * 50, "c")]).splitlines() == [
        "a?[31m?" + " " * 33 + "  b",
        "x" * 37 + "...  c",
    ]
