"""The container's process: what it runs, where, with which environment, limits and terminal (config.md, "Process")."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_breach import drops, puts, refuses, swallows, takes
from harness.session.oci_config import PATH
from harness.session.oci_facts import limits_of, status_field

pytestmark = pytest.mark.operation(OciArea.PROCESS)


def turned(config):  # type: ignore[no-untyped-def]
    """A runtime that takes the lists of a process in an order of its own."""
    for field in ("args", "env"):
        config["process"][field] = [*config["process"][field][:-2], *reversed(config["process"][field][-2:])]
    return config


# Arguments, environment, working directory


@pytest.mark.breach(takes(turned))
def test_arguments_are_as_given(oci: OciTrial) -> None:
    """Process: args has "similar semantics to IEEE Std 1003.1-2008 execvp's argv": any bytes, empty ones too, in their order."""
    words = [
        "/bin/sh",
        "-c",
        'cat /proc/$$/cmdline; echo "$#"',
        "",
        "two words",
        '"quoted"',
        "ünïcode",
        "-x",
        "*",
        "$HOME",
    ]
    said = oci.run(oci.box(args=words))
    assert said.encode() == b"\0".join(word.encode() for word in words) + b"\0" + b"6\n"


@pytest.mark.breach(puts("process.env.0", "PATH=/sbin"))
def test_program_is_looked_up_in_the_containers_path(oci: OciTrial) -> None:
    """Process: args has the semantics of execvp: a name without a slash is looked up in PATH, that of the container."""
    box = oci.box(args=("look", "up"))
    (box.rootfs / "opt").mkdir()
    os.link(box.rootfs / "bin" / "busybox", box.rootfs / "opt" / "echo")
    box.apply({"process.args": ["echo", "found"], "process.env": ["PATH=/opt:/nowhere"]})
    (box.rootfs / "bin" / "echo").unlink()
    assert oci.run(box) == "found\n"


@pytest.mark.breach(puts("process.args", ["/bin/true"]))
@pytest.mark.parametrize("program", ["/no/such/program", "no-such-program", "/etc"], ids=["path", "name", "folder"])
def test_a_program_that_is_not_there_is_an_error(oci: OciTrial, program: str) -> None:
    """Start: "MUST run the user-specified program": what is not there, or is no program, is an error of create or start."""
    box = oci.box(args=(program,))
    if oci.try_create(box).status == 0:
        assert oci.refused("start", box.id)


@pytest.mark.breach(takes(turned))
def test_environment_is_as_given(oci: OciTrial) -> None:
    """Process: env has "the same semantics as IEEE Std 1003.1-2008's environ": in its order, and nothing of the runtime's own
    besides HOME, which runc adds where it is missing.
    """
    words = [PATH, "EMPTY=", "EQUALS=a=b=c", "SPACE= x ", "LINES=a\nb", "ÜNI=ö", "HOME=/nowhere", "Z=1", "A=2"]
    facts = oci.probe("proc:environ", changes={"process.env": words})
    assert facts.environment == words


@pytest.mark.breach(puts("process.env.+", "SECRET=of the machine"))
@pytest.mark.kernel
def test_environment_of_the_runtime_stays_outside(oci: OciTrial) -> None:
    """Process: "env (array of strings, OPTIONAL)": the container has these and no others."""
    box = oci.box({"process.env": [PATH, "HOME=/"]}, SLEEP)
    done = oci.try_create(box, env={**os.environ, "SECRET": "of the machine"})
    assert done.status == 0, done.stderr
    oci.start(box)
    oci.wait(lambda: oci.proc(box, "cmdline").startswith("/bin/sleep"), "the program to run")
    assert "SECRET" not in oci.proc(box, "environ")


@pytest.mark.breach(puts("process.cwd", "/"))
@pytest.mark.kernel
def test_working_directory(oci: OciTrial) -> None:
    """Process: "cwd (string, REQUIRED) is the working directory that will be set for the executable"."""
    facts = oci.probe("cwd", "pwd", changes={"process.cwd": "/var/run"})
    assert (facts.text("cwd"), facts.text("pwd")) == ("/var/run", "/var/run")


@pytest.mark.breach(puts("process.cwd", "/"))
@pytest.mark.kernel
def test_working_directory_through_a_link_stays_inside(oci: OciTrial) -> None:
    """Process: cwd is a path in the container: a link in it leads to a place in the container."""
    box = oci.box({"process.cwd": "/leading/inside"})
    (box.rootfs / "leading").symlink_to("/var")
    (box.rootfs / "var" / "inside").mkdir()
    assert oci.probe("cwd", box=box).text("cwd") == "/var/inside"


# Users


@pytest.mark.breach(puts("process.user", {"uid": 0, "gid": 0}))
def test_user_and_group(oci: OciTrial) -> None:
    """User: "uid (int, REQUIRED) specifies the user ID in the container namespace", and gid: all four of each."""
    facts = oci.probe("proc:status", changes={"process.user": {"uid": 1234, "gid": 5678}})
    assert facts.status("Uid").split() == ["1234"] * 4
    assert facts.status("Gid").split() == ["5678"] * 4


@pytest.mark.breach(drops("process.user.additionalGids"))
def test_additional_groups(oci: OciTrial) -> None:
    """User: "additionalGids (array of ints, OPTIONAL) specifies additional group IDs in the container namespace to be added to
    the process".
    """
    changes = {"process.user": {"uid": 1000, "gid": 1000, "additionalGids": [2000, 3000, 50]}}
    facts = oci.probe("proc:status", changes=changes)
    assert sorted(map(int, facts.status("Groups").split())) == [50, 2000, 3000]


@pytest.mark.breach(puts("process.user.additionalGids", [4242]))
@pytest.mark.parametrize("uid", [0, 1000])
def test_no_groups_but_those_asked_for(oci: OciTrial, uid: int) -> None:
    """User: additionalGids is OPTIONAL: the runtime's own groups are none of the container's."""
    facts = oci.probe("proc:status", changes={"process.user": {"uid": uid, "gid": uid}})
    assert {int(word) for word in facts.status("Groups").split()} <= {uid}


@pytest.mark.breach(drops("process.user.umask"))
@pytest.mark.parametrize("umask", [0o077, 0o002, 0])
@pytest.mark.kernel
def test_umask(oci: OciTrial, umask: int) -> None:
    """User: "umask (int, OPTIONAL) specifies the umask of the user"."""
    done = oci.probe("proc:status", changes={"process.user.umask": umask})
    assert int(done.status("Umask"), 8) == umask


@pytest.mark.breach(puts("process.user.umask", 0o137))
def test_umask_is_022_where_none_is_asked_for(oci: OciTrial) -> None:
    """User: "If unspecified, the umask should not be changed from the calling process' umask": runc and its callers have 022."""
    box = oci.box()
    box.apply({"process.args": ["/bin/sh", "-c", "umask"]})
    done = oci.try_create(box, under=("/bin/sh", "-c", 'umask 022; exec "$@"', "sh"))
    assert done.status == 0, done.stderr
    oci.start(box)
    oci.await_end(box)
    assert oci.output(box) == "0022\n"


# Limits


@pytest.mark.breach(drops("process.rlimits"))
@pytest.mark.kernel
def test_limits(oci: OciTrial) -> None:
    """POSIX process: "rlim.rlim_cur MUST match the configured value", "rlim.rlim_max MUST match the configured value"."""
    wanted = {
        "RLIMIT_NOFILE": (512, 1000),
        "RLIMIT_CORE": (0, 4096),
        "RLIMIT_CPU": (600, 700),
        "RLIMIT_FSIZE": (1 << 30, 1 << 31),
        "RLIMIT_NPROC": (100, 200),
        "RLIMIT_STACK": (4 << 20, 8 << 20),
        "RLIMIT_MEMLOCK": (16384, 32768),
        "RLIMIT_MSGQUEUE": (4096, 8192),
        "RLIMIT_SIGPENDING": (77, 78),
        "RLIMIT_RTPRIO": (0, 0),
        "RLIMIT_NICE": (0, 0),
    }
    rows = [{"type": kind, "soft": soft, "hard": hard} for kind, (soft, hard) in wanted.items()]
    found = oci.probe("proc:limits", changes={"process.rlimits": rows}).limits
    assert {kind: found[kind] for kind in wanted} == wanted


@pytest.mark.breach(puts("process.rlimits", [{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 99}]))
@pytest.mark.kernel
def test_limits_that_are_not_asked_for_stay(oci: OciTrial) -> None:
    """POSIX process: "rlimits (array of objects, OPTIONAL) allows setting resource limits for the process"."""
    assert oci.probe("proc:limits").limits == limits_of(oci.shell("cat /proc/self/limits"))


@pytest.mark.breach(drops("process.oomScoreAdj"))
@pytest.mark.kernel
def test_oom_score(oci: OciTrial) -> None:
    """Linux process: "If oomScoreAdj is set, the runtime MUST set oom_score_adj to the given value"."""
    facts = oci.probe("proc:oom_score_adj", changes={"process.oomScoreAdj": 321})
    assert facts.text("proc:oom_score_adj") == "321\n"


@pytest.mark.breach(puts("process.oomScoreAdj", 777))
@pytest.mark.kernel
def test_oom_score_that_is_not_asked_for_stays(oci: OciTrial) -> None:
    """Linux process: "If oomScoreAdj is not set, the runtime MUST NOT change the value of oom_score_adj"."""
    box = oci.box(args=("/bin/cat", "/proc/self/oom_score_adj"))
    under = ("/bin/sh", "-c", 'echo 555 >/proc/$$/oom_score_adj; exec "$@"', "sh")
    done = oci.try_create(box, under=under)
    assert done.status == 0, done.stderr
    oci.start(box)
    oci.await_end(box)
    assert oci.output(box) == "555\n"


# Scheduling


@pytest.mark.breach(drops("process.scheduler"))
@pytest.mark.kernel
def test_scheduler(oci: OciTrial) -> None:
    """Linux process: "scheduler (object, OPTIONAL) specifies the scheduler properties for the process": policy and nice."""
    oci.needs_spec("1.2.0")
    box = oci.launch({"process.scheduler": {"policy": "SCHED_BATCH", "nice": 5}})
    assert os.sched_getscheduler(oci.pid(box)) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, oci.pid(box)) == 5


@pytest.mark.breach(drops("process.ioPriority"))
@pytest.mark.kernel
def test_io_priority(oci: OciTrial) -> None:
    """Linux process: "ioPriority (object, OPTIONAL) configures the container's processes' I/O scheduling class and priority"."""
    oci.needs_spec("1.1.0")
    said = oci.script("ionice -p $$", {"process.ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6}})
    assert said.split() == ["best-effort:", "prio", "6"]


@pytest.mark.breach(drops("process.execCPUAffinity"))
@pytest.mark.kernel
def test_exec_cpu_affinity(oci: OciTrial) -> None:
    """Linux process: execCPUAffinity "specifies CPU affinity used to execute the process": "final" is that of the program."""
    oci.needs_spec("1.2.1")
    oci.needs(len(os.sched_getaffinity(0)) > 1, "there is one CPU")
    last = str(max(os.sched_getaffinity(0)))
    box = oci.launch({"process.execCPUAffinity": {"initial": "0", "final": last}})
    done = oci.do("exec", box.id, "/bin/grep", "Cpus_allowed_list", "/proc/self/status")
    assert done.text.split()[-1] == last


# Descriptors, signals, namespaces of its own


@pytest.mark.breach(puts("process.args", ["/bin/sh", "-c", "exec 7</etc/passwd; exec /bin/sleep 9"]))
@pytest.mark.kernel
def test_only_the_standard_descriptors_are_open(oci: OciTrial) -> None:
    """Command line, create: the standard streams are passed on: no descriptor of the runtime's own goes with them."""
    box = oci.create(oci.box(args=SLEEP), under=("/bin/sh", "-c", 'exec 5</dev/null 8</etc/passwd; exec "$@"', "sh"))
    oci.start(box)
    oci.wait(lambda: oci.proc(box, "cmdline").startswith("/bin/sleep"), "the program to run")
    assert sorted(path.name for path in Path(f"/proc/{oci.pid(box)}/fd").iterdir()) == ["0", "1", "2"]


