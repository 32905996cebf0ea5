"""HTTPS on the public port: what is served, what is refused, and another certificate under way."""

import asyncio
import ssl
import warnings

import pytest

from router.config import RouterConfig, TlsConfig
from router.config.tls_files import client_context, server_context
from router.errors import StartError
from router.options import Settings

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}


@pytest.fixture
async def secure(app, authority):
    """`await secure()`: a rig with HTTPS, and the files of its certificate."""

    async def make(**options):
        return await app(tls=authority.files(), **options)

    return make


async def test_calls_streams_and_pages_go_over_tls_on_one_connection(secure, authority, wire):
    rig = await secure()
    client = await rig.client(tls=authority.client)
    for _ in range(3):
        client.post("/generate", GENERATE)
        assert (await client.reply()).status == 200
    rig.replicas[0].say(wire.streamed(wire.token(1), wire.token(2, last="x")))
    client.post("/generate_stream", GENERATE)
    reply = await client.reply()
    assert reply.body == wire.token(1) + wire.token(2, last="x")
    client.ask("GET", "/health")
    assert (await client.reply()).status == 200
    large = {"inputs": "a" * 1_000_000, "parameters": {"truncate": 10}}
    client.post("/generate", large)
    assert (await client.reply()).status == 200


async def test_a_slow_reader_is_held_up_and_a_leaving_client_frees_its_replica(
    secure, authority, wire
):
    rig = await secure()
    rig.replicas[0].say(wire.stream_head(), wire.Flood(wire.chunk(wire.token(1)), 10**6))
    client = await rig.client(tls=authority.client, receive_buffer=4096)
    client.post("/generate_stream", GENERATE)
    await client.head()
    request = await rig.replicas[0].request()
    async with asyncio.timeout(10):
        await request.waits.wait()
        client.reset()
        await request.gone.wait()


async def test_the_certificate_is_sent_with_its_chain_and_old_versions_are_refused(
    secure, authority
):
    rig = await secure()
    client = await rig.client(tls=authority.client)  # knows the root only
    tls = client._writer.get_extra_info("ssl_object")
    assert tls.version() == "TLSv1.3"
    old = authority.client
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await rig.client(tls=old)
    newer = authority.client
    newer.maximum_version = ssl.TLSVersion.TLSv1_2
    newer.set_alpn_protocols(["h2", "http/1.1"])
    client = await rig.client(tls=newer)
    assert client._writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    client.post("/generate", GENERATE)
    assert (await client.reply()).status == 200


async def test_plain_http_gets_nothing_and_leaves_nothing(secure, until):
    rig = await secure()
    client = await rig.client()
    client.post("/generate", GENERATE)
    assert b"HTTP/" not in await client.rest()
    await until(lambda: not rig.app.acceptor.connections)
    assert rig.replicas[0].requests == []


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_handshake_that_does_not_go_on_ends_in_time(secure, until, sent):
    rig = await secure(limits={"head_s": 0.2})
    client = await rig.client()
    client.write(sent)
    await until(lambda: rig.app.acceptor.connections == 1)
    assert await client.is_closed()
    await until(lambda: not rig.app.acceptor.connections)


async def test_handshakes_count_as_connections(secure, authority, until):
    rig = await secure(limits={"connections_per_client": 2})
    for _ in range(2):
        await rig.client()
    await until(lambda: rig.app.acceptor.connections == 2)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await rig.client(tls=authority.client)


async def test_another_certificate_is_taken_while_calls_run(secure, authority, wire):
    rig = await secure()
    first = await rig.client(tls=authority.client)
    gate = asyncio.Event()
    rig.replicas[0].say(gate, wire.reply(wire.generated("late")))
    first.post("/generate", GENERATE)
    await rig.replicas[0].request()

    def serial(client):
        return client._writer.get_extra_info("peercert")["serialNumber"]

    rig.app.reload(settings(authority.files("other")))
    second = await rig.client(tls=authority.client)
    assert serial(second) != serial(first)
    gate.set()
    assert (await first.reply()).status == 200
    unusable = {**authority.files("third"), "key": authority.files("fourth")["key"]}
    with pytest.raises(StartError):
        rig.app.reload(settings(unusable))
    assert serial(await rig.client(tls=authority.client)) == serial(second)


# ---- files ----


def spoiled(authority, tmp_path, case):
    files, other = authority.files(), authority.files("other")
    junk = tmp_path / "junk"
    junk.write_text("hunter2")
    locked = tmp_path / "locked.key"
    locked.write_bytes(authority.locked(files["key"], "hunter2"))
    return {
        "other key": ("key", other["key"], {**files, "key": other["key"]}),
        "no key": ("key", str(junk), {**files, "key": str(junk)}),
        "no certificate": ("certificate", str(junk), {**files, "certificate": str(junk)}),
        "no file": ("certificate", "/nowhere", {**files, "certificate": "/nowhere"}),
        "folder": ("key", str(tmp_path), {**files, "key": str(tmp_path)}),
        "swapped": (
            "certificate",
            files["key"],
            dict(zip(files, [*files.values()][::-1], strict=True)),
        ),
        "encrypted": ("key", str(locked), {**files, "key": str(locked)}),
    }[case]


@pytest.mark.parametrize(
    "case",
    ["other key", "no key", "no certificate", "no file", "folder", "swapped", "encrypted"],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(authority, tmp_path, case):
    field, path, files = spoiled(authority, tmp_path, case)
    with pytest.raises(StartError) as error:
        server_context(TlsConfig(**files))
    assert str(error.value).startswith(f"router.tls.{field}: {path}: found ")
    assert "hunter2" not in str(error.value)
    assert len(str(error.value).splitlines()) == 1


async def test_a_client_of_this_machine_trusts_that_certificate_and_no_other(app, authority):
    rig = await app(tls=authority.files())
    client = await rig.client(tls=client_context(rig.app.config.tls))
    client.ask("GET", "/health")
    assert (await client.reply()).status == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        await rig.client(tls=client_context(TlsConfig(**authority.files("other"))))


def settings(tls):
    return Settings(RouterConfig.model_validate({"tls": tls}), None, None)
