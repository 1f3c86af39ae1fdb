"""The container core that both fronts share.

`spec` reads a config.json, `plan` turns it into a list of small `operations`, `launch` has a child perform them down to
execve; `enter` starts one more process in a container that runs; `cgroup` and `seccomp` are its limits; `state` is what
is remembered. A module here imports little: see `record` and `document`.
"""
