"""The words of ``minirt serve`` and ``minirt shutdown``, from the command line and from a TOML file with the same keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness.minirt.errors import UsageError
from harness.minirt.streaming.server import parse_address

DEFAULT_LISTEN = "unix:///run/minirt/minirt.sock"


@dataclass(frozen=True, slots=True)
class Options:
    """How a daemon is started."""

    listen: str = DEFAULT_LISTEN
    root: str = "/var/lib/minirt"
    state: str = "/run/minirt"
    cni_conf_dir: str = "/etc/cni/net.d"
    cni_bin_dir: str = "/opt/cni/bin:/usr/lib/cni"
    hosts_dir: str = "/etc/containerd/certs.d"
    pause_image: str = ""
    cgroup_parent: str = "/minirt"
    streaming_address: str = "127.0.0.1:0"
    log_level: str = "info"

    @property
    def socket(self) -> Path:
        """The path to listen on."""
        return Path(self.listen.removeprefix("unix://"))

    @property
    def supervisor_socket(self) -> Path:
        return Path(self.state) / "supervisor.sock"


def parse_options(argv: Sequence[str]) -> Options:
    """Options on the command line win over those in ``--config FILE``. Raises `UsageError`."""
    given: dict[str, str] = {}
    known = {f"--{field.name.replace('_', '-')}": field.name for field in fields(Options)}
    config = ""
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in known and name != "--config":
            raise UsageError(f"{word!r} is not an option; known are --config, {', '.join(known)}")
        if not equals:
            try:
                value = next(words)
            except StopIteration:
                raise UsageError(f"{name} needs a value") from None
        if name == "--config":
            config = value
        else:
            given[known[name]] = value
    if config:
        given = {**read_config(Path(config)), **given}
    return check(Options(**given))


def read_config(path: Path) -> dict[str, str]:
    """The options in a TOML file; dashes and underscores are the same. Raises `UsageError` with file and key."""
    import tomllib

    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    return config_of(content, str(path))


def config_of(content: Mapping[str, Any], path: str) -> dict[str, str]:
    """Check a parsed file's keys and types."""
    known = {field.name for field in fields(Options)}
    found = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UsageError(f"{path}: {key}: there is no such option")
        if not isinstance(value, str):
            raise UsageError(f"{path}: {key}: a string is needed, not {value!r}")
        found[name] = value
    return found


def check(options: Options) -> Options:
    """`options`, once they make sense."""
    if not options.listen.startswith("unix:///"):
        raise UsageError(f"--listen {options.listen}: only unix:///absolute/path can be listened on")
    for name in ("root", "state", "cgroup_parent"):
        if not getattr(options, name).startswith("/"):
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)!r}: an absolute path is needed")
    try:
        parse_address(options.streaming_address)
    except UsageError as error:
        raise UsageError(f"--streaming-address: {error}") from None
    if options.log_level not in ("debug", "info", "warning", "error"):
        raise UsageError(f"--log-level {options.log_level!r}: one of debug, info, warning, error is needed")
    return options
