"""Runs of several machines: what differs between them, and the report on it in every format."""

from __future__ import annotations

import csv
import html.parser
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.model.record import Cpu, Memory, Outcome, Phase, Record, Run
from harness.report import FORMATS, render
from harness.report.machines import Merged, find_merged
from harness.report.machines.sentences import describe_agreement, describe_platform, find_others
from harness.store import RunData, RunFolder

MS = 1_000_000
REMOTE = "ssh://root@build.example.org"
STEPS = ("create", "start", "pause", "stop")
REASON = "it ended with 137, expected 0\n  state: stopped\nreproduce: seatrial run oci:runc -- -k test_stop"
FAULT = "the machine went away\n[  812.0] Kernel panic - not syncing"


def check(subject: str, operation: str, outcome: Outcome = Outcome.PASS, **more: Any) -> Record:
    engine, client, handler = ("none", *subject.split(":"))[:3]
    fields = {"suite": "lifecycle", "test": f"test_{operation}[{subject}]", "operation": operation, **more}
    return Record(subject=subject, engine=engine, client=client, handler=handler, outcome=outcome, **fields)


def sample(subject: str, operation: str, cpu_ms: float, turn: int = 1) -> Record:
    return check(
        subject,
        operation,
        test=f"test_voyage[{turn}-{subject}]",
        phase=Phase.MEASURE,
        block=turn,
        network="host",
        wall_ns=int(cpu_ms * 2 * MS),
        cpu_ns=Cpu(engine=int(cpu_ms * MS)),
        memory_bytes=Memory(engine=5_000_000, processes=2),
    )


def voyage(subject: str, factor: float = 1.0) -> list[Record]:
    """Each step checked once and measured once; the steps cost 10, 20, 30 and 40 ms of CPU, times `factor`."""
    costs = {step: 10.0 * factor * rank for rank, step in enumerate(STEPS, 1)}
    return [*(check(subject, step) for step in STEPS), *(sample(subject, step, cost) for step, cost in costs.items())]


def instead(records: list[Record], *others: Record) -> list[Record]:
    """`records` with `others` in the place of those of the same subject and test."""
    by = {(record.subject, record.test): record for record in others}
    return [by.get((record.subject, record.test), record) for record in records]


def held(name: str, *records: Record, run: str = "", **more: Any) -> RunData:
    """A run on the machine `name`; `more` are facts of the machine, and fields of the run where they are such."""
    of_run = {key: more.pop(key) for key in ("ended", "versions", "subjects", "notes") if key in more}
    fields: dict[str, Any] = {
        "run": run or f"20260102-030405-{name[:4] or 'here'}".replace("/", "-"),
        "seatrial": "0.1.0",
        "command": (),
        "seed": 1,
        "quick": False,
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:05:05+00:00",
        "machine": {"kernel": "6.1.0", "cgroup_mode": "v2", **({"name": name} if name else {}), **more},
        **of_run,
    }
    return RunData(Path("/nowhere"), Run(**fields), records)


def three() -> list[RunData]:
    """All well on trixie; one failure on the remote one; sid emulated, and lost after the first subject."""
    good = [*voyage("oci:runc"), *voyage("oci:crun")]
    failed = check("oci:runc", "stop", Outcome.FAIL, reason=REASON)
    unable = check("oci:crun", "pause", Outcome.NA, reason="oci:crun has no pause")
    return [
        held("trixie", *good, distribution="Debian 13", accelerator="kvm", versions={"runc": "1.1.15"}),
        held(
            REMOTE, *instead([*voyage("oci:runc", 2), *voyage("oci:crun", 2)], failed, unable), distribution="Debian 12"
        ),
        held(
            "sid", *voyage("oci:runc", 9), accelerator="tcg", fault=FAULT, ended="", subjects=("oci:runc", "oci:crun")
        ),
    ]


def alike() -> list[RunData]:
    return [held(name, *voyage("oci:runc")) for name in ("", "trixie")]


def written(tmp_path: Path, runs: list[RunData]) -> list[Path]:
    folders = []
    for data in runs:
        folder = RunFolder.create(tmp_path, data.run)
        for record in data.records:
            folder.append(record)
        folders.append(folder.path)
    return folders


def outcomes(merged: Merged) -> list[tuple[str, tuple[str, ...], tuple[str, ...], dict[str, str]]]:
    return [
        (it.subject, it.operations, it.tests, {name: ending.outcome.value for name, ending in it.endings.items()})
        for it in merged.differences
    ]


