"""Streams of real llama-servers, cut at every place and continued by another one.

The model is tiny and random, its tokens are bytes: greedy text is the same wherever it is made, so
the client must get the undisturbed one to the letter, with the engine's own numbers.
"""

import json
import os
import re
import subprocess

import pytest

from router.fleet import ReplicaEntry, ReplicaList
from router.replica import Admin

pytestmark = pytest.mark.timeout(900)  # it may have to be built first
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
TOKENS = 24
OPTIONS = {
    "model": "tiny",
    "max_tokens": TOKENS,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}
BODIES = {
    COMPLETIONS: {"prompt": "hello wörld", **OPTIONS},
    CHATS: {"messages": [{"role": "user", "content": "hello wörld"}], **OPTIONS},
}


@pytest.fixture(scope="module")
def llama(fake, tmp_path_factory):
    """The ports of two llama-servers with the same model."""
    build = fake("llama_server")
    missing = build.missing_programs()
    if missing and not os.environ.get("CI"):
        pytest.skip(f"building llama-server takes {', '.join(missing)}")
    model = fake("tiny_gguf").tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")
    command = [build.llama_server(), "-m", model, "--alias", "tiny", "--host", "127.0.0.1"]
    command += ["--port", "0", "-c", "8192", "-np", "4", "--threads", "1", "--no-webui"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        yield [port_of(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def port_of(process):
    found = (re.search(r"listening on http://127.0.0.1:(\d+)", line) for line in process.stderr)
    return next(int(match[1]) for match in found if match)


@pytest.fixture
async def pair(app, faults, llama):
    """A router over both, one of them behind a proxy that can cut; gives the rig and the proxy."""
    proxy = faults.FaultProxy(llama[0])
    await proxy.start()
    rig = await app([], is_up=False, health={"eject_after": 1000, "interval_s": 1000})
    entries = [
        ReplicaEntry(
            id=f"r{i}",
            generation=1,
            url=f"http://127.0.0.1:{port}",
            model="default",
            dialect="openai",
        )
        for i, port in enumerate((proxy.port, llama[1]))
    ]
    rig.app.fleet.apply(ReplicaList(protocol=1, cluster="t", epoch=1, replicas=entries))
    await rig.is_up()
    yield rig, proxy
    await proxy.close()


def events_of(body):
    """All but [DONE], which must be the last."""
    *events, done = body.split(b"\n\n")[:-1]
    assert done == b"data: [DONE]"
    return events


def chunks_of(body):
    return [json.loads(event[6:]) for event in events_of(body)]


def text_of(chunks):
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    return "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices)


def usage_of(chunks):
    told = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    return [{key: one[key] for key in ("prompt_tokens", "completion_tokens")} for one in told]


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_cut_anywhere_is_the_undisturbed_one(pair, faults, until, path):
    rig, proxy = pair
    whole = await undisturbed(rig, path)
    first, other = rig.all()
    for cut in range(150, 9000, 397):
        await until(lambda: first.is_usable)
        rig.dispatcher.pool.set_admin(other, Admin.DRAINING)
        rig.app.upstream.forget(first)  # connections kept from before would not meet the fault
        proxy.faults, cuts = faults.Faults(cut_after_bytes=cut, is_once=True), proxy.cuts
        client = await rig.client()
        client.post(path, BODIES[path])
        await until(lambda cuts=cuts: proxy.cuts > cuts or rig.app.handlers.calls_running == 0)
        rig.dispatcher.pool.set_admin(other, Admin.ACTIVE)
        reply = await client.reply()
        chunks = chunks_of(reply.body)
        assert text_of(chunks) == text_of(whole), cut
        assert usage_of(chunks) == usage_of(whole), cut
        assert len({json.loads(event[6:])["id"] for event in events_of(reply.body)}) == 1
        proxy.heal()
    assert rig.metric("resumes_total", model="default", outcome="resumed") >= 5
    assert rig.metric("resumes_total", model="default", outcome="refused") == 0


async def undisturbed(rig, path):
    reply = await rig.post(path, BODIES[path])
    chunks = chunks_of(reply.body)
    assert usage_of(chunks)[-1]["completion_tokens"] == TOKENS
    return chunks


async def test_a_chat_that_the_client_began_is_not_continued_as_it_might_be_repeated(pair, faults):
    rig, proxy = pair
    began = {"role": "assistant", "content": "Well"}
    body = {**BODIES[CHATS], "messages": [*BODIES[CHATS]["messages"], began]}
    rig.dispatcher.pool.set_admin(rig["r1"], Admin.DRAINING)
    rig.app.upstream.forget(rig["r0"])
    proxy.faults = faults.Faults(cut_after_bytes=1500, is_once=True)
    reply = await rig.post(CHATS, body)
    assert b"may repeat the message that the client began" in reply.body
