"""Any request to the admin API is answered, never with a 500; what is refused changes nothing."""

import asyncio
import io
import json
import socket
from pathlib import Path

import uvloop
from hypothesis import event, given, settings
from hypothesis import strategies as st

from router.app import App
from router.config import RouterConfig
from router.event_log import EventLog

NOWHERE = "http://127.0.0.1:1"
PATHS = [
    *("/admin/state", "/admin/replicas", "/admin/replicas/r0/drain", "/admin/replicas/r0/undrain"),
    *("/admin/replicas/nobody/drain", "/admin/replicas/%ff/drain", "/admin/replicas//drain"),
    *("/admin", "/", "/generate", "/admin/state/", "/admin/replicas/" + "r" * 5000 + "/drain"),
]
plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("r0")
)
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def maybe(better):
    """Mostly a value that suits."""
    return st.integers(0, 29).flatmap(lambda n: anything if n == 29 else better)


urls = st.sampled_from(
    [*(None, NOWHERE, "http://[::1]:2") * 4, "http://a:0", "ftp://a", "http://[", "é"]
)
entries = st.fixed_dictionaries(
    {
        "id": maybe(st.sampled_from([*("r0", "r1", "r2", "r3") * 3, "bad id"])),
        "generation": maybe(st.integers(0, 3)),
        "model": maybe(st.sampled_from(["m", "n"])),
    },
    optional={
        "url": maybe(urls),
        "dialect": maybe(st.sampled_from(["tgi"] * 5 + ["openai", "x"])),
        "phase": maybe(st.sampled_from(["", "loading", "ready", "draining", "gone"])),
        "max_requests": maybe(st.integers(1, 10**30)),
        "max_tokens": maybe(st.integers(1, 10**30)),
    },
)
lists = st.fixed_dictionaries(
    {
        "protocol": maybe(st.just(1)),
        "cluster": maybe(st.sampled_from(["c"] * 6 + ["d", ""])),
        "epoch": maybe(st.integers(0, 5)),
        "replicas": maybe(st.lists(entries, max_size=3)),
    },
    optional={"draining": maybe(st.lists(st.text(max_size=3), max_size=2)), "more": anything},
)
bodies = st.one_of(
    lists.map(json.dumps).map(str.encode),
    lists.map(json.dumps).map(str.encode),
    anything.map(json.dumps).map(str.encode),
    st.binary(max_size=50),
)
GOOD = {
    "protocol": 1,
    "cluster": "c",
    "epoch": 0,
    "replicas": [{"id": "r0", "generation": 0, "model": "m", "url": NOWHERE}],
}
pushes = st.tuples(st.just("PUT"), st.just("/admin/replicas"), bodies)
requests = st.tuples(
    st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH", "OPTIONS"]),
    st.sampled_from(PATHS),
    bodies,
)
drains = st.tuples(st.just("POST"), st.sampled_from(PATHS[2:4]), st.just(b""))


@settings(max_examples=60)
@given(st.lists(pushes | drains | requests, min_size=5, max_size=20))
def test_any_request_is_answered_and_what_is_refused_changes_nothing(tmp_path_factory, asked):
    uvloop.run(check(tmp_path_factory.mktemp("a"), asked))


async def check(folder: Path, asked):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    app = App(RouterConfig(port=0), listener, state_dir=folder, log=EventLog(io.BytesIO()))
    await app.start()
    try:
        first = ("PUT", "/admin/replicas", json.dumps(GOOD).encode())
        for method, path, body in [first, *asked]:
            before = await books(folder)
            status = await status_of(folder, method, path, body)
            assert status < 500, (method, path, body)
            event(f"{method} {path[:24]} {status}")
            if status >= 400 or method == "GET":
                assert await books(folder) == before, (method, path, body)
    finally:
        await app.close()
        listener.close()


async def books(folder):
    """The state, without what time changes by itself; and what is kept on disk."""
    status, state = await exchange(folder, "GET", "/admin/state", b"")
    assert status == 200
    state = json.loads(state)
    del state["uptime_s"]
    for pool in state["pools"]:
        for replica in pool["replicas"]:
            del replica["health"], replica["failed"]
    kept = folder / "replicas.json"
    return state, kept.read_bytes() if kept.exists() else None


async def status_of(folder, method, path, body):
    status, _ = await exchange(folder, method, path, body)
    return status


async def exchange(folder, method, path, body):
    reader, writer = await asyncio.open_unix_connection(folder / "router.sock")
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    async with asyncio.timeout(10):
        reply = await reader.read()
    writer.close()
    head, _, payload = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), payload
