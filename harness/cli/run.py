"""``seatrial run``: the main job."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(
    "run",
    epilog="""\b
Examples:
  seatrial run --quick                                every subject that this machine can run
  seatrial run containerd:grpc:runc docker:sdk:runc   two of them, thoroughly
  seatrial run mine=oci:/usr/local/bin/mine oci:runc  your own OCI runtime beside runc
  seatrial run other=cri:unix:///run/other.sock       a CRI server that already runs
  seatrial run here=docker:sdk:runc@/run/docker.sock  the Docker that runs here already
  seatrial run containerd:grpc:runc --attach /run/containerd/containerd.sock
  seatrial run --quick --machine trixie --machine sid the same trial on two virtual machines, in one matrix
  seatrial run oci:runc -- -k stop -x                 options after -- go to pytest
\b
Exit status: 0 no cell is fail or error; 1 some cell is; 2 bad usage; 3 this machine cannot; 130/143 interrupted.""",
)
@click.argument("words", metavar="[SUBJECT]... [-- PYTEST-OPTION...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--quick", is_flag=True, help="Fewer measured turns: minutes become seconds, figures become rougher.")
@click.option(
    "--turns",
    type=click.IntRange(1, 64),
    default=None,
    help="Measured turns of each subject, after one to warm up.  [default: 8; with --quick 2]",
)
@click.option("--suite", "suites", multiple=True, metavar="S", help="Run this suite only (may be repeated).")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder in which the run's own folder is made.",
)
@click.option(
    "--attach",
    metavar="SOCKET",
    type=click.Path(path_type=Path),
    help="Measure the engine that listens there, instead of starting a private one.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Subjects, options and suites as TOML.  [default: seatrial.toml, if it is there]",
)
@click.option("--seed", type=int, default=None, help="Decides the order of turns.  [default: taken from the clock]")
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=None, help="Subjects checked at a time.  [default: cores + 1]"
)
@click.option(
    "--machine",
    "machines",
    multiple=True,
    metavar="M",
    help="Hold the trial there: a machine of `seatrial vm list`, ssh://user@host[:port], or local (may be repeated).",
)
@click.option(
    "--ssh-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="How ssh gets to ssh://... machines.  [default: your own configuration]",
)
@click.option("--stream", is_flag=True, help="Write the run to stdout as JSON lines while it goes; no report.")
@click.option(
    "--registry-port",
    type=click.IntRange(0, 65535),
    default=None,
    help="Port of the image registry on loopback.  [default: 5000 in a private network, any free one with --attach]",
)
def run(
    words: tuple[str, ...],
    quick: bool,
    turns: int | None,
    suites: tuple[str, ...],
    output: Path,
    attach: Path | None,
    config: Path | None,
    seed: int | None,
    jobs: int | None,
    machines: tuple[str, ...],
    ssh_config: Path | None,
    stream: bool,
    registry_port: int | None,
) -> int:
    """Take every SUBJECT through the suites, measure what each step costs, and report.

    A subject is engine:client:handler, such as containerd:grpc:runc; without one, all that Seatrial knows are tried,
    and those that this machine cannot run are skipped with the reason. A machine of --machine has a list of its own
    (vagrant/machines.yaml). Needs root.
    """
    from harness.cli.trial_run import Request, perform_run

    subjects, options = _split(words)
    request = Request(
        subjects=subjects,
        quick=quick,
        turns=turns,
        suites=suites,
        output=output,
        attach=attach,
        config=config,
        seed=seed,
        jobs=jobs,
        registry_port=registry_port,
        stream=stream,
        pytest_options=options,
        command=tuple(sys.argv),
    )
    if machines:
        from harness.cli.fleet_run import perform_fleet_run

        return perform_fleet_run(machines, request, ssh_config)
    return perform_run(request)


def _split(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Subjects, and what stood after ``--``: the first word that is an option, and all that follow it."""
    for index, word in enumerate(words):
        if word.startswith("-"):
            return words[:index], words[index:]
    return words, ()
