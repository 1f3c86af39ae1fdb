"""Pods: what RunPodSandbox is told, and what can be asked of it afterwards (cri-api v1, ``PodSandboxConfig``)."""

from __future__ import annotations

import time
from typing import Any

import pytest

from harness.errors import NotFound, RuntimeRefusal
from harness.linux.namespaces import identity
from harness.model.area import Area
from harness.model.container import Network
from harness.session.breach import accepts, answers, drops, pretends, puts, swaps
from harness.session.cri import CONTAINER, EXITED, NODE, NOT_READY, POD, READY, TARGET, CriTrial, secured

pytestmark = pytest.mark.operation(Area.PODS)

LABELS = {"app": "harbour", "example.com/tier": "deep"}
NOTES = {"example.com/note": 'any text: "quoted", ünïcode,\nlines', "empty": ""}


@pytest.mark.breach(answers("PodSandboxStatus.status.state", NOT_READY))
def test_pod_is_ready_when_the_call_returns(cri: CriTrial) -> None:
    """RunPodSandbox: "Runtimes must ensure the sandbox is in the ready state on success"."""
    assert cri.pod_status(cri.pod()).state == READY


@pytest.mark.breach(puts("RunPodSandbox.config.metadata", {"name": "x", "uid": "y", "namespace": "z"}))
def test_pod_keeps_its_metadata(cri: CriTrial) -> None:
    """PodSandboxStatus.metadata is that of the PodSandboxConfig."""
    pod = cri.pod(metadata={"attempt": 3})
    found = cri.pod_status(pod).metadata
    assert (found.name, found.uid, found.namespace, found.attempt) == (pod.name, pod.name, "seatrial", 3)


@pytest.mark.breach(drops("RunPodSandbox.config.labels", "RunPodSandbox.config.annotations"))
def test_pod_keeps_labels_and_annotations(cri: CriTrial) -> None:
    """Annotations "MUST NOT be altered by the runtime", in the status and in the list."""
    pod = cri.pod(labels=LABELS, annotations=NOTES)
    (listed,) = cri.call("ListPodSandbox", filter={"id": pod.id}).items
    for found in (cri.pod_status(pod), listed):
        assert dict(found.labels) == LABELS
        assert dict(found.annotations) == NOTES


@pytest.mark.breach(answers("PodSandboxStatus.status.created_at", 0))
def test_pod_has_the_time_of_its_creation(cri: CriTrial) -> None:
    """created_at: "in nanoseconds. Must be > 0", and the same in the list."""
    before = time.time_ns()
    pod = cri.pod()
    after = time.time_ns()
    found = cri.pod_status(pod).created_at
    (listed,) = cri.call("ListPodSandbox", filter={"id": pod.id}).items
    assert before <= found <= after
    assert listed.created_at == found


@pytest.mark.breach(drops("ListPodSandbox.filter"))
def test_list_of_pods_is_filtered_by_label(cri: CriTrial) -> None:
    """PodSandboxFilter.label_selector: "the requirements are ANDed"."""
    one = cri.pod(labels={"berth": cri.trial.name("one"), "side": "port"})
    cri.pod(labels={"berth": cri.trial.name("two"), "side": "port"})
    found = cri.call("ListPodSandbox", filter={"label_selector": one.config["labels"]}).items
    assert [pod.id for pod in found] == [one.id]
    wrong = {**one.config["labels"], "side": "starboard"}
    assert not cri.call("ListPodSandbox", filter={"label_selector": wrong}).items


@pytest.mark.breach(drops("ListPodSandbox.filter.state"))
def test_list_of_pods_is_filtered_by_state_and_id(cri: CriTrial) -> None:
    """PodSandboxFilter: "All those fields are combined with 'AND'"."""
    up, down = cri.pod(), cri.pod()
    cri.stop_pod(down)

    def listed(**filter: Any) -> set[str]:
        return {pod.id for pod in cri.call("ListPodSandbox", filter=filter).items}

    assert {up.id, down.id} <= listed()
    assert up.id in listed(state={"state": READY}) and down.id not in listed(state={"state": READY})
    assert down.id in listed(state={"state": NOT_READY}) and up.id not in listed(state={"state": NOT_READY})
    assert listed(id=down.id, state={"state": READY}) == set()
    assert listed(id=down.id) == {down.id}


