"""``seatrial.toml``: a user's own subjects, engine options and choice of suites, as data."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from harness.errors import BadConfig, UsageError
from harness.model.capability import Capability
from harness.model.subject import BUILT_IN, Subject, define, parse_subject


@dataclass(frozen=True, slots=True)
class Config:
    """What a configuration file asks for. Empty tuples mean: the default."""

    table: tuple[Subject, ...] = BUILT_IN
    """the built-in subjects and the user's own, options applied"""
    subjects: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()


_TOP = {"run", "subject", "engine"}
_RUN = {"subjects", "suites"}
_SUBJECT = {"runtime", "capabilities", "without", "options"}


def parse_config(text: str, path: str = "seatrial.toml") -> Config:
    """Read a configuration.

    ::

        [run]
        subjects = ["containerd:grpc:runc", "mine"]
        suites = ["lifecycle"]

        [subject.mine]
        runtime = "oci:/usr/local/bin/mine"   # as after the = on the command line
        without = ["pause"]                   # or capabilities = [...], the whole list
        options = { args = "--debug" }

        [engine.containerd]                   # for every subject of that engine
        snapshotter = "native"

    Raises `BadConfig`, which names the key.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(path, "syntax", str(error)) from None
    _only(path, "top level", data, _TOP)
    table = list(BUILT_IN)
    for name, row in _tables(path, "subject", data).items():
        table.append(_subject(path, name, row))
    for engine, options in _tables(path, "engine", data).items():
        if engine not in {row.engine for row in table}:
            raise BadConfig(path, f"engine.{engine}", "no subject has that engine")
        shared = _strings(path, f"engine.{engine}", options)
        table = [
            replace(row, options=MappingProxyType({**shared, **row.options})) if row.engine == engine else row
            for row in table
        ]
    run = data.get("run", {})
    if not isinstance(run, dict):
        raise BadConfig(path, "run", "is not a table")
    _only(path, "run", run, _RUN)
    subjects = _words(path, "run.subjects", run.get("subjects", []))
    for name in subjects:
        try:
            parse_subject(name, table)
        except UsageError as error:
            raise BadConfig(path, "run.subjects", str(error)) from None
    return Config(tuple(table), subjects, _words(path, "run.suites", run.get("suites", [])))


def _subject(path: str, name: str, row: Mapping[str, Any]) -> Subject:
    where = f"subject.{name}"
    _only(path, where, row, _SUBJECT)
    definition = row.get("runtime")
    if not isinstance(definition, str):
        raise BadConfig(path, f"{where}.runtime", 'is missing: write runtime = "oci:/path/to/runtime"')
    if any(name == known.name for known in BUILT_IN):
        raise BadConfig(path, where, "is the name of a built-in subject: choose another")
    try:
        subject = define(name, definition)
    except UsageError as error:
        raise BadConfig(path, f"{where}.runtime", str(error)) from None
    capabilities = subject.capabilities
    if "capabilities" in row:
        capabilities = _capabilities(path, f"{where}.capabilities", row["capabilities"])
    capabilities -= _capabilities(path, f"{where}.without", row.get("without", []))
    options = row.get("options", {})
    if not isinstance(options, dict):
        raise BadConfig(path, f"{where}.options", "is not a table")
    return replace(
        subject, capabilities=capabilities, options=MappingProxyType(_strings(path, f"{where}.options", options))
    )


def _capabilities(path: str, where: str, words: Any) -> frozenset[Capability]:
    try:
        return frozenset(Capability(word) for word in _words(path, where, words))
    except ValueError as error:
        raise BadConfig(path, where, f"{error}; known: {', '.join(Capability)}") from None


def _tables(path: str, key: str, data: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    tables = data.get(key, {})
    if not isinstance(tables, dict) or not all(isinstance(value, dict) for value in tables.values()):
        raise BadConfig(path, key, f"is not a table of tables: write [{key}.NAME]")
    return tables


def _words(path: str, where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise BadConfig(path, where, "is not a list of strings")
    return tuple(value)


def _strings(path: str, where: str, table: Mapping[str, Any]) -> dict[str, str]:
    for key, value in table.items():
        if not isinstance(value, str):
            raise BadConfig(path, f"{where}.{key}", "is not a string")
    return dict(table)


def _only(path: str, where: str, table: Mapping[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            raise BadConfig(path, f"{where}: {key}", f"unknown key; known: {', '.join(sorted(known))}")
