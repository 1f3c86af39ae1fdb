"""The words of ``minirt serve`` and ``minirt shutdown``, from the command line and from a TOML file with the same keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.minirt.errors import UsageError
from harness.minirt.streaming.server import parse_address

_LEVELS = ("debug", "info", "warning", "error")
_LONGEST_SOCKET_PATH = 107
"""bytes that the kernel's address of a socket has room for (unix(7))"""


def _option(default: str, value: str, help: str) -> Any:
    return field(default=default, metadata={"value": value, "help": help})


@dataclass(frozen=True, slots=True)
class Options:
    """How a daemon is started."""

    listen: str = _option(
        "unix:///run/minirt/minirt.sock", "unix:///PATH", "the socket on which CRI is spoken; its mode is 0600"
    )
    root: str = _option("/var/lib/minirt", "FOLDER", "images and what containers write; survives a reboot")
    state: str = _option("/run/minirt", "FOLDER", "what lives no longer than the machine is up")
    cni_conf_dir: str = _option("/etc/cni/net.d", "FOLDER", "network configurations; the first by name is used")
    cni_bin_dir: str = _option("/opt/cni/bin:/usr/lib/cni", "FOLDER[:FOLDER...]", "network plugins")
    cdi_dirs: str = _option(
        "/etc/cdi:/var/run/cdi", "FOLDER[:FOLDER...]", "descriptions of devices (CDI); later ones win"
    )
    hosts_dir: str = _option(
        "/etc/containerd/certs.d", "FOLDER", "registries and their mirrors: <host>/hosts.toml, as containerd has it"
    )
    registry_config: str = _option(
        "", "FILE", "Docker's config.json with credentials; default: $DOCKER_CONFIG/config.json, ~/.docker/config.json"
    )
    pause_image: str = _option("", "REF", "an image that is never to be removed; minirt itself needs none")
    cgroup_parent: str = _option("/minirt", "PATH", "where the cgroups of pods go that name no parent of their own")
    streaming_address: str = _option("127.0.0.1:0", "HOST:PORT", "where exec, attach and port-forward are served")
    log_level: str = _option("info", "|".join(_LEVELS), "from where on to log to stderr")

    @property
    def socket(self) -> Path:
        """The path to listen on."""
        return Path(self.listen.removeprefix("unix://"))

    @property
    def supervisor_socket(self) -> Path:
        return Path(self.state) / "supervisor.sock"

    @property
    def bin_dirs(self) -> tuple[Path, ...]:
        """The folders of network plugins."""
        return tuple(Path(folder) for folder in self.cni_bin_dir.split(":") if folder)

    @property
    def cdi_folders(self) -> tuple[str, ...]:
        """The folders of descriptions of devices."""
        return tuple(folder for folder in self.cdi_dirs.split(":") if folder)


def _word(option: Field[Any]) -> str:
    return f"--{option.name.replace('_', '-')}"


def render_help(command: str, does: str) -> str:
    """What ``--help`` prints."""
    lines = [f"Usage: minirt {command} [OPTION VALUE]...", "", *does.splitlines(), "", "Options:"]
    lines += ["  --config FILE", "      a TOML file of these options, without the dashes: log_level = 'debug'"]
    for option in fields(Options):
        default = f" [{option.default}]" if option.default else ""
        lines += [f"  {_word(option)} {option.metadata['value']}", f"      {option.metadata['help']}{default}"]
    lines += ["", "What stands on the command line wins over the file."]
    return "\n".join(lines) + "\n"


def parse_options(argv: Sequence[str]) -> Options:
    """Options on the command line win over those in ``--config FILE``. Raises `UsageError`."""
    given: dict[str, str] = {}
    known = {_word(option): option.name for option in fields(Options)}
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    return config_of(content, str(path))


def config_of(content: Mapping[str, Any], path: str) -> dict[str, str]:
    """Check a parsed file's keys, types and values."""
    known = {option.name: option for option in fields(Options)}
    found: dict[str, str] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UsageError(f"{path}: {key}: there is no such option; known are {', '.join(known)}")
        if not isinstance(value, str):
            wanted = known[name].metadata["value"]
            raise UsageError(f"{path}: {key}: a string is needed ({wanted}), not {value!r}")
        if name in found:
            raise UsageError(f"{path}: {key}: it is there twice, with dashes and with underscores")
        found[name] = value
    try:
        check(Options(**found))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return found


def check(options: Options) -> Options:
    """`options`, once they make sense."""
    for option in fields(Options):
        text = getattr(options, option.name)
        if "\0" in text or "\n" in text:
            raise UsageError(f"{_word(option)} {text!r}: it holds a character that no path and no name has")
    if not options.listen.startswith("unix:///") or options.listen.endswith("/"):
        raise UsageError(f"--listen {options.listen}: only unix:///absolute/path can be listened on")
    if len(bytes(options.socket)) > _LONGEST_SOCKET_PATH:
        raise UsageError(f"--listen {options.listen}: its path is longer than {_LONGEST_SOCKET_PATH} bytes")
    for name in ("root", "state", "cni_conf_dir", "hosts_dir", "cgroup_parent"):
        text = getattr(options, name)
        if not text.startswith("/") and not (name == "hosts_dir" and not text):
            raise UsageError(f"--{name.replace('_', '-')} {text!r}: an absolute path is needed")
    if any(not folder.is_absolute() for folder in options.bin_dirs):
        raise UsageError(f"--cni-bin-dir {options.cni_bin_dir!r}: absolute paths are needed, joined by colons")
    if any(not folder.startswith("/") for folder in options.cdi_folders):
        raise UsageError(f"--cdi-dirs {options.cdi_dirs!r}: absolute paths are needed, joined by colons")
    if ".." in options.cgroup_parent.split("/") or not options.cgroup_parent.strip("/"):
        raise UsageError(f"--cgroup-parent {options.cgroup_parent!r}: a path below the top, without '..', is needed")
    if options.root.rstrip("/") == options.state.rstrip("/"):
        raise UsageError(f"--root and --state are both {options.root}: they must be two folders")
    try:
        parse_address(options.streaming_address)
    except UsageError as error:
        raise UsageError(f"--streaming-address: {error}") from None
    if options.log_level not in _LEVELS:
        raise UsageError(f"--log-level {options.log_level!r}: one of {', '.join(_LEVELS)} is needed")
    return options
