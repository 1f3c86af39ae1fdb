"""Images: from a registry over a content store and unpacked layers to an overlay that a container can mount.

`reference` names them, `registry` fetches, `pull` brings one in, `store` keeps the records, `layers` unpacks, `snapshot` stacks.
"""