@pytest.mark.breach(swallows("create", "--preserve-fds"))
def test_further_descriptors_are_passed_on(oci: OciTrial) -> None:
    """runc, create: "--preserve-fds value: Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N in
    total)".
    """
    oci.needs_flag("create", "--preserve-fds")
    box = oci.box(args=("/bin/sh", "-c", "cat <&3; cat <&4"))
    (box.path / "three").write_text("three\n")
    (box.path / "four").write_text("four\n")
    script = f'exec 3<{box.path}/three 4<{box.path}/four; exec "$@"'
    oci.create(box, "--preserve-fds", "2", under=("/bin/sh", "-c", script, "sh"))
    oci.start(box)
    oci.await_end(box)
    assert oci.output(box) == "three\nfour\n"


@pytest.mark.breach(puts("process.args", ["/bin/sh", "-c", "trap '' HUP PIPE; exec cat /proc/self/status"]))
@pytest.mark.kernel
def test_no_signal_is_blocked_or_ignored(oci: OciTrial) -> None:
    """Process: the semantics are those of execvp, which hands on what is ignored or blocked: a program starts with neither."""
    box = oci.box(args=("/bin/cat", "/proc/self/status"))
    text = oci.run(box)
    for field in ("SigBlk", "SigIgn"):
        # Those from 32 on are the C library's own, and real-time ones.
        assert int(status_field(text, field), 16) & 0x7FFFFFFF == 0, field


