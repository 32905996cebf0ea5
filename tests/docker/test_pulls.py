"""Pulling for real: a Docker Engine, and a registry of a few lines that this test is."""

import asyncio
import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
from contextlib import suppress

import pytest
from aiohttp import web

from launcher.docker.engine import DockerEngine
from launcher.docker.pulls import Pulls
from router.errors import StartError

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DEADLINE_S = 30


def digest_of(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """Has `gpu-fleet/test:1`: one layer of noise, which it may send slowly, or spoilt."""

    def __init__(self, layer_bytes=3_000_000):
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            info = tarfile.TarInfo("noise")
            info.size = layer_bytes
            archive.addfile(info, io.BytesIO(os.urandom(layer_bytes)))
        layer = gzip.compress(tar.getvalue(), compresslevel=1)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [digest_of(tar.getvalue())]},
            }
        ).encode()
        self.layer, self.blobs = digest_of(layer), {digest_of(layer): layer}
        self.blobs[digest_of(config)] = config
        blob = {
            digest: {"size": len(data), "digest": digest} for digest, data in self.blobs.items()
        }
        kind = "application/vnd.docker."
        layers = [{"mediaType": f"{kind}image.rootfs.diff.tar.gzip", **blob[self.layer]}]
        head = {"mediaType": f"{kind}container.image.v1+json", **blob[digest_of(config)]}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": head, "layers": layers}
        self.manifest = json.dumps(manifest).encode()
        self.layers_sent = 0
        self.first_half_sent, self.may_go_on = asyncio.Event(), asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.may_go_on.set()
        self.is_spoilt = False
        self.is_locked = False

    async def root(self, request):
        return web.json_response({})

    async def manifests(self, request):
        await self.may_answer.wait()
        if self.is_locked:
            denied = {"errors": [{"code": "DENIED", "message": "access is denied"}]}
            return web.json_response(denied, status=403)
        if request.match_info["tag"] not in ("1", digest_of(self.manifest)):
            unknown = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            return web.json_response(unknown, status=404)
        headers = {"Docker-Content-Digest": digest_of(self.manifest)}
        return web.Response(body=self.manifest, content_type=MANIFEST, headers=headers)

    async def blob(self, request):
        digest = request.match_info["digest"]
        data = self.blobs[digest]
        if digest != self.layer:
            return web.Response(body=data)
        self.layers_sent += 1
        if self.is_spoilt:
            data = data[:-8] + bytes(8)
        reply = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await reply.prepare(request)
        await reply.write(data[: len(data) // 2])
        self.first_half_sent.set()
        await self.may_go_on.wait()
        with suppress(ConnectionError):
            await reply.write(data[len(data) // 2 :])
        return reply


@pytest.fixture
async def registry():
    made = Registry()
    app = web.Application()
    app.router.add_get("/v2/", made.root)
    app.router.add_get("/v2/gpu-fleet/test/manifests/{tag}", made.manifests)
    app.router.add_get("/v2/gpu-fleet/test/blobs/{digest}", made.blob)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.name = f"127.0.0.1:{runner.addresses[0][1]}/gpu-fleet/test"
    yield made
    made.may_go_on.set()
    made.may_answer.set()
    await runner.cleanup()


@pytest.fixture
async def pulls(engine, registry, docker_client):
    connected = DockerEngine(engine.url)
    yield Pulls(connected)
    await connected.aclose()
    for image in await asyncio.to_thread(docker_client.images.list, registry.name):
        await asyncio.to_thread(docker_client.images.remove, image.id, force=True)


async def within(coro):
    return await asyncio.wait_for(coro, DEADLINE_S)


async def has(docker_client, image):
    return await asyncio.to_thread(docker_client.images.list, image) != []


async def test_an_image_is_pulled_once_for_all_that_start_with_it(pulls, registry, docker_client):
    image, said = f"{registry.name}:1", []
    await within(asyncio.gather(*(pulls.ensure(image, "missing", said.append) for _ in range(4))))
    assert registry.layers_sent == 1
    assert await has(docker_client, image)
    assert "pulling the image" in said


async def test_the_way_is_told_in_bytes(pulls, registry):
    said = []
    registry.may_go_on.clear()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(pulls.ensure(f"{registry.name}:1", "missing", said.append))
        await registry.first_half_sent.wait()
        while not any(" of 3.0 MB" in text for text in said):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        registry.may_go_on.set()


async def test_an_image_by_its_digest_is_pulled_and_found(pulls, registry, docker_client):
    image = f"{registry.name}@{digest_of(registry.manifest)}"
    await within(pulls.ensure(image, "missing", print))
    await within(pulls.ensure(image, "missing", print))
    assert registry.layers_sent == 1


async def test_an_unknown_tag_is_told_as_one(pulls, registry):
    with pytest.raises(StartError, match="no such tag") as caught:
        await within(pulls.ensure(f"{registry.name}:2", "missing", print))
    assert not caught.value.recoverable


async def test_what_goes_wrong_inside_the_reply_is_an_error(pulls, registry, docker_client):
    registry.is_spoilt = True
    with pytest.raises(StartError, match="cannot pull the image"):
        await within(pulls.ensure(f"{registry.name}:1", "missing", print))
    assert not await has(docker_client, f"{registry.name}:1")


async def test_a_cancelled_pull_ends_at_once_and_may_be_begun_again(pulls, registry, docker_client):
    image = f"{registry.name}:1"
    registry.may_go_on.clear()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        pulling = group.create_task(pulls.ensure(image, "missing", print))
        await registry.first_half_sent.wait()
        pulling.cancel()
        await asyncio.wait([pulling], timeout=2)
        assert pulling.cancelled()
    registry.may_go_on.set()
    await within(pulls.ensure(image, "missing", print))
    assert await has(docker_client, image)


@pytest.fixture
def no_helper(tmp_path, monkeypatch):
    """This user's logins are kept by a program that is not installed."""
    (tmp_path / "config.json").write_text('{"credsStore": "gpu-fleet-none"}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


@pytest.mark.parametrize("when", ["may_answer", "may_go_on"])
async def test_a_registry_that_falls_silent_is_given_up_and_may_be_asked_again(
    engine, pulls, registry, docker_client, when
):
    image, connected = f"{registry.name}:1", DockerEngine(engine.url)
    getattr(registry, when).clear()
    with pytest.raises(StartError, match="the registry sends nothing") as caught:
        await within(Pulls(connected, stall_s=1.0).ensure(image, "missing", print))
    assert (caught.value.recoverable, caught.value.is_slow) == (True, False)
    async with asyncio.timeout(DEADLINE_S):
        while any(thread.name == f"pull {image}" for thread in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    getattr(registry, when).set()
    await within(pulls.ensure(image, "missing", print))
    assert await has(docker_client, image)
    await connected.aclose()


@pytest.mark.usefixtures("no_helper")
async def test_an_open_image_is_pulled_though_logins_cannot_be_got(pulls, registry, docker_client):
    image = f"{registry.name}:1"
    await within(pulls.ensure(image, "missing", print))
    assert await has(docker_client, image)


@pytest.mark.usefixtures("no_helper")
async def test_an_image_that_needs_a_login_is_refused_for_what_keeps_it_from_us(pulls, registry):
    registry.is_locked = True
    with pytest.raises(StartError, match="docker-credential-gpu-fleet-none") as caught:
        await within(pulls.ensure(f"{registry.name}:1", "missing", print))
    assert caught.value.is_slow


@pytest.mark.usefixtures("no_helper")
async def test_an_unknown_tag_is_one_also_where_logins_cannot_be_got(pulls, registry):
    with pytest.raises(StartError, match="no such tag"):
        await within(pulls.ensure(f"{registry.name}:2", "missing", print))
