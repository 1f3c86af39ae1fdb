"""Who gets which credentials: from calls, from Docker's config.json, from helper programs; and who never does."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_images import LAYERS, Bench, bench_on
from minirt_registry import BASIC, Fault, serving_registry

from harness.minirt.errors import Denied, InvalidArgument, Unavailable, WrongState
from harness.minirt.images.authorization import Authorization, parse_challenges
from harness.minirt.images.credentials import (
    NOBODY,
    Credentials,
    config_file,
    find_credentials,
    parse_auth,
    same_host,
)

USER = Credentials("user", "secret")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_on(tmp_path) as bench:
        bench.registry.add_image("a", "1", LAYERS)
        yield bench


def write_config(bench: Bench, **content: object) -> None:
    bench.config.write_text(json.dumps(content))


def helper(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str, name: str = "test") -> None:
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


# -- from the registry's side ------------------------------------------------------------------------------------------


def test_basic_authorisation(bench: Bench) -> None:
    bench.registry.basic = True
    with pytest.raises(Denied, match="401"):
        bench.pull("a:1")
    with pytest.raises(Denied):
        bench.pull("a:1", Credentials("user", "wrong"))
    bench.pull("a:1", USER)


def test_an_identity_token(bench: Bench) -> None:
    bench.registry.token = "abc"
    with pytest.raises(Denied):
        bench.pull("a:1", Credentials(identity_token="other"))
    bench.pull("a:1", Credentials(identity_token="identity"))


def test_one_token_serves_all_layers(bench: Bench) -> None:
    bench.registry.token = "abc"
    bench.pull("a:1", USER)
    assert bench.registry.requests.count("/token") == 1


def test_a_token_that_expires_in_the_middle_is_replaced(bench: Bench) -> None:
    bench.registry.token, bench.registry.token_lasts_s = "abc", 1  # less than what is left for the way
    bench.pull("a:1", USER)
    assert bench.registry.requests.count("/token") > 1
    # Also where the registry takes it back before its time.
    bench.registry.token_lasts_s = 0
    digest = json.loads(bench.registry.manifests["a", "1"][1])["layers"][0]["digest"]
    bench.store.remove(bench.store.list()[0].id)
    challenge = f'Bearer realm="http://{bench.registry.address}/token",service="test"'
    bench.registry.faults[digest] = [Fault(401, {"WWW-Authenticate": challenge})]
    bench.pull("a:1", USER)


def test_a_token_server_that_is_busy_is_asked_again(bench: Bench) -> None:
    bench.registry.token = "abc"
    bench.registry.faults["token"] = [Fault(503), Fault(429)]
    bench.pull("a:1", USER)
    bench.store.remove(bench.store.list()[0].id)
    bench.registry.faults["token"] = [Fault(503) for _ in range(9)]
    with pytest.raises(Unavailable, match="no token"):
        bench.pull("a:1", USER)


def test_another_host_gets_nothing(bench: Bench) -> None:
    with serving_registry() as store:
        store.blobs = bench.registry.blobs
        store.basic = False
        bench.registry.token, bench.registry.store = "abc", store.address
        folder = bench.hosts / bench.registry.address
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(
            f'server = "http://{bench.registry.address}"\n[header]\nX-Secret = "whisper"\n'
        )
        bench.pull("a:1", USER)
        assert store.seen
        assert store.authorizations() == {""}
        assert not any("X-Secret" in headers for _, headers in store.seen)
        assert any(headers.get("X-Secret") == "whisper" for _, headers in bench.registry.seen)


def test_a_mirror_gets_no_credentials_of_the_original(bench: Bench) -> None:
    with serving_registry() as mirror:
        mirror.basic = True
        folder = bench.hosts / bench.registry.address
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(
            f'server = "http://{bench.registry.address}"\n[host."http://{mirror.address}"]\n'
        )
        bench.registry.basic = True
        bench.pull("a:1", USER)
        assert mirror.authorizations() == {""}
        # Its own it does get.
        mirror.add_image("a", "1", LAYERS)
        auth = base64.b64encode(b"user:secret").decode()
        write_config(bench, auths={mirror.address: {"auth": auth}})
        bench.store.remove(bench.store.list()[0].id)
        bench.registry.requests.clear()
        bench.pull("a:1")
        assert bench.registry.requests == []


def test_credentials_for_another_server_are_not_used(bench: Bench) -> None:
    bench.registry.basic = True
    with pytest.raises(Denied):
        bench.pull("a:1", Credentials("user", "secret", server="https://registry.example/v2/"))
    assert bench.registry.authorizations() == {""}
    bench.pull("a:1", Credentials("user", "secret", server=f"http://{bench.registry.address}"))


def test_secrets_are_in_no_message(bench: Bench) -> None:
    bench.registry.basic = True
    with pytest.raises(Denied) as caught:
        bench.pull("a:1", Credentials("user", "hunter2", "ident1ty", ""))
    told = f"{caught.value} {bench.notes} {Credentials('user', 'hunter2', 'ident1ty', 'reg1stry')!r}"
    for secret in ("hunter2", "ident1ty", "reg1stry", base64.b64encode(b"user:hunter2").decode()):
        assert secret not in told


def test_credentials_do_not_go_from_https_to_http() -> None:
    asked: list[str] = []

    def send(url: str, headers: object, form: object) -> tuple[int, bytes]:
        asked.append(url)
        return 200, b'{"token": "t"}'

    challenge = 'Bearer realm="http://token.example/get"'
    with pytest.raises(Denied, match="in the clear"):
        Authorization("https://registry.example/v2", "a", lambda: USER, send).answer(challenge, "")
    assert asked == []
    anonymous = Authorization("https://registry.example/v2", "a", lambda: NOBODY, send)
    assert anonymous.answer(challenge, "") == "Bearer t"
    assert asked == ["http://token.example/get?scope=repository%3Aa%3Apull"]


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\r\\nX-Evil: 1"}', b'"token"'])
def test_a_token_server_that_talks_nonsense(answer: bytes) -> None:
    authorization = Authorization("https://r.example/v2", "a", lambda: NOBODY, lambda *_: (200, answer))
    with pytest.raises(Denied, match="without a token"):
        authorization.answer('Bearer realm="https://t.example/"', "")
    assert authorization.header() == ""


def test_challenges() -> None:
    assert parse_challenges('Bearer realm="https://t/",service="s",scope="repository:a/b:pull,push"') == {
        "bearer": {"realm": "https://t/", "service": "s", "scope": "repository:a/b:pull,push"}
    }
    both = parse_challenges('Basic realm="a \\"b\\", c", Bearer realm=https://t , error="x"')
    assert both == {"basic": {"realm": 'a "b", c'}, "bearer": {"realm": "https://t", "error": "x"}}
    assert parse_challenges("") == {}
    assert parse_challenges(",,, = nonsense") == {}


# -- from config.json's side -------------------------------------------------------------------------------------------


def test_which_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    assert config_file() == Path("/home/x/.docker/config.json")
    monkeypatch.setenv("DOCKER_CONFIG", "/etc/d")
    assert config_file() == Path("/etc/d/config.json")
    assert config_file("/a/b.json") == Path("/a/b.json")


def test_config_json_is_read_at_each_pull(bench: Bench) -> None:
    bench.registry.basic = True
    with pytest.raises(Denied):
        bench.pull("a:1")
    write_config(bench, auths={f"https://{bench.registry.address}/v1/": {"auth": BASIC.removeprefix("Basic ")}})
    bench.pull("a:1")
    # What the call brings counts for more.
    with pytest.raises(Denied):
        bench.pull("a:1", Credentials("user", "wrong"))


def test_entries_of_config_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"

    def auth(user: str) -> dict[str, str]:
        return {"auth": base64.b64encode(f"{user}:x".encode()).decode()}

    rows = {
        "registry.example": auth("whole"),
        "registry.example/team": auth("team"),
        "https://index.docker.io/v1/": auth("hub"),
        "plain.example": {"username": "plain", "password": "x"},
        "token.example": {"identitytoken": "idt", **auth("<token>")},
        "port.example:5000": auth("port"),
    }
    path.write_text(json.dumps({"auths": rows}))
    for host, repository, user in (
        ("registry.example", "other/a", "whole"),
        ("registry.example", "team/a", "team"),
        ("registry.example", "teams/a", "whole"),
        ("docker.io", "library/a", "hub"),
        ("registry-1.docker.io", "library/a", "hub"),
        ("plain.example", "a", "plain"),
        ("port.example:5000", "a", "port"),
        ("port.example", "a", ""),
        ("xregistry.example", "a", ""),
    ):
        assert find_credentials(path, host, repository).username == user, (host, repository)
    assert find_credentials(path, "token.example", "a").identity_token == "idt"
    assert find_credentials(tmp_path / "none", "registry.example", "a") == NOBODY


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"auths": [1]}', '{"credsStore": "../evil"}', '{"auths": {"r.example": {"auth": "%%"}}}']
)
def test_a_broken_config_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(WrongState, match=r"config\.json"):
        find_credentials(path, "r.example", "a")


def test_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    helper(tmp_path, monkeypatch, 'read host; echo "{\\"Username\\": \\"$1-$host\\", \\"Secret\\": \\"s\\"}"')
    path.write_text(json.dumps({"credHelpers": {"r.example": "test"}}))
    assert find_credentials(path, "r.example", "a") == Credentials("get-r.example", "s")
    assert find_credentials(path, "other.example", "a") == NOBODY
    path.write_text(json.dumps({"credsStore": "test"}))
    assert find_credentials(path, "docker.io", "a").username == "get-https://index.docker.io/v1/"
    helper(tmp_path, monkeypatch, 'echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"s\\"}"')
    assert find_credentials(path, "r.example", "a") == Credentials(identity_token="s")


def test_helpers_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credsStore": "test", "auths": {"r.example": {"username": "u", "password": "p"}}}))
    with pytest.raises(Denied, match="docker-credential-test cannot be run"):
        find_credentials(path, "r.example", "a")
    helper(tmp_path, monkeypatch, 'echo "credentials not found in native keychain"; exit 1')
    assert find_credentials(path, "r.example", "a").username == "u"
    helper(tmp_path, monkeypatch, "echo locked >&2; exit 1")
    with pytest.raises(Denied, match="exit status 1: locked"):
        find_credentials(path, "r.example", "a")
    helper(tmp_path, monkeypatch, "echo nonsense")
    with pytest.raises(Denied, match="something else"):
        find_credentials(path, "r.example", "a")
    helper(tmp_path, monkeypatch, "exec sleep 60")
    with pytest.raises(Denied, match="did not answer"):
        find_credentials(path, "r.example", "a", timeout_s=0.1)


def test_auth_of_a_call() -> None:
    assert parse_auth(base64.b64encode(b"u:p:q\0\0").decode()) == ("u", "p:q")
    for text in ("", "%%", base64.b64encode(b"nobody").decode(), base64.b64encode(b"\xff:\xff").decode()):
        with pytest.raises(InvalidArgument):
            parse_auth(text)


def test_hosts_that_are_the_same() -> None:
    assert same_host("https://r.example/v2/", "R.example")
    assert same_host("docker.io", "https://index.docker.io/v1/")
    assert not same_host("r.example", "r.example:5000")
    assert not same_host("r.example.evil", "r.example")
