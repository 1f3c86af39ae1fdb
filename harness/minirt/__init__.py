"""minirt: a small container runtime. `container` is the core; `oci` and `cri` are its two fronts."""
