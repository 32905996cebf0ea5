"""An image that has to be pulled first: from a registry of our own, on this machine."""

import hashlib
import io
import json
import os
import tarfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_BLOB = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"  # what is not compressed will do, too
DEADLINE_S = 60


class Registry:
    """One image under any name, as registries' version 2 serves it; slow until `go_on`."""

    def __init__(self, saved: bytes) -> None:
        self.blobs: dict[str, bytes] = {}
        self.go_on = threading.Event()
        with tarfile.open(fileobj=io.BytesIO(saved)) as tar:

            def blob(name: str) -> dict[str, object]:
                data = tar.extractfile(name).read()
                digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
                self.blobs[digest] = data
                return {"size": len(data), "digest": digest}

            (image,) = json.load(tar.extractfile("manifest.json"))
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG_BLOB, **blob(image["Config"])},
                "layers": [{"mediaType": LAYER, **blob(name)} for name in image["Layers"]],
            }
        self.manifest = json.dumps(manifest).encode()

    def answer(self, path: str) -> tuple[str, bytes] | None:
        if path == "/v2/":
            return "application/json", b"{}"
        if "/manifests/" in path:
            return MANIFEST, self.manifest
        data = self.blobs.get(path.rpartition("/")[2])
        return None if data is None else ("application/octet-stream", data)


@contextmanager
def serving(registry):
    """Its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self._reply(is_whole=False)

        def do_GET(self):
            try:
                self._reply(is_whole=True)
            except ConnectionError:  # the engine has this layer by now
                self.close_connection = True

        def _reply(self, *, is_whole):
            kind, data = registry.answer(self.path) or (None, b"")
            self.send_response(200 if kind else 404)
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(data)))
            if kind == MANIFEST:
                digest = hashlib.sha256(data).hexdigest()
                self.send_header("Docker-Content-Digest", f"sha256:{digest}")
            self.end_headers()
            if not is_whole:
                return
            sent, piece = len(data) // 2, len(data) // 100
            self.wfile.write(data[:sent])
            while piece > 10_000 and sent < len(data) and not registry.go_on.wait(0.1):
                self.wfile.write(data[sent : sent + piece])
                sent += piece
            self.wfile.write(data[sent:])

        def log_message(self, *_):
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        registry.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def registry(docker_client, tgi_image):
    """Its image has a layer that the engine does not have."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, data in (
            ("Dockerfile", f"FROM {tgi_image}\nCOPY ballast /ballast".encode()),
            ("ballast", os.urandom(4_000_000)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    context.seek(0)
    image, _ = docker_client.images.build(fileobj=context, custom_context=True, rm=True)
    saved = b"".join(image.save())
    docker_client.images.remove(image.id)
    return Registry(saved)


def test_a_pull_tells_how_far_it_is_and_both_replicas_start(fleet, registry):
    fleet.use_tgi(2)
    with serving(registry) as address:
        fleet.config["engine"]["image"] = image = f"{address}/tgi:3.3.5"
        fleet.write()
        try:
            begun = fleet.start("up", "-d")
            until(lambda: " MB" in pulled(fleet.output_of(begun)))
            registry.go_on.set()
            assert begun.wait(timeout=DEADLINE_S) == 0
        finally:
            fleet.run("down")
            fleet.client.images.remove(image, force=True)
    said = fleet.output_of(begun)
    assert "replica-0: starting: pulling the image: unpacking" in said
    assert "2 of 2 replicas ready" in said


def pulled(said):
    """The last that was told of the pull."""
    return next((line for line in reversed(said.splitlines()) if "pulling the image" in line), "")


def until(holds):
    deadline_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
