"""CRI's ImageService over the image store."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cri_api.v1 import api_pb2 as api
from cri_api.v1 import api_pb2_grpc

from harness.minirt.cri.status import answered
from harness.minirt.errors import InvalidArgument, NotFound
from harness.minirt.images.credentials import Credentials, parse_auth
from harness.minirt.images.pull import Puller
from harness.minirt.images.snapshot import Snapshots
from harness.minirt.images.store import Image, ImageStore

_UID = re.compile(r"[0-9]{1,18}")


class ImageService(api_pb2_grpc.ImageServiceServicer):  # type: ignore[misc,unused-ignore]
    """The five calls. `used_layers` tells what containers are stacked on."""

    def __init__(
        self,
        root: Path,
        store: ImageStore,
        snapshots: Snapshots,
        puller: Puller,
        used_layers: Callable[[], set[str]],
    ) -> None:
        self._root = root
        self._store = store
        self._snapshots = snapshots
        self._puller = puller
        self._used_layers = used_layers

    @answered
    def ListImages(self, request: Any, context: Any) -> Any:
        wanted = request.filter.image.image
        found = [self._store.find(wanted)] if wanted else self._store.list()
        rows = []
        for image in found:
            with contextlib.suppress(NotFound):  # its data is damaged: it is forgotten by now
                rows += [self._describe(image)] if image else []
        return api.ListImagesResponse(images=rows)

    @answered
    def ImageStatus(self, request: Any, context: Any) -> Any:
        if not request.image.image:
            raise InvalidArgument("an image's name is needed")
        image = self._store.find(request.image.image)
        if image is None:
            return api.ImageStatusResponse()
        info = {}
        try:
            described = self._describe(image)
            if request.verbose:
                top = image.chain[-1] if image.chain else ""
                info["info"] = json.dumps({"chainID": top, "imageSpec": self._store.config(image)})
        except NotFound:  # its data is damaged: it is forgotten by now, and may be pulled again
            return api.ImageStatusResponse()
        return api.ImageStatusResponse(image=described, info=info)

    @answered
    def PullImage(self, request: Any, context: Any) -> Any:
        if not request.image.image:
            raise InvalidArgument("an image's name is needed")
        auth = request.auth
        username, password = auth.username, auth.password
        if auth.auth and not username:
            username, password = parse_auth(auth.auth)
        credentials = Credentials(username, password, auth.identity_token, auth.registry_token, auth.server_address)
        image = self._puller.pull(request.image.image, credentials, lambda: not context.is_active())
        return api.PullImageResponse(image_ref=image.id)

    @answered
    def RemoveImage(self, request: Any, context: Any) -> Any:
        if not request.image.image:
            raise InvalidArgument("an image's name is needed")
        self._store.remove(request.image.image, self._used_layers)
        return api.RemoveImageResponse()

    @answered
    def ImageFsInfo(self, request: Any, context: Any) -> Any:
        usage = self._snapshots.usage()
        row = api.FilesystemUsage(
            timestamp=time.time_ns(),
            fs_id=api.FilesystemIdentifier(mountpoint=str(self._root)),
            used_bytes=api.UInt64Value(value=usage.bytes),
            inodes_used=api.UInt64Value(value=usage.inodes),
        )
        return api.ImageFsInfoResponse(image_filesystems=[row], container_filesystems=[row])

    def _describe(self, image: Image) -> Any:
        described = api.Image(
            id=image.id,
            repo_tags=image.tags,
            repo_digests=image.digests,
            size=image.size_bytes,
            pinned=image.pinned,
        )
        user = str((self._store.config(image).get("config") or {}).get("User") or "").partition(":")[0]
        if _UID.fullmatch(user):
            described.uid.value = int(user)
        elif user:
            described.username = user
        return described
