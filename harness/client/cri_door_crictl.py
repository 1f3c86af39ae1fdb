"""`CriDoor` by ``crictl``: each call is the command that makes it, its answer read back from what that prints.

A method's parameters are the fields that the command has words for; any other field is `NotExpressible`. Where crictl
asks or looks before it makes a call, that is said there.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from harness.client.cri_door import CALL_TIMEOUT_S
from harness.client.cri_door_grpc import answer_of, message_of
from harness.client.crilog import parse_time_ns
from harness.client.tool import Tool
from harness.errors import NotExpressible, NotFound

NO_URL = frozenset({"Exec.url", "Attach.url", "PortForward.url"})
_POD_STATES = {0: "Ready", 1: "NotReady"}
_STATES = {0: "Created", 1: "Running", 2: "Exited", 3: "Unknown"}
_TIMES = frozenset({"createdAt", "startedAt", "finishedAt"})
_EXITED = re.compile(r"exited with (\d+): ?(.*)", re.DOTALL)
_UPDATES = {
    "cpu_period": "--cpu-period",
    "cpu_quota": "--cpu-quota",
    "cpu_shares": "--cpu-share",
    "memory_limit_in_bytes": "--memory",
    "cpuset_cpus": "--cpuset-cpus",
    "cpuset_mems": "--cpuset-mems",
}


class CrictlDoor:
    """One process a call."""

    blind = NO_URL | {"ExecSync.stderr", "any.empty"}
    """crictl connects to a stream by itself, prints both outputs of a command as one, and checks words by itself"""

    def __init__(self, tool: Tool, workspace: Path) -> None:
        self._tool, self._workspace = tool, workspace
        self._files = itertools.count(1)

    def call(self, rpc: str, request: Mapping[str, Any], timeout_s: float = CALL_TIMEOUT_S) -> Any:
        method: Callable[..., Any] | None = getattr(self, f"_{_snake(rpc)}", None)
        if method is None:
            raise NotExpressible("crictl", f"has no command for {rpc}")
        message_of(rpc, request)  # a field that the API does not have is a mistake of ours
        known = inspect.signature(method).parameters
        for field in request:
            if field not in known:
                raise NotExpressible("crictl", f"has no word for {rpc}.{field}")
        for name, parameter in known.items():
            if parameter.default is parameter.empty and not request.get(name):
                raise NotExpressible("crictl", f"makes no {rpc} without {name}")
        return method(**request)

    def stream(self, rpc: str, request: Mapping[str, Any]) -> contextlib.AbstractContextManager[Iterator[Any]]:
        """Crictl's ``events`` never ends by itself, and prints when it likes."""
        raise NotExpressible("crictl", f"is not followed here while it prints what {rpc} gives")

    # Runtime

    def _version(self, version: str = "") -> Any:
        rows = dict(line.split(":", 1) for line in self._text("version").splitlines() if ":" in line)
        told = {key: value.strip() for key, value in rows.items()}
        return answer_of(
            "Version",
            version=told["Version"],
            runtime_name=told["RuntimeName"],
            runtime_version=told["RuntimeVersion"],
            runtime_api_version=told["RuntimeApiVersion"],
        )

    def _status(self, verbose: bool = False) -> Any:
        """``info`` is verbose, unless told to be quiet."""
        found = json.loads(self._text("info", *(() if verbose else ("--quiet",)), "--output", "json"))
        known = {"status", "runtimeHandlers", "features"}
        return self._answer("Status", {key: found[key] for key in known & set(found)} | _info(found, known, verbose))

    def _runtime_config(self) -> Any:
        """Printed as words: ``Cgroup driver: CGROUPFS``, or the like."""
        found = re.search(r"\b(SYSTEMD|CGROUPFS)\b", self._text("runtime-config"))
        return self._answer("RuntimeConfig", {"linux": {"cgroupDriver": found[1]}} if found else {})

    def _update_runtime_config(self, runtime_config: Mapping[str, Any]) -> Any:
        """Without a range there is nothing that the command would send."""
        cidr = runtime_config.get("network_config", {}).get("pod_cidr", "")
        if not cidr:
            raise NotExpressible("crictl", "sends no empty pod_cidr")
        return self._done("UpdateRuntimeConfig", "update-runtime-config", "--pod-cidr", cidr)

    # Pods

    def _run_pod_sandbox(self, config: Mapping[str, Any], runtime_handler: str = "") -> Any:
        handler = ("--runtime", runtime_handler) if runtime_handler else ()
        path = self._config("pod", "PodSandboxConfig", config)
        return answer_of("RunPodSandbox", pod_sandbox_id=self._text("runp", *handler, path).strip())

    def _stop_pod_sandbox(self, pod_sandbox_id: str) -> Any:
        return self._done("StopPodSandbox", "stopp", pod_sandbox_id)

    def _remove_pod_sandbox(self, pod_sandbox_id: str) -> Any:
        """``--force``: otherwise crictl refuses a pod that is ready, which RemovePodSandbox does not."""
        return self._idempotent("RemovePodSandbox", "rmp", "--force", pod_sandbox_id)

    def _pod_sandbox_status(self, pod_sandbox_id: str, verbose: bool = False) -> Any:
        return self._inspected("PodSandboxStatus", "inspectp", pod_sandbox_id, verbose)

    def _list_pod_sandbox(self, filter: Mapping[str, Any] | None = None) -> Any:
        return self._listed("ListPodSandbox", ("pods", "--output", "json"), filter, _POD_STATES)

    def _pod_sandbox_stats(self, pod_sandbox_id: str) -> Any:
        found = json.loads(self._text("statsp", "--output", "json", "--seconds", "0", "--id", pod_sandbox_id))["stats"]
        if not found:
            raise NotFound(f"statsp lists no pod {pod_sandbox_id}")
        return self._answer("PodSandboxStats", {"stats": found[0]})

    def _list_pod_sandbox_stats(self, filter: Mapping[str, Any] | None = None) -> Any:
        return self._listed("ListPodSandboxStats", ("statsp", "--output", "json", "--seconds", "0"), filter)

    def _list_pod_sandbox_metrics(self) -> Any:
        return self._answer("ListPodSandboxMetrics", json.loads(self._text("metricsp")))

    # Containers

    def _create_container(
        self, pod_sandbox_id: str, config: Mapping[str, Any], sandbox_config: Mapping[str, Any]
    ) -> Any:
        box = self._config("container", "ContainerConfig", config)
        pod = self._config("pod", "PodSandboxConfig", sandbox_config)
        return answer_of("CreateContainer", container_id=self._text("create", pod_sandbox_id, box, pod).strip())

    def _start_container(self, container_id: str) -> Any:
        return self._done("StartContainer", "start", container_id)

    def _stop_container(self, container_id: str, timeout: int = 0) -> Any:
        return self._done("StopContainer", "stop", "--timeout", str(timeout), container_id, more_s=timeout)

    def _remove_container(self, container_id: str) -> Any:
        """``--force``: otherwise crictl refuses one that runs, which RemoveContainer does not."""
        return self._idempotent("RemoveContainer", "rm", "--force", "--keep-logs", container_id)

    def _container_status(self, container_id: str, verbose: bool = False) -> Any:
        return self._inspected("ContainerStatus", "inspect", container_id, verbose)

    def _list_containers(self, filter: Mapping[str, Any] | None = None) -> Any:
        return self._listed("ListContainers", ("ps", "--all", "--output", "json"), filter, _STATES)

    def _update_container_resources(self, container_id: str, linux: Mapping[str, Any]) -> Any:
        words = []
        for field, value in linux.items():
            if field not in _UPDATES:
                raise NotExpressible("crictl", f"has no flag of update for {field}")
            words += [_UPDATES[field], str(value)]
        return self._done("UpdateContainerResources", "update", *words, container_id)

    def _reopen_container_log(self, container_id: str) -> Any:
        """``logs --reopen``, which goes on to print the log."""
        return self._done("ReopenContainerLog", "logs", "--reopen", "--tail", "0", container_id)

    def _exec_sync(self, container_id: str, cmd: Sequence[str], timeout: int = 0) -> Any:
        """``exec --sync``: stdout, a newline, stderr, a newline; for a command that failed its status and stderr only."""
        words = ("exec", "--sync", "--timeout", str(timeout), container_id, *cmd)
        done = self._tool.attempt(*words, timeout_s=CALL_TIMEOUT_S + timeout)
        if not done.status:
            return answer_of("ExecSync", stdout=done.stdout[:-2] if done.stdout.endswith(b"\n\n") else done.stdout[:-1])
        if found := _EXITED.search(done.stderr.decode(errors="replace")):
            return answer_of("ExecSync", exit_code=int(found[1]), stderr=found[2].encode())
        raise self._tool.refusal(done)

    def _container_stats(self, container_id: str) -> Any:
        found = json.loads(self._text("stats", "--all", "--output", "json", "--seconds", "0", "--id", container_id))
        if not found.get("stats"):
            raise NotFound(f"stats lists no container {container_id}")
        return self._answer("ContainerStats", {"stats": found["stats"][0]})

    def _list_container_stats(self, filter: Mapping[str, Any] | None = None) -> Any:
        renamed = {"pod_sandbox_id": "pod"}
        return self._listed(
            "ListContainerStats", ("stats", "--output", "json", "--seconds", "0"), filter, renamed=renamed
        )

    def _checkpoint_container(self, container_id: str, location: str, timeout: int = 0) -> Any:
        return self._done("CheckpointContainer", "checkpoint", "--export", location, container_id)

    # Images

    def _pull_image(self, image: Mapping[str, Any], auth: Mapping[str, Any] | None = None) -> Any:
        words = []
        if auth:
            if set(auth) == {"username", "password"}:
                words = ["--creds", f"{auth['username']}:{auth['password']}"]
            elif set(auth) == {"auth"}:
                words = ["--auth", auth["auth"]]
            else:
                raise NotExpressible("crictl", f"has no flag of pull for {', '.join(auth)}")
        said = self._text("pull", *words, _image(image), more_s=CALL_TIMEOUT_S)
        return answer_of("PullImage", image_ref=said.strip().rpartition(" ")[2])

    def _image_status(self, image: Mapping[str, Any], verbose: bool = False) -> Any:
        """``inspecti`` makes an error of an image that is not there."""
        try:
            return self._inspected("ImageStatus", "inspecti", _image(image), verbose)
        except NotFound:
            return answer_of("ImageStatus")

    def _list_images(self, filter: Mapping[str, Any] | None = None) -> Any:
        name = (filter or {}).get("image", {}).get("image", "")
        return self._answer(
            "ListImages", json.loads(self._text("images", "--output", "json", *([name] if name else [])))
        )

    def _remove_image(self, image: Mapping[str, Any]) -> Any:
        return self._idempotent("RemoveImage", "rmi", _image(image))

    def _image_fs_info(self) -> Any:
        found = json.loads(self._text("imagefsinfo", "--output", "json"))
        return self._answer("ImageFsInfo", found.get("status", found))

    # Words and answers

    def _text(self, *words: str, more_s: float = 0) -> str:
        if any("\0" in word for word in words):
            raise NotExpressible("crictl", "cannot be told a NUL: no command line has one")
        return self._tool.run(*words, timeout_s=CALL_TIMEOUT_S + more_s).text

    def _done(self, rpc: str, *words: str, more_s: float = 0) -> Any:
        self._text(*words, more_s=more_s)
        return answer_of(rpc)

    def _idempotent(self, rpc: str, *words: str) -> Any:
        """Crictl asks for the status first and complains by itself of what is gone; only an answer to the call itself
        ("removing ...") is the runtime's.
        """
        try:
            return self._done(rpc, *words)
        except NotFound as error:
            if "removing" in str(error):
                raise
            return answer_of(rpc)

    def _inspected(self, rpc: str, command: str, id: str, verbose: bool) -> Any:
        found = json.loads(self._text(command, *(() if verbose else ("--quiet",)), "--output", "json", id))
        known = {"status", "containersStatuses", "timestamp"}
        fields = {
            ("image" if rpc == "ImageStatus" and key == "status" else key): found[key] for key in known & set(found)
        }
        return self._answer(rpc, fields | _info(found, known, verbose))

    def _listed(
        self,
        rpc: str,
        words: tuple[str, ...],
        filter: Mapping[str, Any] | None,
        states: Mapping[int, str] | None = None,
        renamed: Mapping[str, str] | None = None,
    ) -> Any:
        flags: list[str] = []
        for field, value in (filter or {}).items():
            if field == "label_selector":
                flags += [word for key, text in value.items() for word in ("--label", f"{key}={text}")]
            elif field == "state" and states:
                flags += ["--state", states[value["state"]]]
            elif field in ("id", "pod_sandbox_id"):
                flags += ["--" + ("id" if field == "id" else (renamed or {}).get(field, "pod")), value]
            else:
                raise NotExpressible("crictl", f"has no filter of {words[0]} by {field}")
        return self._answer(rpc, json.loads(self._text(*words, *flags)))

    def _answer(self, rpc: str, found: Mapping[str, Any]) -> Any:
        return json_format.ParseDict(_timed(dict(found)), answer_of(rpc), ignore_unknown_fields=True)

    def _config(self, stem: str, kind: str, config: Mapping[str, Any]) -> str:
        """Crictl reads the fields by the names of ``api.proto``, numbers as numbers."""
        path = self._workspace / f"{stem}-door-{next(self._files)}.json"
        path.write_text(json.dumps(config))
        return str(path)


def _timed(value: Any) -> Any:
    """Crictl turns the times of a status into RFC 3339; back into nanoseconds, 0 for none."""
    if isinstance(value, list):
        return [_timed(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: max(parse_time_ns(item), 0) if key in _TIMES and isinstance(item, str) and "T" in item else _timed(item)
        for key, item in value.items()
    }


def _image(image: Mapping[str, Any]) -> str:
    if set(image) - {"image"}:
        raise NotExpressible("crictl", f"names images by one word only, not by {', '.join(sorted(image))}")
    if not image.get("image"):
        raise NotExpressible("crictl", "names no image by an empty word")
    return str(image["image"])


def _info(found: Mapping[str, Any], known: set[str], verbose: bool) -> dict[str, Any]:
    """What crictl puts beside the status, as the map of JSON texts that it came as."""
    if not verbose:
        return {}
    more = {key: value for key, value in found.items() if key not in known}
    inner = more.pop("info", None)
    more |= inner if isinstance(inner, dict) else {}
    return {"info": {key: json.dumps(value) for key, value in more.items()}}


def _snake(rpc: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", rpc).lower()