@pytest.mark.breach(puts("process.args", ["/bin/sh", "-c", "setsid sh -c 'sleep 3600 &'; exec /bin/sleep 3600"]))
@pytest.mark.kernel
def test_process_leads_its_session(oci: OciTrial) -> None:
    """runc: a container's process is the leader of a session of its own: no terminal's signal reaches it."""
    box = oci.launch()
    oci.wait(lambda: oci.proc(box, "cmdline").startswith("/bin/sleep"), "the program to run")
    pid = oci.pid(box)
    assert os.getsid(pid) == pid
    assert [os.getsid(other) for other in oci.pids(box)] == [pid]


@pytest.mark.breach(puts("linux.namespaces", [{"type": "mount"}]))
def test_process_is_the_first_of_its_pid_namespace(oci: OciTrial) -> None:
    """Namespaces: "pid processes inside the container will only be able to see other processes inside the same container"."""
    facts = oci.probe("pid", "list:/proc")
    assert facts["pid"] == 1
    numbers = [int(word) for word in facts.text("list:/proc").split() if word.isdigit()]
    assert 1 in numbers
    assert max(numbers) < 100, numbers


@pytest.mark.breach(refuses("start"))
def test_stdin_of_create_is_the_containers(oci: OciTrial) -> None:
    """Command line, create: "The runtime MUST pass its stdin file descriptor through to the container process without
    manipulation or modification".
    """
    box = oci.box(args=("/bin/cat",))
    (box.path / "input").write_text("from outside\n")
    oci.create(box, under=("/bin/sh", "-c", f'exec "$@" <{box.path}/input', "sh"))
    oci.start(box)
    oci.await_end(box)
    assert oci.output(box) == "from outside\n"


