"""seatrial.toml: what it may say, and how a mistake is named."""

from __future__ import annotations

import pytest

from harness.errors import BadConfig
from harness.model.capability import Capability
from harness.model.config import parse_config
from harness.model.subject import BUILT_IN

FULL = """
[run]
subjects = ["containerd:grpc:runc", "mine"]
suites = ["lifecycle"]

[subject.mine]
runtime = "oci:/usr/local/bin/mine"
without = ["pause"]
options = { args = "--debug" }

[engine.containerd]
snapshotter = "native"
"""


def test_a_full_file() -> None:
    config = parse_config(FULL)
    assert config.subjects == ("containerd:grpc:runc", "mine")
    assert config.suites == ("lifecycle",)
    mine = config.table[-1]
    assert (mine.name, mine.handler) == ("mine", "/usr/local/bin/mine")
    assert Capability.PAUSE not in mine.capabilities
    assert Capability.EXEC in mine.capabilities
    assert mine.options == {"args": "--debug"}
    assert {row.name: dict(row.options) for row in config.table if row.options} == {
        "mine": {"args": "--debug"},
        **{row.name: {"snapshotter": "native"} for row in BUILT_IN if row.engine == "containerd"},
    }


def test_an_empty_file_is_the_default() -> None:
    assert parse_config("").table == BUILT_IN


def test_whole_list_of_capabilities() -> None:
    config = parse_config('[subject.x]\nruntime = "oci:/x"\ncapabilities = ["exec"]')
    assert config.table[-1].capabilities == {Capability.EXEC}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[run", "syntax"),
        ("[typo]", "typo: unknown key; known: engine, run, subject"),
        ("run = 3", "run: is not a table"),
        ('[run]\nsubject = "x"', "run: subject: unknown key"),
        ('[run]\nsubjects = "x"', "run.subjects: is not a list of strings"),
        ('[run]\nsubjects = ["nobody"]', "no subject is called 'nobody'"),
        ("[subject.mine]", "subject.mine.runtime: is missing"),
        ('[subject.mine]\nruntime = "oci:mine"', "subject.mine.runtime: mine: 'oci:mine' does not define a subject"),
        ('[subject."oci:runc"]\nruntime = "oci:/x"', "is the name of a built-in subject"),
        ('[subject.mine]\nruntime = "oci:/x"\nwithout = ["paws"]', "'paws' is not a valid Capability"),
        ('[subject.mine]\nruntime = "oci:/x"\noptions = 1', "subject.mine.options: is not a table"),
        ("[engine.containerd]\nx = 1", "engine.containerd.x: is not a string"),
        ('[engine.ship]\nx = "1"', "engine.ship: no subject has that engine"),
        ("subject = [1]", "subject: is not a table of tables"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(text: str, words: str) -> None:
    with pytest.raises(BadConfig) as caught:
        parse_config(text, "my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert words in str(caught.value)
