"""minirt's OCI runtime command line: the verbs that containerd's shim, Docker, podman and people use."""