@pytest.mark.breach(puts("process.args", ["/bin/sh", "-c", "echo out"]))
def test_stdout_and_stderr_of_create_are_the_containers(oci: OciTrial) -> None:
    """Command line, create: stdout and stderr are passed "through to the container process": each as it is."""
    box = oci.box(args=("/bin/sh", "-c", "echo out; echo err >&2"))
    oci.sail(box)
    oci.await_end(box)
    assert (box.stdout.read_text(), box.stderr.read_text()) == ("out\n", "err\n")


@pytest.mark.breach(puts("process.args", ["/bin/true"]))
def test_run_ends_with_the_status_of_the_program(oci: OciTrial) -> None:
    """runc, run: creates and starts a container, waits for its end, hands on its status, and deletes it."""
    box = oci.box(args=("/bin/sh", "-c", "echo said; exit 7"))
    done = oci.try_create(box, verb="run")
    assert done.status == 7
    assert oci.output(box) == "said\n"
    assert oci.status(box) == ""
    assert oci.folders(box) == []


@pytest.mark.breach(puts("process.args", ["/bin/true"]))
def test_run_tells_of_a_signal(oci: OciTrial) -> None:
    """runc, run: a program that a signal ended gives 128 and its number."""
    box = oci.box(args=("/bin/sh", "-c", "kill -KILL $$"))
    # The first process of a pid namespace does not hear its own signals (pid_namespaces(7)): do without.
    box.config["linux"]["namespaces"] = [row for row in box.config["linux"]["namespaces"] if row["type"] != "pid"]
    assert oci.try_create(box, verb="run").status == 137


@pytest.mark.breach(swallows("run", "--detach", value=False))
def test_run_detached_returns_at_once(oci: OciTrial) -> None:
    """runc, run: "--detach, -d: detach from the container's process"."""
    box = oci.box(args=("/bin/sleep", "5"))
    done = oci.try_create(box, "--detach", verb="run", timeout_s=20)
    assert done.status == 0, done.stderr
    assert oci.status(box) == "running"