@pytest.mark.breach(accepts("PodSandboxStatus"))
def test_status_of_an_unknown_pod_is_an_error(cri: CriTrial) -> None:
    """PodSandboxStatus: "If the PodSandbox is not present, returns an error"; clients look for NotFound."""
    with pytest.raises(NotFound):
        cri.pod_status("no-such-pod")


@pytest.mark.breach(drops("PodSandboxStatus.verbose"))
def test_verbose_status_of_a_pod_has_more(cri: CriTrial) -> None:
    """PodSandboxStatusResponse.info "should only be returned non-empty when Verbose is true"."""
    pod = cri.pod()
    assert dict(cri.call("PodSandboxStatus", pod_sandbox_id=pod.id, verbose=True).info)
    assert not dict(cri.call("PodSandboxStatus", pod_sandbox_id=pod.id).info)


@pytest.mark.breach(answers("PodSandboxStatus.containers_statuses"))
def test_status_of_a_pod_has_those_of_its_containers(cri: CriTrial) -> None:
    """PodSandboxStatusResponse.containers_statuses, with the time at which they were recorded."""
    cri.since("1.26")
    pod = cri.pod()
    box = cri.launch(pod=pod)
    answer = cri.call("PodSandboxStatus", pod_sandbox_id=pod.id)
    if not answer.timestamp:
        cri.needs_feature("pod_status_with_containers")
    assert [status.id for status in answer.containers_statuses] == [box.id]
    assert answer.timestamp > 0


@pytest.mark.breach(pretends("StopPodSandbox"))
def test_stop_of_a_pod_ends_its_containers(cri: CriTrial) -> None:
    """StopPodSandbox: "If there are any running containers in the sandbox, they must be forcibly terminated"."""
    pod = cri.pod()
    box = cri.launch(pod=pod)
    processes = cri.family(box)
    cri.stop_pod(pod)
    assert cri.pod_status(pod).state == NOT_READY
    assert cri.status(box).state == EXITED
    assert processes and not any(process.alive for process in processes)


@pytest.mark.breach(pretends("RemovePodSandbox"))
def test_removal_of_a_pod_takes_its_containers_along(cri: CriTrial) -> None:
    """RemovePodSandbox: running containers "must be forcibly terminated and removed"."""
    pod = cri.pod()
    box = cri.launch(pod=pod)
    processes = cri.family(box)
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert processes and not any(process.alive for process in processes)
    with pytest.raises(NotFound):
        cri.pod_status(pod)
    with pytest.raises(NotFound):
        cri.status(box)


@pytest.mark.breach(
    swaps(
        "RunPodSandbox",
        lambda request, call: call(
            {
                **request,
                "config": {
                    **request["config"],
                    "metadata": {**request["config"]["metadata"], "uid": str(time.monotonic_ns())},
                },
            }
        ),
    )
)
def test_name_of_a_pod_is_taken_once(cri: CriTrial) -> None:
    """PodSandboxConfig.metadata: "This information will uniquely identify the sandbox"."""
    pod = cri.pod()
    with pytest.raises(RuntimeRefusal):
        cri.run_pod(pod.config)
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert cri.pod_status(cri.run_pod(pod.config)).state == READY


@pytest.mark.breach(accepts("CreateContainer", "StartContainer"))
def test_stopped_pod_takes_no_container(cri: CriTrial) -> None:
    """A container is created "in specified PodSandbox", which has to be there."""
    pod = cri.pod()
    cri.stop_pod(pod)
    with pytest.raises(RuntimeRefusal):
        cri.launch(pod=pod)


