"""The daemon: what it is made of, how it finds its supervisor again, how it serves."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from cri_api.v1 import api_pb2_grpc

from harness import __version__
from harness.linux.cgroups import read_layout
from harness.minirt.cri import log
from harness.minirt.cri.containers import Containers
from harness.minirt.cri.footprint import give_back
from harness.minirt.cri.host import read_host_facts
from harness.minirt.cri.image_service import ImageService
from harness.minirt.cri.lists import Registrar
from harness.minirt.cri.notify import ServiceManager
from harness.minirt.cri.options import Options
from harness.minirt.cri.pods import Pods
from harness.minirt.cri.runtime_service import RuntimeService
from harness.minirt.cri.supervision import Facts, Supervision
from harness.minirt.errors import Unavailable
from harness.minirt.images.pull import Puller
from harness.minirt.images.snapshot import Snapshots
from harness.minirt.images.store import ImageStore
from harness.minirt.network.cni import Networks
from harness.minirt.streaming.server import StreamingServer
from harness.minirt.supervisor.client import Supervisor

_THREADS = 64
"""at most; they are made when all others are busy (with calls that wait: stop, exec, pull)"""
_LARGEST_MESSAGE_BYTES = 64 << 20
_GRACE_S = 2.0
_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def raise_files_limit() -> int:
    """Have as many open files as we may: each stream takes several. The limit that was there before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


class Daemon:
    """Everything between the socket and the supervisor."""

    def __init__(self, options: Options, child: int = 0) -> None:
        root, state = Path(options.root), Path(options.state)
        self.options = options
        self.supervisor = Supervisor(options.supervisor_socket)
        self.layout = read_layout()
        self.snapshots = Snapshots(root)
        self.images = ImageStore(root, self.snapshots, [options.pause_image])
        if self.images.damage:
            log.warning(self.images.damage)
        self.networks = Networks(Path(options.cni_conf_dir), options.bin_dirs)
        self.pods = Pods(root, state, self.supervisor, self.networks, options.cgroup_parent)
        self.containers = Containers(
            root,
            state,
            self.supervisor,
            self.pods,
            self.images,
            self.snapshots,
            read_host_facts(self.layout, options.cdi_folders),
        )
        self._ran: frozenset[str] = frozenset()
        self._is_loaded = False
        self._supervision = Supervision(
            self.supervisor,
            options.state,
            child,
            files=raise_files_limit(),
            welcome=self._welcome,
            event=self._event,
            lost=self._lost,
        )

    def load(self) -> None:
        """Read what was left by an earlier daemon, set right by the supervisor, and follow what happens from now on."""
        self._supervision.start()

    def _welcome(self, supervised: Facts) -> None:
        if not self._is_loaded:
            self._is_loaded = True
            self.pods.load()
            self.containers.load(supervised)
            self.images.collect(self.containers.used_layers)  # what a pull or a removal left half done
            log.info("loaded", pods=len(self.pods.list()), containers=len(self.containers.list()))
        else:
            self.pods.sweep()
            self.containers.reconcile(supervised, self._ran)

    def _lost(self) -> None:
        self._ran = self.containers.running_ids()

    def _event(self, message: Mapping[str, Any]) -> None:
        if message["event"] == "pod ended":
            self.pods.ended(message["id"])
        elif message["event"] == "ended":
            log.debug("container ended", container=message["id"], exit_code=message["exit_code"])
            self.containers.apply(message)
        elif message["problem"]:
            facts = {"container": message["id"], "path": message["path"], "error": message["problem"]}
            log.warning("what a container says is lost: its log cannot be written", **facts)
        else:
            facts = {"container": message["id"], "path": message["path"], "lost_bytes": message["lost_bytes"]}
            log.warning("the log of a container can be written again", **facts)

    def runtime_problem(self) -> str:
        """Why containers cannot be run, in words; empty where they can."""
        return self._supervision.problem

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Answer on the socket for as long as the context lasts; calls that are under way then get a moment to end."""
        try:
            streaming = StreamingServer(self.options.streaming_address)
        except OSError as error:
            raise Unavailable(f"--streaming-address {self.options.streaming_address}: {error.strerror}") from error
        pool = ThreadPoolExecutor(_THREADS, "call")
        server = grpc.server(
            pool,
            options=[
                ("grpc.max_receive_message_length", _LARGEST_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _LARGEST_MESSAGE_BYTES),
            ],
        )
        runtime = RuntimeService(
            self.options,
            self.pods,
            self.containers,
            self.images,
            self.networks,
            self.supervisor,
            self.layout,
            streaming,
            self.runtime_problem,
        )
        api_pb2_grpc.add_RuntimeServiceServicer_to_server(runtime, Registrar(server))  # type: ignore[no-untyped-call]
        hosts_dir = Path(self.options.hosts_dir) if self.options.hosts_dir else None
        used = self.containers.used_layers
        puller = Puller(self.images, self.snapshots, hosts_dir, self.options.registry_config, used, note=log.info)
        images = ImageService(Path(self.options.root), self.images, self.snapshots, puller, used)
        api_pb2_grpc.add_ImageServiceServicer_to_server(images, server)  # type: ignore[no-untyped-call]
        path = self.options.socket
        old = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix://{path}")
        except RuntimeError as error:
            raise Unavailable(f"--listen {self.options.listen}: {error}") from error
        finally:
            os.umask(old)
        server.start()
        try:
            yield
        finally:
            runtime.close()
            self._supervision.close()
            server.stop(_GRACE_S).wait()
            streaming.close()
            pool.shutdown(cancel_futures=True)
            path.unlink(missing_ok=True)
            self.supervisor.close()
            self.snapshots.settle()


def run(options: Options, child: int = 0) -> int:
    """Serve until a signal asks to end; the exit status. The caller has the locks of both folders, and has made way for the socket.

    `child`: the supervisor, where this process has forked it.
    """
    log.open_log(options.log_level)
    manager = ServiceManager()
    # Blocked before any thread is made, so that they arrive here and nowhere else.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    daemon = Daemon(options, child)
    log.info("starting", version=__version__, cgroups=daemon.layout.mode, supervisor=options.supervisor_socket)
    daemon.load()
    with daemon.serving():
        give_back()
        print(f"minirt serves {options.listen}", flush=True)
        manager.tell("READY=1", f"STATUS=serves {options.listen}")
        log.info("ready", listen=options.listen, root=options.root, state=options.state)
        number = signal.sigwait(_ENDING)
        manager.tell("STOPPING=1")
        log.info("ending; containers go on", signal=signal.Signals(number).name)
    return 0