def test_what_differs() -> None:
    merged = find_merged(three())
    assert outcomes(merged) == [
        ("oci:runc", ("stop",), ("test_stop",), {"trixie": "pass", REMOTE: "fail", "sid": "pass"}),
        ("oci:crun", ("pause",), ("test_pause",), {"trixie": "pass", REMOTE: "n/a"}),
    ]
    (failure,) = merged.differences[0].findings
    assert failure.name == f"oci:runc on {REMOTE}"
    assert failure.reason == "it ended with 137, expected 0\n  state: stopped"
    assert failure.reproduce == "seatrial run oci:runc -- -k test_stop"
    assert [machine.outcome for machine in merged.machines] == [Outcome.PASS, Outcome.FAIL, Outcome.ERROR]
    assert [machine.matrix.findings for machine in merged.machines] == [(), (), ()], "all was told already"


def test_nothing_differs() -> None:
    merged = find_merged(alike())
    assert merged.differences == ()
    assert merged.compared == 8
    assert describe_agreement(merged) == "Nothing differs between machines, over 8 cells."
    assert [machine.name for machine in merged.machines] == ["local", "trixie"]
    alone = find_merged([held("a", check("oci:runc", "stop")), held("b", check("oci:crun", "stop"))])
    assert alone.differences == ()
    assert "nothing to compare" in describe_agreement(alone)


def test_a_test_differs_where_its_step_does_not() -> None:
    """Both steps fail, each for another test; and a skipped test does not hide behind one that passed."""
    one, two = check("oci:runc", "stop", test="test_one"), check("oci:runc", "stop", test="test_two")
    fail = {"outcome": Outcome.FAIL, "reason": "x"}
    broken = [
        held("a", check("oci:runc", "stop", test="test_one", **fail), two),
        held("b", one, check("oci:runc", "stop", test="test_two", **fail)),
    ]
    assert [it[2] for it in outcomes(find_merged(broken))] == [("test_one",), ("test_two",)]
    skipped = [
        held("a", one, two),
        held("b", one, check("oci:runc", "stop", Outcome.SKIP, test="test_two", reason="y")),
    ]
    assert outcomes(find_merged(skipped)) == [("oci:runc", ("stop",), ("test_two",), {"a": "pass", "b": "skip"})]
    assert [line.test for line in find_merged(skipped).lines] == ["", "test_two"]


def test_failures_come_first_then_what_is_not_offered_then_skips() -> None:
    ends = {"create": Outcome.SKIP, "start": Outcome.NA, "stop": Outcome.ERROR}
    merged = find_merged(
        [
            held("a", *(check("oci:runc", step) for step in STEPS)),
            held("b", *(check("oci:runc", step, ends.get(step, Outcome.PASS), reason=step) for step in STEPS)),
        ]
    )
    assert [(it.operations, it.gravity) for it in merged.differences] == [
        (("stop",), 0),
        (("start",), 1),
        (("create",), 2),
    ]
    steps = [line.column.operation for line in merged.lines if not line.test]
    assert steps == ["stop", "start", "create", "pause"]


def test_a_subject_that_is_missing_on_one_machine_is_one_difference() -> None:
    gone = [check("oci:runc", step, Outcome.SKIP, reason="runc is not installed") for step in STEPS]
    merged = find_merged([held("a", *(check("oci:runc", step) for step in STEPS)), held("b", *gone)])
    (difference,) = merged.differences
    assert difference.operations == STEPS
    assert len(difference.tests) == 4
    assert len(difference.findings) == 1
    assert [line.test for line in merged.lines] == [""] * 4, "the steps tell it: no test has a row of its own"


def test_what_was_not_tried_is_no_difference() -> None:
    broke_off = [
        held("a", *(check("oci:runc", step) for step in STEPS)),
        held("b", check("oci:runc", "create"), fault="x"),
    ]
    assert find_merged(broke_off).differences == ()
    failed_before = [
        held("a", check("oci:runc", "stop", test="test_one"), check("oci:runc", "stop", Outcome.FAIL, reason="x")),
        held("b", check("oci:runc", "stop", test="test_one"), fault="x"),
    ]
    assert outcomes(find_merged(failed_before)) == [("oci:runc", ("stop",), ("test_stop",), {"a": "fail"})]


