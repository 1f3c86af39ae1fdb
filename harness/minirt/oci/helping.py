"""The help of the command and of its verbs."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.minirt.oci.arguments import Option, Verb


def render_help(verb: Verb) -> str:
    """The help of one verb."""
    lines = [f"usage: minirt {verb.name} [options] {verb.arguments}".rstrip(), "", verb.help]
    return "\n".join([*lines, *_option_lines(verb.options)]) + "\n"


def render_usage(verbs: Sequence[Verb], options: tuple[Option, ...]) -> str:
    """The help of the whole command."""
    width = max(len(verb.name) for verb in verbs)
    lines = ["usage: minirt [global options] VERB [options] [arguments]", ""]
    lines += ["minirt runs containers: as an OCI runtime, one verb at a time, or as a CRI daemon (minirt serve).", ""]
    lines += [f"  {verb.name:<{width}}  {verb.help}" for verb in verbs]
    lines += _option_lines(options)
    lines += ["", "minirt VERB --help tells the options of a verb.", ""]
    lines += ["A bundle is a folder with config.json and a root filesystem. To run one:"]
    lines += [
        "  mkdir -p box/rootfs/bin && cp /bin/busybox box/rootfs/bin/sh && cd box && minirt spec && minirt run mine"
    ]
    return "\n".join(lines) + "\n"


def _option_lines(options: tuple[Option, ...]) -> list[str]:
    if not options:
        return []
    heads = []
    for option in options:
        short = f"-{option.short}, " if option.short else ""
        heads.append(f"{short}--{option.name} {option.metavar}".rstrip())
    width = max(map(len, heads))
    lines = ["", "options:"]
    for head, option in zip(heads, options, strict=True):
        default = f" (default {option.default})" if option.default else ""
        lines.append(f"  {head:<{width}}  {option.help}{default}")
    return lines