@pytest.mark.breach(drops("RunPodSandbox.config.linux.cgroup_parent"))
def test_containers_are_below_the_pods_cgroup_parent(cri: CriTrial) -> None:
    """LinuxPodSandboxConfig.cgroup_parent: "Parent cgroup of the PodSandbox", in cgroupfs style."""
    parent = f"{cri.trial.arena.cgroups.pods}/berth"
    pod = cri.pod(linux={"cgroup_parent": parent})
    box = cri.launch(pod=pod)
    folders = cri.trial.witness.cgroup_folders(cri.family(box)[0])
    assert any(f"{parent}/" in f"{folder}/" for folder in folders), folders


@pytest.mark.breach(answers("PodSandboxStatus.status.linux"))
def test_status_of_a_pod_has_its_namespaces(cri: CriTrial) -> None:
    """LinuxPodSandboxStatus.namespaces: the options that the pod was made with."""
    for network, mode in ((Network.HOST, NODE), (Network.BRIDGE, POD)):
        found = cri.pod_status(cri.pod(network)).linux.namespaces.options
        assert found.network == mode
        assert found.ipc == POD


@pytest.mark.breach(puts("RunPodSandbox.runtime_handler", ""))
def test_unknown_runtime_handler_is_refused(cri: CriTrial) -> None:
    """RunPodSandboxRequest.runtime_handler: "If the runtime handler is unknown, this request should be rejected"."""
    with pytest.raises(RuntimeRefusal):
        cri.pod(handler="no-such-handler")


@pytest.mark.breach(answers("PodSandboxStatus.status.runtime_handler", "another"))
def test_status_of_a_pod_names_its_runtime_handler(cri: CriTrial) -> None:
    """PodSandboxStatus.runtime_handler: "runtime configuration used for this PodSandbox"."""
    pod = cri.pod()
    assert cri.pod_status(pod).runtime_handler == cri.trial.engine.handler


@pytest.mark.breach(drops("RunPodSandbox.config.hostname"))
def test_pod_has_its_hostname(cri: CriTrial) -> None:
    """PodSandboxConfig.hostname, and ``HOSTNAME`` in the environment as clients expect."""
    pod = cri.pod(Network.BRIDGE, hostname="quay-7")
    assert cri.run("hostname; cat /etc/hostname", pod=pod).lines == ["quay-7", "quay-7"]


@pytest.mark.breach(puts("RunPodSandbox.config.linux.security_context.namespace_options.network", POD))
def test_pod_on_the_host_network_has_the_hosts_name(cri: CriTrial) -> None:
    """Hostname "could only be empty when the pod network namespace is NODE": then it is the node's."""
    pod = cri.pod()
    inside = cri.init(cri.launch(pod=pod))
    assert identity(inside, "uts") == identity(cri.trial.arena.keeper_pid, "uts") or cri.run(
        "hostname", pod=pod
    ).text.strip() == _hostname(cri)
    assert identity(inside, "net") == identity(cri.trial.arena.keeper_pid, "net")


def _hostname(cri: CriTrial) -> str:
    return cri.trial.arena.run(["hostname"], timeout_s=10).text.strip()


@pytest.mark.breach(drops("RunPodSandbox.config.dns_config"))
def test_pod_has_its_dns_config(cri: CriTrial) -> None:
    """DNSConfig: servers, searches and options, as resolv.conf(5)."""
    config = {"servers": ["10.0.0.53", "10.0.0.54"], "searches": ["port.example", "example"], "options": ["ndots:5"]}
    pod = cri.pod(Network.BRIDGE, hostname="quay", dns_config=config)
    lines = cri.run("cat /etc/resolv.conf", pod=pod).lines
    assert [line.split()[1] for line in lines if line.startswith("nameserver")] == config["servers"]
    assert next(line.split()[1:] for line in lines if line.startswith("search")) == config["searches"]
    assert next(line.split()[1:] for line in lines if line.startswith("options")) == config["options"]