def test_one_reason_on_several_machines_is_told_once() -> None:
    """How to reproduce it names the machine, and makes no second reason of it."""

    def broken(machine: str, *more: Record) -> RunData:
        reason = f"it hangs\nreproduce: seatrial run --machine {machine} oci:runc"
        return held(machine, check("oci:runc", "stop", Outcome.FAIL, reason=reason), *more)

    merged = find_merged([broken("a"), broken("b")])
    ((place, (finding,)),) = find_others(merged, Outcome.FAIL)
    assert (place, finding.reason, finding.reproduce) == (
        "every machine",
        "it hangs",
        "seatrial run --machine a oci:runc",
    )
    merged = find_merged([held("c", check("oci:runc", "stop")), broken("a"), broken("b")])
    (finding,) = merged.told
    assert (finding.name, finding.reproduce) == ("oci:runc on a and b", "seatrial run --machine a oci:runc")
    assert find_others(merged, Outcome.FAIL) == []


def test_turns_are_one_test() -> None:
    """A run with more turns is no other run."""
    merged = find_merged(
        [
            held("a", sample("oci:runc", "stop", 1)),
            held("b", *(sample("oci:runc", "stop", 1, turn) for turn in (1, 2, 3))),
        ]
    )
    assert merged.differences == ()
    assert set(merged.endings) == {("oci:runc", "stop", "test_voyage")}


def test_costs_are_ratios_to_the_first_machine() -> None:
    merged = find_merged(three())
    runc, crun = merged.groups
    assert [lane.machine.name for lane in runc.lanes] == ["trixie", REMOTE, "sid"]
    assert runc.base == "trixie"
    first, second, third = runc.lanes
    assert first.ratios is None
    assert {step: (ratio.cpu, ratio.wall) for step, ratio in (second.ratios or {}).items()} == dict.fromkeys(
        STEPS, (2, 2)
    )
    assert {ratio.cpu for ratio in (third.ratios or {}).values()} == {9}
    assert crun.lanes[2].ratios is None, "it was never measured there"
    assert merged.emulated == ("sid",)
    assert "ratios only" in describe_platform(merged.machines[2])
    assert "ratios" not in describe_platform(merged.machines[0])


def test_runs_of_one_machine_stand_side_by_side() -> None:
    runs = [
        held("a", *voyage("oci:runc"), run="one"),
        held("a", *voyage("oci:runc"), run="two"),
        held("b", *voyage("oci:runc")),
    ]
    merged = find_merged(runs)
    assert [(lane.machine.name, lane.run) for lane in merged.groups[0].lanes] == [("a", "one"), ("a", "two"), ("b", "")]
    assert len(merged.machines) == 2
    assert merged.compared == 8


@pytest.mark.parametrize("width", [60, 100, 160])
def test_table(width: int, tmp_path: Path) -> None:
    text = render("table", written(tmp_path, three()), width=width)
    tables = [part for part in text.split("\n\n") if re.search("^-+ ", part, re.MULTILINE)]
    assert max(len(line) for part in tables for line in part.splitlines()) <= width
    blocks = text.split("\n\n")
    assert [block.splitlines()[0].strip().split("  ")[0] for block in blocks[:4]] == [
        "Seatrial 0.1.0, 3 machines",
        "What differs between machines",
        "subject, step, test",
        "✗ fail",
    ]
    assert "Kernel panic" in blocks[1] and "‼ error sid" in blocks[1]
    assert re.search(r"oci:runc, stop +✓ pass +✗ fail +✓ pass", blocks[2])
    assert re.search(r"oci:crun, pause +✓ pass +– n/a +·", blocks[2])
    assert "reproduce: seatrial run oci:runc -- -k test_stop" in blocks[3]
    assert text.index("What differs") < text.index("\nstep ") < text.index("What it costs")
    (stop,) = (line for line in text.splitlines() if line.startswith("stop ") and "✗" in line)
    assert "≠" in stop
    assert re.search(r"oci:runc +×1 +×1 +×2.00 +×2.00 +×9.00 +×9.00", text) or width == 60
    for words in ("Debian 13, Linux 6.1.0, cgroup v2, kvm; runc 1.1.15", "emulated (tcg)"):
        assert words in text or width == 60


def test_the_machines_of_a_subject_stand_together(tmp_path: Path) -> None:
    text = render("table", written(tmp_path, three()), width=160)
    subjects, machines = next(
        (one, two)
        for one, two in zip(text.splitlines(), text.splitlines()[1:], strict=False)
        if two.startswith("step ")
    )
    assert subjects.split() == ["oci:runc", "oci:crun"]
    assert machines.split() == ["step", *("trixie", "ssh://root", "sid") * 2]
    crun = subjects.index("oci:crun")
    assert len(machines[:crun].split()) == 4, "its name begins where its first column does"
    coloured = render(
        "table", sorted(tmp_path.iterdir(), key=lambda it: it.name != "20260102-030405-trix"), colour=True
    )
    assert "\x1b[31m\x1b[1m✗ fail\x1b[0m" in coloured


