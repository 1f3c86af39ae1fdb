"""``seatrial bench``: figures with limits."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.model.bench import BENCHES


@click.command(
    "bench",
    epilog="""\b
Examples:
  seatrial bench cri                                 minirt against containerd and runc: some minutes, quiet machine
  seatrial bench cri --quick                         the same in two or three minutes, rougher
  seatrial bench cri --figure exec --figure memory   some of it
  seatrial bench cri containerd:grpc:crun            another subject against the same reference
  seatrial bench cri mine=containerd:grpc:/path/to/runtime --reference containerd:grpc:runc
  seatrial bench oci                                 minirt and crun against runc, by their own command lines
  seatrial bench oci mine=oci:/path/to/runtime       your own against runc
\b
Exit status: 0 every figure was measured (with --check: and is within its limit); 1 a step failed (with --check: or
a limit is exceeded); 2 bad usage; 3 this machine cannot; 130/143 interrupted.""",
)
@click.argument("name", metavar="BENCH", type=click.Choice(list(BENCHES)))
@click.argument("words", metavar="[SUBJECT]...", nargs=-1)
@click.option("--quick", is_flag=True, help="Fewer turns, and no reference where only a subject's own ratio counts.")
@click.option("--figure", "figures", multiple=True, metavar="NAME", help="Only this figure or group (may be repeated).")
@click.option("--reference", metavar="SUBJECT", help="Divide by this subject's figures.  [default: the bench's own]")
@click.option("--blocks", type=click.IntRange(1, 1000), help="Turns of each engine.  [default: by figure, 2 to 16]")
@click.option("--many", type=click.IntRange(1, 10000), default=200, show_default=True, help="Pods where many stand by.")
@click.option("--seed", type=int, default=None, help="Decides the order of turns.  [default: taken from the clock]")
@click.option("--check", is_flag=True, help="Exit with 1 where a limit is exceeded or a figure is missing.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder in which the run's own folder is made.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Subjects and options as TOML.  [default: seatrial.toml, if it is there]",
)
@click.option(
    "--registry-port", type=click.IntRange(0, 65535), default=None, help="Port of the image registry on loopback."
)
def bench(
    name: str,
    words: tuple[str, ...],
    quick: bool,
    figures: tuple[str, ...],
    reference: str | None,
    blocks: int | None,
    many: int,
    seed: int | None,
    check: bool,
    output: Path,
    config: Path | None,
    registry_port: int | None,
) -> int:
    """Measure the figures of a BENCH: each SUBJECT against a reference, on one machine, in one run.

    Engines take turns in balanced blocks, in an order that the seed decides. Two engines of each subject take part: what
    tells the one from the other is chance, and a difference counts only if it is larger than that and its confidence
    interval (95 %) excludes 1. Do nothing else on the machine meanwhile. Needs root.
    """
    from harness.cli.bench_run import Request, perform_bench

    return perform_bench(
        Request(
            bench=BENCHES[name],
            subjects=words,
            reference=reference,
            figures=figures,
            quick=quick,
            blocks=blocks,
            many=many,
            seed=seed,
            check=check,
            output=output,
            config=config,
            registry_port=registry_port,
            command=tuple(sys.argv),
        )
    )
