"""certs.d: which folder counts, what its files say, what they may not."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from minirt_images import LAYERS, Bench, bench_on
from minirt_registry import _Handler

from harness.image.server import Server
from harness.minirt.errors import InvalidArgument, Unavailable
from harness.minirt.images.credentials import NOBODY
from harness.minirt.images.hosts import Endpoint, endpoints_of, parse_hosts

EVERYTHING = """
server = "https://upstream.example"
ca = "own.pem"

[host."https://one.example"]
  capabilities = ["pull", "resolve", "push"]
  ca = ["a.pem", "/abs/b.pem"]
  client = [["c.pem", "c.key"], "both.pem"]
  skip_verify = true
  dial_timeout = "1m2.5s"
  [host."https://one.example".header]
    X-One = "1"
    X-Two = ["2", "3"]

[host."http://two.example:5000/path"]
  capabilities = ["pull"]
  override_path = true

[host."three.example"]
  capabilities = ["push"]
"""


def test_all_that_a_file_may_say(tmp_path: Path) -> None:
    one, two, last = parse_hosts(EVERYTHING, "registry.example", tmp_path / "hosts.toml")
    assert one == Endpoint(
        "https://one.example/v2",
        ca=(str(tmp_path / "a.pem"), "/abs/b.pem"),
        client=((str(tmp_path / "c.pem"), str(tmp_path / "c.key")), (str(tmp_path / "both.pem"), "")),
        skip_verify=True,
        headers=(("X-One", "1"), ("X-Two", "2, 3")),
        connect_s=62.5,
        namespace="registry.example",
    )
    assert (two.base, two.resolves, two.namespace) == ("http://two.example:5000/path", False, "registry.example")
    assert (last.base, last.ca, last.namespace) == (
        "https://upstream.example/v2",
        (str(tmp_path / "own.pem"),),
        "registry.example",
    )


def test_without_a_server_the_original_is_last_and_its_settings_count(tmp_path: Path) -> None:
    (only,) = parse_hosts("skip_verify = true", "registry.example", tmp_path / "hosts.toml")
    assert (only.base, only.skip_verify, only.namespace) == ("https://registry.example/v2", True, "")
    (hub,) = parse_hosts("", "docker.io", tmp_path / "hosts.toml")
    assert (hub.base, hub.namespace) == ("https://registry-1.docker.io/v2", "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("= 1", "hosts.toml"),
        ('colour = "blue"', "no key 'colour'"),
        ('[host."https://a"]\nmagic = 1', "no key 'magic'"),
        ('[host."https://a"]\ncapabilities = ["fly"]', "no capability 'fly'"),
        ('[host."https://a"]\nskip_verify = "yes"', "true or false"),
        ('[host."https://a"]\nca = 5', "list of strings"),
        ('[host."https://a"]\nclient = [["a", "b", "c"]]', "neither a file nor a pair"),
        ('[host."https://a"]\ndial_timeout = "soon"', "not a duration"),
        ('[host."https://a"]\nheader = 1', "a table is needed"),
        ('[host."ftp://a"]', "not the URL of a registry"),
        ('[host."https://user:pw@a"]', "not the URL of a registry"),
        ("host = 1", "a table is needed"),
        ("server = 1", "a string is needed"),
    ],
)
def test_what_makes_no_sense_is_named_with_its_file(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason) as caught:
        parse_hosts(text, "registry.example", tmp_path / "hosts.toml")
    assert str(tmp_path / "hosts.toml") in str(caught.value)


def test_which_folder_counts(tmp_path: Path) -> None:
    def base(host: str) -> str:
        return endpoints_of(host, tmp_path)[0].base

    def write(folder: str) -> None:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "hosts.toml").write_text(f'[host."https://{folder.strip("_").replace(":", "-")}.mirror"]')

    assert base("r.example:5000") == "https://r.example:5000/v2"
    write("_default")
    assert base("r.example:5000") == "https://default.mirror/v2"
    write("r.example:5000")
    assert base("r.example:5000") == "https://r.example-5000.mirror/v2"
    write("r.example_5000_")
    assert base("r.example:5000") == "https://r.example_5000.mirror/v2"
    assert base("r.example") == "https://default.mirror/v2"


def test_certificates_alone(tmp_path: Path) -> None:
    folder = tmp_path / "r.example"
    folder.mkdir()
    for name in ("ca.crt", "me.cert", "me.key", "lone.cert", "notes.txt"):
        (folder / name).write_text("")
    (only,) = endpoints_of("r.example", tmp_path)
    assert only.ca == (str(folder / "ca.crt"),)
    assert only.client == ((str(folder / "lone.cert"), ""), (str(folder / "me.cert"), str(folder / "me.key")))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_on(tmp_path) as bench:
        bench.registry.add_image("a", "1", LAYERS)
        yield bench


def test_mirrors_in_order_then_the_original_and_the_file_is_read_at_each_pull(bench: Bench) -> None:
    folder = bench.hosts / "registry.example"
    folder.mkdir(parents=True)
    file = folder / "hosts.toml"
    file.write_text('server = "http://127.0.0.1:1"\n')
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        bench.puller.pull("registry.example/a:1", NOBODY, lambda: False)
    file.write_text(f'server = "http://127.0.0.1:1"\n[host."http://{bench.registry.address}"]\n')
    bench.puller.pull("registry.example/a:1", NOBODY, lambda: False)
    # One that may not resolve tags is asked for blobs and digests alone.
    file.write_text(
        f'server = "http://127.0.0.1:1"\n[host."http://{bench.registry.address}"]\ncapabilities = ["pull"]\n'
    )
    with pytest.raises(Unavailable):
        bench.puller.pull("registry.example/a:1", NOBODY, lambda: False)
    (image,) = bench.store.list()
    bench.puller.pull(image.digests[0], NOBODY, lambda: False)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    public, private = tmp_path / "server.pem", tmp_path / "server.key"
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    facts = [
        "-subj",
        "/CN=test",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(private),
        "-out",
        str(public),
    ]
    subprocess.run([*make, *facts], check=True, capture_output=True, timeout=30)
    return public, private


@contextmanager
def serving_tls(bench: Bench, context: ssl.SSLContext) -> Iterator[str]:
    """The bench's registry over TLS; its URL."""
    handler = type("Handler", (_Handler,), {"registry": bench.registry})
    server = Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that do not trust it hang up
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_tls_with_an_authority_of_its_own(bench: Bench, certificate: tuple[Path, Path]) -> None:
    public, private = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    folder = bench.hosts / "registry.example"
    folder.mkdir(parents=True)
    file = folder / "hosts.toml"

    def pull() -> None:
        bench.puller.pull("registry.example/a:1", NOBODY, lambda: False)

    with serving_tls(bench, context) as url:
        file.write_text(f'server = "{url}"')
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            pull()
        file.write_text(f'server = "{url}"\nca = "none.pem"')
        with pytest.raises(InvalidArgument, match=r"none\.pem"):
            pull()
        file.write_text(f'server = "{url}"\nca = ["{public}"]')
        pull()
        file.write_text(f'server = "{url}"\nskip_verify = true')
        pull()


@pytest.mark.parametrize("pair", [True, False], ids=["two files", "one file"])
def test_a_registry_that_asks_who_calls(bench: Bench, certificate: tuple[Path, Path], pair: bool) -> None:
    public, private = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    context.load_verify_locations(public)
    context.verify_mode = ssl.CERT_REQUIRED
    folder = bench.hosts / "registry.example"
    folder.mkdir(parents=True)
    file = folder / "hosts.toml"
    (folder / "both.pem").write_text(public.read_text() + private.read_text())

    def pull() -> None:
        bench.puller.pull("registry.example/a:1", NOBODY, lambda: False)

    with serving_tls(bench, context) as url:
        trusted = f'server = "{url}"\nca = "{public}"\n'
        file.write_text(trusted)
        with pytest.raises(Unavailable):
            pull()
        assert bench.registry.requests == []
        file.write_text(trusted + (f'client = [["{public}", "{private}"]]' if pair else 'client = "both.pem"'))
        pull()
        assert len(bench.store.list()) == 1