def test_a_subject_on_one_machine_has_room_for_its_name(tmp_path: Path) -> None:
    name = "containerd:crictl:minirt"
    runs = [held("a", *voyage(name), *voyage("oci:runc")), held("b", *voyage("oci:runc"))]
    lines = render("table", written(tmp_path, runs), width=160).splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("step "))
    assert lines[at - 1].split() == [name, "oci:runc"]
    assert lines[at].split() == ["step", "a", "a", "b"]
    assert re.search(r"(?<=  )a(?=  )", lines[at])
    end = lines[at - 1].index(name) + len(name)
    assert lines[at][end - 1] == "a", "its column reaches as far as its name"


def test_many_machines_are_divided(tmp_path: Path) -> None:
    runs = [held(f"machine-{number}", *voyage("containerd:grpc:runc"), run=f"r{number}") for number in range(9)]
    text = render("table", written(tmp_path, runs), width=80)
    heads = [line for line in text.splitlines() if line.startswith("step ")]
    assert len(heads) > 1
    assert " ".join(heads).split().count("machine-8") == 1
    assert all(len(line) <= 80 for line in text.splitlines() if line.startswith(("step", "stop", "---")))


def test_agreement_is_said_in_one_sentence(tmp_path: Path) -> None:
    folders = written(tmp_path, alike())
    for form in ("table", "markdown", "html"):
        assert "Nothing differs between machines, over 8 cells." in render(form, folders)
    assert "≠" not in render("table", folders)


def test_milliseconds_stand_only_where_no_machine_is_emulated(tmp_path: Path) -> None:
    text = render("table", written(tmp_path / "1", three()[:2]), width=160)
    assert re.search(r"oci:runc +100 +200 +×2.00 +×2.00", text), "the sums of the first machine, in ms"
    text = render("table", written(tmp_path / "2", three()), width=160)
    assert re.search(r"oci:runc +×1 +×1 +×2.00", text)