SYSCTLS = {
    "safe": {"net.ipv4.ip_unprivileged_port_start": "77"},
    "slash": {"net/ipv4/ping_group_range": "0 70000"},
    "unsafe": {"kernel.msgmax": "9000", "net.core.somaxconn": "1234", "kernel.shm_rmid_forced": "1"},
}


@pytest.mark.parametrize("kind", SYSCTLS)
@pytest.mark.breach(drops("RunPodSandbox.config.linux.sysctls"))
def test_pod_has_its_sysctls(kind: str, cri: CriTrial) -> None:
    """LinuxPodSandboxConfig.sysctls: "holds linux sysctls config for the sandbox"."""
    wanted = SYSCTLS[kind]
    pod = cri.pod(Network.BRIDGE, hostname="quay", linux={"sysctls": wanted})
    paths = [f"/proc/sys/{name.replace('.', '/')}" for name in wanted]
    found = cri.run("cat", *paths, pod=pod).lines
    assert [" ".join(line.split()) for line in found] == list(wanted.values())


@pytest.mark.breach(drops("RunPodSandbox.config.linux.sysctls"))
def test_sysctl_of_the_whole_machine_is_refused(cri: CriTrial) -> None:
    """A sysctl that belongs to no namespace of the pod would change the node."""
    with pytest.raises(RuntimeRefusal):
        cri.pod(linux={"sysctls": {"vm.swappiness": "61"}})


@pytest.mark.breach(accepts("RunPodSandbox"), drops("RunPodSandbox.config.linux.sysctls"))
def test_sysctl_that_does_not_exist_is_refused(cri: CriTrial) -> None:
    """What cannot be applied is said, and no pod is left of it."""
    config = cri.pod_config(Network.BRIDGE, hostname="quay", linux={"sysctls": {"net.ipv4.no_such_thing": "1"}})
    with pytest.raises(RuntimeRefusal):
        cri.run_pod(config)
    assert config["metadata"]["name"] not in {
        pod.metadata.name for pod in cri.call("ListPodSandbox", filter={"state": {"state": READY}}).items
    }


@pytest.mark.breach(answers("PodSandboxStatus.status.state", NOT_READY))
def test_pod_takes_overhead_and_resources(cri: CriTrial) -> None:
    """LinuxPodSandboxConfig.overhead and resources are optional, and no reason to refuse a pod."""
    sizes = {"cpu_shares": 512, "memory_limit_in_bytes": 256 << 20}
    pod = cri.pod(linux={"overhead": sizes, "resources": sizes})
    assert cri.pod_status(pod).state == READY
    assert cri.run("echo afloat", pod=pod).lines == ["afloat"]


# Namespaces


def modes(**options: Any) -> dict[str, Any]:
    return secured(namespace_options=options)


