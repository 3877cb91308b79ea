"""The suite as a transport's author uses it: subclassed, with a harness of theirs, run by pytest."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import tutorial

from remit import transport
from remit.errors import BadLocation
from remit.testing import CHECKS, UrlHarness

pytest_plugins = ["pytester"]

OWN = """
from remit_plain import PlainTransport
from remit import Location
from remit.testing import Harness, TransportSuite

class Plain(Harness):
    transport = PlainTransport()
    patience = 0.5

    def location(self):
        return Location("plain+tcp://127.0.0.1:0")

class TestPlain(TransportSuite):
    harness = Plain{}
"""
FIXTURE = """
import pytest
from remit.testing import TransportSuite, UrlHarness

class TestMine(TransportSuite):
    @pytest.fixture(params=["memory://one", "memory://two"])
    def harness(self, request):
        return UrlHarness(request.param, deadline=1.0)
"""
BROKEN = """
from remit.transports.memory import MemoryLink, MemoryTransport
from remit.testing import Harness, TransportSuite, UrlHarness

class Wrong(MemoryLink):
    def receive(self):
        return None if self._closed else super().receive()

class Transport(MemoryTransport):
    def _link(self, location):
        link = super()._link(location)
        link.__class__ = Wrong
        return link

class Mine(UrlHarness):
    def __init__(self):
        super().__init__("memory://mine")
        self.transport = Transport()

class TestMine(TransportSuite):
    harness = Mine
"""


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    return pytester.runpytest("-p", "no:remit", "-p", "no:cacheprovider", *arguments)


@pytest.mark.parametrize("call", ["", "()"], ids=["class", "object"])
def test_a_strangers_transport_passes_by_a_harness_of_its_own(
    pytester: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.syspath_prepend(tutorial.lay_out(tmp_path_factory.mktemp("stranger")))
    result = run(pytester, OWN.replace("{}", call), "-k", "not no_frame" if call else "fork or frames")
    outcomes = result.parseoutcomes()
    assert set(outcomes) <= {"passed", "skipped", "deselected"}, result.stdout.str()
    assert outcomes["passed"] >= 5


def test_the_harness_may_be_a_fixture(pytester: pytest.Pytester) -> None:
    result = run(pytester, FIXTURE, "-k", "any_bytes_pass or a_cut_is_reported")
    result.assert_outcomes(passed=2, skipped=2, deselected=2 * len(CHECKS) - 4)


def test_a_violation_names_the_line_and_what_was_seen(pytester: pytest.Pytester) -> None:
    result = run(pytester, BROKEN, "-k", "12-a_closed or 1-any")
    result.assert_outcomes(passed=1, failed=1, deselected=len(CHECKS) - 2)
    result.stdout.fnmatch_lines(
        [
            "*Violation: receive does not raise LinkClosed",
            "*line 12 of remit.transport: Link.close may be called twice*",
        ]
    )


def test_each_line_of_the_contract_has_a_check() -> None:
    lines = {int(number) for number in re.findall(r"^(\d+)\. ", transport.__doc__ or "", re.MULTILINE)}
    assert lines == {check.line for check in CHECKS} == set(range(1, 14))


def test_each_check_has_a_name_and_a_sentence_of_its_own() -> None:
    assert len({check.name for check in CHECKS}) == len({check.sentence for check in CHECKS}) == len(CHECKS)
    assert all(check.sentence[-1] == "." for check in CHECKS)


@pytest.mark.parametrize(
    "url",
    ["memory://name", "memory://name/path", "unix:///tmp/a.sock", "unix:///tmp/a.sock?max_frame=1MiB&linger=2s"],
)
def test_locations_are_fresh(url: str) -> None:
    harness = UrlHarness(url)
    locations = [harness.location() for _ in range(3)]
    assert len(set(locations)) == 3
    assert {location.scheme for location in locations} == {url.partition(":")[0]}
    assert all(dict(location.options).keys() <= {"max_frame"} for location in locations)


def test_a_url_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(BadLocation, match="neither a port, nor a path, nor a name"):
        UrlHarness("unix:///")


def test_remit_and_the_checks_do_without_pytest() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "import remit; assert 'remit.testing' not in sys.modules\n"
        "from remit.cli import main; sys.exit(main(['conformance', 'memory://bare', '--deadline', '10']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert " 0 failed, " in done.stdout