class Page(html.parser.HTMLParser):
    """The rows of each table of a page, and that each tag is closed in order."""

    VOID = frozenset(("meta", "br", "wbr"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.tables: dict[str, list[tuple[str, str]]] = {}
        """by class of the table: class and text of each row"""
        self._open: list[str] = []
        self._table = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        assert not [key for key, _ in attrs if key.startswith("on")]
        if tag == "table":
            self._table = dict(attrs)["class"] or ""
        if tag == "tr":
            self.tables.setdefault(self._table, []).append((dict(attrs).get("class") or "", ""))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "tr" in self._open and data.strip():
            kind, text = self.tables[self._table][-1]
            self.tables[self._table][-1] = kind, f"{text} {data.strip()}".strip()


def test_page(tmp_path: Path) -> None:
    text = render("html", written(tmp_path, three()))
    page = Page(text)
    assert not page.names & {"script", "img", "link", "iframe"}
    assert "prefers-color-scheme: dark" in text
    assert "http://" not in text and "https://" not in text
    for style in re.findall(r'style="([^"]*)"', text):
        assert re.fullmatch(r"width: \d+(\.\d+)?%", style)
    subjects, machines, *rows = page.tables["matrix wide"]
    assert subjects[1].split() == ["step", "oci:runc", "oci:crun"]
    assert machines[1].split() == [*("trixie", "ssh://root", "@build", ".example", ".org", "sid", "‼", "tcg") * 2]
    assert [(row.partition(" ")[0], kind) for kind, row in rows] == [
        ("stop", "differs gravity0"),
        ("test_stop", "test differs gravity0"),
        ("pause", "differs gravity1"),
        ("test_pause", "test differs gravity1"),
        ("create", ""),
        ("start", ""),
    ]
    assert rows[0][1].startswith("stop ≠ ✓ pass 40 ✗ fail 80 ×2.00 ✓ pass 360 ×9.00")
    assert [row for _, row in page.tables["plain differences"]][1] == "oci:runc stop test_stop ✓ pass ✗ fail ✓ pass"
    assert text.index("What differs between machines") < text.index("Every step on every machine")
    assert "Kernel panic - not syncing" in text


def test_markdown(tmp_path: Path) -> None:
    text = render("markdown", written(tmp_path, three()))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| **oci:runc** | stop | test&#95;stop | ✓ pass | **✗ fail** | ✓ pass |" in rows
    matrix = rows[rows.index(next(row for row in rows if row.startswith("| step"))) :]
    assert [row.split("|")[1].strip() for row in matrix[2:4]] == ["**≠ stop**", "<sub>test&#95;stop</sub>"]
    assert "## What differs between machines\n\n### ‼ error: sid\n" in text
    assert "Kernel panic" in text


def test_junit(tmp_path: Path) -> None:
    document = ElementTree.fromstring(render("junit", written(tmp_path, three())))
    suites = {str(suite.get("name")): suite for suite in document.iter("testsuite")}
    assert list(suites) == [
        *("trixie: oci:runc", "trixie: oci:crun", f"{REMOTE}: oci:runc", f"{REMOTE}: oci:crun"),
        *("sid", "sid: oci:runc", "sid: oci:crun"),
    ]
    for name, suite in suites.items():
        machine = {str(it.get("name")): it.get("value") for it in suite.iter("property")}["machine"]
        assert name.startswith(str(machine))
        assert all(str(case.get("classname")).startswith(str(machine)) for case in suite.iter("testcase"))
    (error,) = suites["sid"].iter("error")
    assert "Kernel panic" in str(error.text)
    assert [suite.get("failures") for suite in suites.values()].count("1") == 1
    of_runc = [
        {(case.get("classname"), case.get("name")) for case in suites[f"{machine}: oci:runc"].iter("testcase")}
        for machine in ("trixie", REMOTE, "sid")
    ]
    assert len(set().union(*of_runc)) == sum(map(len, of_runc)) == 24, "no machine's case stands for another's"


def test_csv(tmp_path: Path) -> None:
    folders = written(tmp_path, three())
    rows = list(csv.DictReader(io.StringIO(render("csv", folders))))
    assert list(rows[0])[-1] == "machine"
    assert [row["machine"] for row in rows] == ["trixie"] * 8 + [REMOTE] * 8 + ["sid"] * 4
    alone = next(csv.reader(io.StringIO(render("csv", folders[:1]))))
    assert alone == list(rows[0])[:-1], "one machine: as ever"


def test_one_machine_has_the_report_it_always_had(tmp_path: Path) -> None:
    named, unnamed = three()[0], held("", *three()[0].records)
    for data in (named, unnamed):
        for form in FORMATS:
            text = render(form, written(tmp_path / str(id(data)) / form, [data]))
            assert "What differs" not in text and "Every step on" not in text
    suites = ElementTree.fromstring(render("junit", written(tmp_path / "junit", [named]))).iter("testsuite")
    assert [suite.get("name") for suite in suites] == ["oci:runc", "oci:crun"]


def test_one_machine_that_failed_says_so(tmp_path: Path) -> None:
    for number, data in enumerate((three()[2], held("sid", fault=FAULT, ended=""))):
        folders = written(tmp_path / str(number), [data])
        for form in ("table", "markdown", "html", "junit"):
            text = render(form, folders)
            assert "Kernel panic" in text
            assert "differs between" not in text
        table = render("table", folders)
        assert "‼ error sid: the trial on this machine broke off" in table
        assert ("\nstep " in table) == (number == 0)


def test_a_machine_without_any_record(tmp_path: Path) -> None:
    runs = [*alike(), held("sid", fault=FAULT, ended="")]
    folders = written(tmp_path, runs)
    for form in ("table", "markdown", "html", "junit"):
        text = render(form, folders)
        assert "Kernel panic" in text
        assert "Nothing differs" in text or form == "junit"


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    evil = "</td></pre><script>alert(1)</script>\x1b[31m |`\u202e{{ 7 * 7 }}"
    wrong = check("oci:runc", "stop", Outcome.FAIL, reason=evil, test=f"test_{evil}")
    right = check("oci:runc", "stop", test=f"test_{evil}")
    runs = [held("a", right), held(evil, wrong, run="b", fault=evil, distribution=evil, versions={evil: evil})]
    folders = written(tmp_path, runs)
    assert "script" not in Page(render("html", folders)).names
    ElementTree.fromstring(render("junit", folders))
    rows = [
        line for line in render("markdown", folders).splitlines() if line.startswith(("| step", "| **≠", "| <sub>"))
    ]
    assert len(rows) == 3 and len({line.count("|") for line in rows}) == 1
    for form in FORMATS:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", render(form, folders)), form