@pytest.mark.breach(puts("CreateContainer.config.linux.security_context.namespace_options.pid", CONTAINER))
def test_pid_namespace_of_the_pod_is_shared(cri: CriTrial) -> None:
    """NamespaceMode.POD: a container "expects to view all of the processes in all of the containers in the pod"."""
    pod = cri.pod(linux=modes(pid=POD))
    one, two = (cri.launch(pod=pod, linux=modes(pid=POD)) for _ in range(2))
    assert identity(cri.init(one), "pid") == identity(cri.init(two), "pid")
    assert cri.said(one, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").count("/bin/sleep 3600") >= 2


@pytest.mark.breach(puts("CreateContainer.config.linux.security_context.namespace_options.pid", NODE))
def test_pid_namespace_of_a_container_is_its_own(cri: CriTrial) -> None:
    """NamespaceMode.CONTAINER: it "expects to view only the processes in that container"."""
    one, two = cri.launch(), cri.launch()
    assert identity(cri.init(one), "pid") != identity(cri.init(two), "pid")
    assert cri.said(one, "cat", "/proc/1/cmdline").replace("\0", " ").strip() == "/bin/sleep 3600"


@pytest.mark.breach(puts("CreateContainer.config.linux.security_context.namespace_options.pid", CONTAINER))
def test_pid_namespace_of_the_node(cri: CriTrial) -> None:
    """NamespaceMode.NODE: it "expects to view all of the processes on the host"."""
    pod = cri.pod(linux=modes(pid=NODE))
    box = cri.launch(pod=pod, linux=modes(pid=NODE))
    assert identity(cri.init(box), "pid") == identity(cri.trial.arena.keeper_pid, "pid")


@pytest.mark.breach(puts("CreateContainer.config.linux.security_context.namespace_options.pid", CONTAINER))
def test_pid_namespace_of_a_target(cri: CriTrial) -> None:
    """NamespaceMode.TARGET: it "expects to view all of the processes that container target_id can view"."""
    target = cri.launch()
    box = cri.launch(linux=modes(pid=TARGET, target_id=target.id))
    assert identity(cri.init(box), "pid") == identity(cri.init(target), "pid")
    assert "sleep 3600" in cri.said(box, "cat", "/proc/1/cmdline").replace("\0", " ")


@pytest.mark.breach(puts("CreateContainer.config.linux.security_context.namespace_options.pid", CONTAINER))
def test_target_that_is_not_there_is_refused(cri: CriTrial) -> None:
    """NamespaceOption.target_id: "This container must have been previously created in the same pod"."""
    with pytest.raises(RuntimeRefusal):
        cri.launch(linux=modes(pid=TARGET, target_id="no-such-container"))


def _other_ipc(request: dict[str, Any]) -> dict[str, Any]:
    options = request["config"]["linux"]["security_context"]["namespace_options"]
    options["ipc"] = POD if options.get("ipc", POD) == NODE else NODE
    return request


@pytest.mark.parametrize("mode", [POD, NODE], ids=["pod", "node"])
@pytest.mark.breach(
    swaps("RunPodSandbox", lambda request, call: call(_other_ipc(request))),
    swaps("CreateContainer", lambda request, call: call(_other_ipc(request))),
)
def test_ipc_namespace(mode: int, cri: CriTrial) -> None:
    """NamespaceOption.ipc, POD: shared in the pod and with nobody else; NODE: the node's."""
    pod = cri.pod(linux=modes(ipc=mode))
    boxes = [cri.launch(pod=pod, linux=modes(ipc=mode)) for _ in range(2)]
    first, second = (identity(cri.init(box), "ipc") for box in boxes)
    node = identity(cri.trial.arena.keeper_pid, "ipc")
    assert first == second
    assert (first == node) is (mode == NODE)


@pytest.mark.breach(
    puts("RunPodSandbox.config.linux.security_context.namespace_options.ipc", NODE),
    puts("CreateContainer.config.linux.security_context.namespace_options.ipc", NODE),
)
def test_shared_memory_is_the_pods(cri: CriTrial) -> None:
    """/dev/shm belongs to the IPC namespace: one container sees what the other put there, another pod does not."""
    pod = cri.pod()
    one, two = cri.launch(pod=pod), cri.launch(pod=pod)
    elsewhere = cri.launch(pod=cri.pod())
    cri.said(one, "echo cargo >/dev/shm/hold-of-the-suite")
    try:
        assert cri.said(two, "cat /dev/shm/hold-of-the-suite") == "cargo"
        assert cri.execute(elsewhere, "cat /dev/shm/hold-of-the-suite").exit_code == 1
    finally:
        cri.said(one, "rm /dev/shm/hold-of-the-suite")


@pytest.mark.breach(pretends("StopPodSandbox"))
def test_log_directory_outlives_the_pod_until_the_client_removes_it(cri: CriTrial) -> None:
    """PodSandboxConfig.log_directory is "on the host": its files are the client's."""
    pod = cri.pod()
    ran = cri.run("echo kept", pod=pod)
    cri.stop_pod(pod)
    cri.wait(lambda: cri.pod_status(pod).state == NOT_READY, "the pod to stop")
    assert ran.box.log.exists()
    assert cri.status(ran.box).log_path == str(ran.box.log)
