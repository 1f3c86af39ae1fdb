"""Runs on disk: what is written is read again, and whatever ends a run, what was written before stays readable."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from harness import store
from harness.command import HostRunner
from harness.errors import StoreError
from harness.model.record import Cpu, Memory, Outcome, Phase, Record, Run
from harness.store import RunFolder, find_runs, newest, read_folder

GOLDEN = Path(__file__).parents[2] / "results/golden"


def run(name: str = "20260102-030405-aaaa") -> Run:
    return Run(
        run=name,
        seatrial="0.1.0",
        command=("seatrial", "run"),
        seed=7,
        quick=True,
        started="2026-01-02T03:04:05+00:00",
        machine={"kernel": "6.1", "cores": 2},
        versions={"runc": "1.1.5"},
        subjects=("oci:runc",),
    )


def record(**fields: object) -> Record:
    known: dict[str, object] = {
        "subject": "oci:runc",
        "engine": "none",
        "client": "oci",
        "handler": "runc",
        "suite": "lifecycle",
        "test": "test_x[oci:runc]",
        "operation": "start",
        "outcome": Outcome.PASS,
    }
    return Record(**{**known, **fields})  # type: ignore[arg-type]


def test_round_trip(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "results", run())
    assert folder.path == tmp_path / "results/20260102-030405-aaaa"
    full = record(
        phase=Phase.MEASURE,
        reason="línea\nzwei\u2028drei",
        wall_ns=5,
        cpu_ns=Cpu(engine=0, pods=3),
        memory_bytes=Memory(engine=9),
        block=0,
    )
    folder.append(record())
    folder.append(full)
    data = folder.read()
    assert data.run == run()
    assert data.records == folder.read_records() == (record(), full)
    assert data.notes == ()
    assert (folder.path / "records.jsonl").read_bytes().count(b"\n") == 2
    assert b'"engine":0' in (folder.path / "records.jsonl").read_bytes(), "0 is a value"


def test_a_record_without_engine_and_step(tmp_path: Path) -> None:
    """As of a test that is about the machine: empty strings are left out of the line, and are back after it is read."""
    folder = RunFolder.create(tmp_path, run())
    bare = record(subject="this machine", engine="", client="", handler="", suite="", operation="", reason="\ud800?")
    folder.append(bare)
    assert folder.read().notes == ()
    assert folder.read_records() == (dataclasses.replace(bare, reason="??"),)


def test_update_replaces_the_run(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, run())
    ended = dataclasses.replace(run(), ended="2026-01-02T03:05:05+00:00", notes=("a note",))
    folder.update(ended)
    assert read_folder(folder.path).run == ended
    assert sorted(path.name for path in folder.path.iterdir()) == ["records.jsonl", "run.json"], "no draft is left"


def test_a_run_that_is_there_already(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, run()).append(record())
    with pytest.raises(StoreError, match="File exists"):
        RunFolder.create(tmp_path, run())
    assert len(read_folder(tmp_path / run().run).records) == 1


@pytest.mark.parametrize("cut", [1, 2, 40, 100])
def test_a_torn_last_line_is_dropped_with_a_note(tmp_path: Path, cut: int) -> None:
    folder = RunFolder.create(tmp_path, run())
    folder.append(record())
    folder.append(record(reason="ü" * 50))
    path = folder.path / "records.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    data = folder.read()
    if cut == 1:
        assert len(data.records) == 2, "all of it was written but for the newline"
    else:
        assert data.records == (record(),)
        assert "torn" in data.notes[0]


def test_a_damaged_line_costs_no_other(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, run())
    folder.append(record())
    with (folder.path / "records.jsonl").open("ab") as file:
        file.write(b'{"subject": "x"}\n\n\xff\xfe\n[]\n')
    folder.append(record(test="last"))
    data = folder.read()
    assert [entry.test for entry in data.records] == ["test_x[oci:runc]", "last"]
    assert [note.split(" cannot")[0] for note in data.notes] == [f"records.jsonl: line {n}" for n in (2, 4, 5)]


def test_several_processes_append_at_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, run())
    code = """
