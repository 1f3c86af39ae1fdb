"""Every format, on the golden run, on runs that broke off, and on texts that mean harm."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.command import HostRunner
from harness.errors import StoreError, UsageError
from harness.model.record import Outcome, Phase, Record, Run
from harness.report import FORMATS, render, write_all
from harness.report.matrix import MARKS
from harness.report.words import clean, number
from harness.store import RunFolder

GOLDEN = Path(__file__).parents[2] / "results/golden/v1"

HOSTILE = (
    "</pre></code></details></script><script>alert(1)</script><img src=x onerror=alert(1)>\n"
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00\x08\x9b2J | `tick` ``` ````fence\n"
    "[link](javascript:alert(1)) ![image](http://example.org/x) ]]> &amp; {{ 7 * 7 }} {% raw %} \u202eevil\n# heading"
)


def run(**more: Any) -> Run:
    fields: dict[str, Any] = {
        "run": "20260102-030405-aaaa",
        "seatrial": "0.1.0",
        "command": ("seatrial", "run"),
        "seed": 1,
        "quick": False,
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:05:05+00:00",
        **more,
    }
    return Run(**fields)


def record(**more: Any) -> Record:
    fields: dict[str, Any] = {
        "subject": "oci:runc",
        "engine": "none",
        "client": "oci",
        "handler": "runc",
        "suite": "lifecycle",
        "test": "test_it[oci:runc]",
        "operation": "start",
        "outcome": Outcome.PASS,
        **more,
    }
    return Record(**fields)


def stored(tmp_path: Path, *records: Record, **more: Any) -> Path:
    folder = RunFolder.create(tmp_path, run(**more))
    for entry in records:
        folder.append(entry)
    return folder.path


class Page(html.parser.HTMLParser):
    """Collects the tags and the text of a page, and that each tag is closed in order."""

    VOID = frozenset(("meta", "br", "wbr", "link", "img", "input"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if dict(attrs).get("id"):
            self.ids.append(str(dict(attrs)["id"]))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_table_of_the_golden_run() -> None:
    text = render("table", [GOLDEN], width=160)
    assert max(map(len, text.splitlines())) <= 160
    assert "\x1b" not in text
    row = next(line for line in text.splitlines() if line.startswith("containerd:grpc:runc"))
    assert row.count("✓") == 14
    skipped = next(line for line in text.splitlines() if line.startswith("minirt:crictl"))
    assert skipped.count("○") == 14
    assert "reproduce: seatrial run docker:sdk:runc --suite lifecycle -- -k 'test_logs_order'" in text
    assert "seatrial setup crictl" in text
    for line in ("Harness: adds 0.0", "Client tax: containerd:crictl:runc", "One pod, eight calls", "(×1.00)"):
        assert line in text


@pytest.mark.parametrize("width", [20, 60, 80, 120, 140, 160, 250])
def test_a_narrow_table_is_split(width: int) -> None:
    """No step and no sum is lost, and no line of a table is wider than it may be (one column always stands)."""
    text = render("table", [GOLDEN], width=width)
    tables = [part for part in text.split("\n\n") if part.startswith("subject ")]
    shown = " ".join(part.split("\n---")[0] for part in tables).split()
    for word in ("start", "exec", "logs", "resume", "cesses"):
        assert shown.count(word) == 1
    assert len(tables) == {20: 11, 60: 6, 80: 3, 120: 2, 140: 2}.get(width, 1)
    if width >= 60:
        assert max(len(line) for part in tables for line in part.splitlines()) <= width
    for part in tables:
        assert sum(line.startswith("oci:crun") for line in part.splitlines()) == 1


def test_colours_when_asked_only() -> None:
    plain = render("table", [GOLDEN], width=160)
    coloured = render("table", [GOLDEN], width=160, colour=True)
    assert len(set(re.findall(r"\x1b\[[0-9;]+m", coloured))) >= 5
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain, "colours move nothing"


def test_the_five_outcomes_look_different_everywhere(tmp_path: Path) -> None:
    steps = dict(zip(Outcome, ("start", "exec", "logs", "stop", "remove"), strict=True))
    path = stored(tmp_path, *(record(operation=steps[outcome], outcome=outcome, reason="why") for outcome in Outcome))
    table = render("table", [path])
    row = next(line for line in table.splitlines() if line.startswith("oci:runc"))
    assert sorted(row.split()[1:]) == sorted(MARKS.values())
    markdown = render("markdown", [path])
    row = next(line for line in markdown.splitlines() if line.startswith("| **oci:runc"))
    for word in ("✓", "**✗ fail**", "– n/a", "○ skip", "**‼ error**"):
        assert f" {word} " in row
    page = Page(render("html", [path]))
    cells = [attributes["class"] for tag, attributes in page.tags if tag == "td" and "class" in attributes]
    assert {"pass", "fail", "na", "skip", "error"} <= set(cells)
    for outcome in Outcome:
        assert f"{MARKS[outcome]} {outcome.value}" in page.words
    kinds = [[child.tag for child in case] for case in ElementTree.fromstring(render("junit", [path])).iter("testcase")]
    assert kinds == [[], ["skipped"], ["skipped"], ["failure"], ["error"]]


def test_page_is_self_contained_and_sound() -> None:
    text = render("html", [GOLDEN])
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "object"}
    assert "prefers-color-scheme: dark" in text
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert len(page.ids) == len(set(page.ids)) == 7 * 14
    targets = {str(attributes["href"]) for tag, attributes in page.tags if tag == "a"}
    assert targets == {f"#{name}" for name in page.ids}, "each cell leads to its details, by a link within the page"
    for attributes in (attributes for _, attributes in page.tags if attributes.get("style")):
        assert re.fullmatch(r"width: \d+(\.\d+)?%", str(attributes["style"]))
    assert "To reproduce it: " in page.words
    assert "Example CPU @ 2.50GHz" in page.words


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    path = stored(
        tmp_path,
        record(outcome=Outcome.FAIL, reason=HOSTILE, via=HOSTILE),
        record(outcome=Outcome.SKIP, reason=HOSTILE, operation="stop", subject=HOSTILE, test=HOSTILE),
        record(outcome=Outcome.NA, reason=HOSTILE, operation="exec", subject=HOSTILE),
        subjects=("oci:runc", HOSTILE),
        machine={"kernel": HOSTILE, "distribution": HOSTILE, "odd": {HOSTILE: HOSTILE}},
        versions={HOSTILE: HOSTILE},
        images={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
        command=(HOSTILE,),
    )
    page = Page(render("html", [path]))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert "<script>alert(1)</script>" in "".join(page.words), "shown as it is"
    assert "{{ 7 * 7 }}" in "".join(page.words)
    markdown = render("markdown", [path])
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "```" not in outside
    assert "<script" not in outside and "<img" not in outside and "](javascript" not in outside
    assert not [line for line in outside.splitlines() if line.startswith("# heading")]
    rows = [line for line in outside.splitlines() if line.startswith(("| **", "| subject"))]
    assert len({line.count("|") for line in rows}) == 1, "no text makes a column"
    ElementTree.fromstring(render("junit", [path]))
    for form in FORMATS:
        text = render(form, [path])
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text), form


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "more", [{}, {"interrupted": True}, {"ended": ""}, {"subjects": ("oci:runc", "minirt:grpc"), "ended": ""}]
)
def test_empty_and_partial_runs(form: str, more: dict[str, Any], tmp_path: Path) -> None:
    path = stored(tmp_path, **more)
    text = render(form, [path])
    if form in ("table", "markdown", "html"):
        assert ("partial" in text) == bool(more)
        assert ("no subjects and no records" in text) == ("subjects" not in more)
        assert ("Interrupted" in text or "interrupted" in text) == ("interrupted" in more)
    with (path / "records.jsonl").open("ab") as file:
        file.write(b'{"subject": "oci:ru')
    if form in ("markdown", "html") and "subjects" in more:
        assert "the last line was torn" in render(form, [path])


def test_junit() -> None:
    document = ElementTree.fromstring(render("junit", [GOLDEN]))
    suites = {str(suite.get("name")): suite for suite in document.iter("testsuite")}
    assert list(suites) == json.loads((GOLDEN / "run.json").read_text())["subjects"]
    assert {name: suite.get("failures") for name, suite in suites.items() if suite.get("failures") != "0"} == {
        "docker:sdk:runc": "2"
    }
    assert suites["oci:crun"].get("errors") == "1"
    messages = [str(skip.get("message")) for skip in document.iter("skipped")]
    assert {message.partition(":")[0] for message in messages} == {"skip", "n/a"}
    (failure,) = (failure for failure in document.iter("failure") if "lost a line" in str(failure.text))
    assert "reproduce: seatrial run docker:sdk:runc" in str(failure.text)
    case = next(
        case
        for case in suites["containerd:grpc:runc"].iter("testcase")
        if case.get("name") == "test_voyage[start-host]"
    )
    assert 0.04 < float(str(case.get("time"))) < 0.1, "seconds"
    names = [(case.get("classname"), case.get("name")) for case in suites["oci:runc"].iter("testcase")]
    assert len(names) == len(set(names))


def test_csv(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(render("csv", [GOLDEN]))))
    lines = [json.loads(line) for line in (GOLDEN / "records.jsonl").read_text().splitlines()]
    timed = [line for line in lines if "wall_ns" in line]
    assert len(rows) == len(timed) > 200
    for row, line in zip(rows, timed, strict=True):
        assert row["run"] == "20260102-030405-c0de"
        assert int(row["wall_ns"]) == line["wall_ns"], "to the nanosecond"
        assert row["cpu_engine_ns"] == str(line["cpu_ns"].get("engine", "")), "absent is empty"
        assert row["phase"] == line["phase"]
        assert "reason" not in row
    big = 2**60 + 1
    path = stored(tmp_path, record(wall_ns=big, started_ns=big, phase=Phase.MEASURE))
    assert next(csv.DictReader(io.StringIO(render("csv", [path]))))["started_ns"] == str(big)


def test_several_runs_side_by_side(tmp_path: Path) -> None:
    one = stored(tmp_path / "1", record(), machine={"distribution": "Debian 12"}, subjects=("oci:runc",))
    two = stored(tmp_path / "2", record(outcome=Outcome.FAIL, reason="x"), machine={"distribution": "Fedora 41"})
    for form in ("table", "markdown", "html"):
        text = render(form, [one, two])
        assert "Debian 12" in text and "Fedora 41" in text
    assert "oci:runc (Fedora 41), start: x" in render("table", [one, two])


def test_write_all(tmp_path: Path) -> None:
    folder = RunFolder(stored(tmp_path, record()))
    written = write_all(folder)
    assert [path.name for path in written] == ["report.md", "report.html", "junit.xml", "samples.csv"]
    assert all(path.stat().st_size > 0 for path in written)
    assert written[0].read_text() == render("markdown", [folder.path])
    assert write_all(folder) == written, "again, in place of the old ones"


def test_what_cannot_be_rendered(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no report format 'pdf'; known: table, markdown"):
        render("pdf", [GOLDEN])
    with pytest.raises(StoreError, match="not the folder of a run"):
        render("table", [tmp_path])


def test_long_texts_lose_their_middle() -> None:
    text = clean("a" * 5000 + "b" * 5000)
    assert len(text) < 4100
    assert text.startswith("aaa") and text.endswith("bbb")
    assert "6000 characters left out" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.004, "0.00"),
        (0.05, "0.05"),
        (0.999, "1.0"),
        (9.94, "9.9"),
        (9.96, "10"),
        (123.4, "123"),
        (-2, "-2.0"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_command_line_starts_without_pandas() -> None:
    code = "import sys, harness.store, harness.report.load, harness.report.statistics; print('pandas' in sys.modules)"
    done = HostRunner().run([sys.executable, "-c", code], timeout_s=30, env=dict(os.environ)).check()
    assert done.text == "False\n"


def test_runs_are_not_changed_by_reading() -> None:
    before = {path.name: path.read_bytes() for path in GOLDEN.iterdir()}
    render("html", [GOLDEN])
    assert {path.name: path.read_bytes() for path in GOLDEN.iterdir()} == before
