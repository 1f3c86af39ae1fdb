"""The kernel as it is: system calls, namespaces, mounts, capabilities, cgroups. Standard library only, no policy.

These modules are on the way to every container that minirt starts, so they import little: `ctypes` and `os`, and
whatever is dearer (`dataclasses` alone costs 8 ms) only where no container waits for it.
"""