import sys; from pathlib import Path; from harness.store import RunFolder; import test_store
folder = RunFolder(Path(sys.argv[1]))
for number in range(200): folder.append(test_store.record(test=f"{sys.argv[2]}-{number}", reason="x" * number * 20))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with (tmp_path / "log").open("wb") as log:
        processes = [
            HostRunner().start(
                [sys.executable, "-c", code, str(folder.path), name],
                env=environment,
                stdout_fd=log.fileno(),
                stderr_fd=log.fileno(),
            )
            for name in ("a", "b", "c")
        ]
        assert [process.wait(60) for process in processes] == [0, 0, 0], (tmp_path / "log").read_text()
    data = folder.read()
    assert data.notes == ()
    for name in ("a", "b", "c"):
        mine = [entry.test for entry in data.records if entry.test.startswith(f"{name}-")]
        assert mine == [f"{name}-{number}" for number in range(200)], "each process' records, whole and in order"


def test_a_full_disk_leaves_what_was_written_readable(tmp_path: Path) -> None:
    """On a file system of 64 KiB, in a mount namespace of the test's own."""
    small = tmp_path / "small"
    small.mkdir()
    code = f"""
from pathlib import Path
from harness.errors import StoreError
from harness.store import RunFolder
import dataclasses, test_store
folder = RunFolder.create(Path({str(small)!r}), test_store.run())
written = 0
try:
    while written < 10000:
        folder.append(test_store.record(reason="x" * 1500))
        written += 1
except StoreError as error:
    assert "No space left on device" in str(error) and "stays readable" in str(error), error
data = folder.read()
assert 10 < len(data.records) == written < 10000, (len(data.records), written)
assert "torn" in data.notes[0], data.notes
try:
    folder.update(dataclasses.replace(test_store.run(), notes=("y" * 9000,)))
except StoreError as error:
    assert "No space left on device" in str(error), error
else:
    raise AssertionError("there was room for another run.json")
assert folder.read().run == test_store.run()
assert sorted(path.name for path in folder.path.iterdir()) == ["records.jsonl", "run.json"]
(Path({str(small)!r}) / "ballast").unlink()
folder.append(test_store.record(test="after"))
data = folder.read()
assert len(data.records) == written + 1 and data.records[-1].test == "after", data.notes
print("all of it")
"""
    script = 'mount -t tmpfs -o size=64k small "$1" && head -c 8192 /dev/zero >"$1/ballast" && exec "$2" -c "$3"'
    done = HostRunner().run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(small), sys.executable, code],
        timeout_s=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert (done.status, done.text) == (0, "all of it\n"), done.stderr.decode()


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"not the folder of a run: it has no run\.json"):
        read_folder(tmp_path)
    for text in ("{", "[]", "\xff", '{"schema": 1}', '{"schema": 1, "run": 3, "nonsense": true}'):
        (tmp_path / "run.json").write_text(text, encoding="latin-1")
        with pytest.raises(StoreError, match="is damaged"):
            read_folder(tmp_path)


@pytest.mark.parametrize("version", [0, 4, None, "1", [1]])
def test_a_schema_that_is_not_known(tmp_path: Path, version: object) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**run().to_json(), "schema": version}))
    with pytest.raises(StoreError, match=r"has schema version .*; this Seatrial reads 1, 2, 3 and writes 3"):
        read_folder(tmp_path)


def test_records_that_are_missing(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, run())
    (folder.path / "records.jsonl").unlink()
    data = folder.read()
    assert (data.records, data.notes) == ((), ("records.jsonl is missing",))


def test_the_newest(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no run in"):
        newest(tmp_path / "nowhere")
    for name in ("20260102-030405-bbbb", "20260102-030405-aaaa", "20251231-235959-zzzz"):
        RunFolder.create(tmp_path, run(name))
    (tmp_path / "20270101-000000-none").mkdir()
    assert newest(tmp_path).name == "20260102-030405-bbbb"
    assert [path.name[:4] for path in find_runs(tmp_path)] == ["2025", "2026", "2026"]


def test_every_schema_version_has_a_golden_run() -> None:
    """Each is read without a word; a new version has to bring its own, and may not break the old ones."""
    assert {path.name for path in GOLDEN.iterdir() if path.is_dir()} == {f"v{version}" for version in store.READERS}
    for version in store.READERS:
        data = read_folder(GOLDEN / f"v{version}")
        assert data.run.schema == version
        assert data.notes == ()
        assert {entry.outcome for entry in data.records} == set(Outcome)
        assert {entry.phase for entry in data.records} == set(Phase)
