"""Large bodies are parsed in another process: bounded, replaced when it dies, gone with us."""

import asyncio
import os
import resource
import signal
import subprocess
import sys

import pytest

from router.errors import InvalidRequest
from router.parse_worker import LARGE_BODY_BYTES, ParseWorker

PAD = b" " * LARGE_BODY_BYTES


def document(text: bytes = b"a") -> bytes:
    return PAD + b'{"inputs":"' + text + b'"}'


def pids(worker):
    process = worker._process
    return [process.pid] if process is not None else []


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
async def worker(until):
    worker = ParseWorker()
    yield worker
    left = pids(worker)
    await worker.close()
    await until(lambda: not any(map(is_running, left)))


async def test_a_small_body_needs_no_process(worker):
    ask = await worker.parse("/generate", b'{"inputs":"abc"}')
    assert ask.input_chars == 3
    assert pids(worker) == []


async def test_a_large_body_is_parsed_elsewhere_with_the_same_result(worker):
    ask = await worker.parse("/generate", document(b"x" * 1000))
    assert ask.input_chars == 1000
    [pid] = pids(worker)
    assert pid != os.getpid()
    await worker.parse("/v1/completions", PAD + b'{"prompt":["a","b"]}')
    assert pids(worker) == [pid]


async def test_errors_come_back_as_they_are(worker):
    with pytest.raises(InvalidRequest, match="stands twice"):
        await worker.parse("/generate", PAD + b'{"a":1,"a":2}')
    with pytest.raises(InvalidRequest, match="nests too deeply"):
        await worker.parse("/generate", PAD + b'{"a":' + b"[" * 100_000)
    assert (await worker.parse("/generate", document())).input_chars == 1


async def test_the_loop_goes_on_while_a_large_body_is_parsed(worker):
    await worker.parse("/generate", document())  # started
    numbers = b'{"inputs":"a","x":[' + b"1.5," * 3_000_000 + b"1]}"
    loop = asyncio.get_running_loop()
    ticks = 0

    def tick():
        nonlocal ticks, handle
        ticks += 1
        handle = loop.call_later(0.001, tick)

    handle = loop.call_later(0.001, tick)
    await worker.parse("/generate", numbers)
    handle.cancel()
    assert ticks > 5


async def test_a_killed_process_is_replaced(worker):
    await worker.parse("/generate", document())
    [pid] = pids(worker)
    os.kill(pid, signal.SIGSTOP)
    parsing = asyncio.gather(worker.parse("/generate", document()), return_exceptions=True)
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    [result] = await parsing
    assert isinstance(result, InvalidRequest)
    assert (await worker.parse("/generate", document(b"abc"))).input_chars == 3
    assert pids(worker) != [pid]


async def test_closing_ends_the_process_even_while_it_works(until):
    worker = ParseWorker()
    await worker.parse("/generate", document())
    [pid] = pids(worker)
    os.kill(pid, signal.SIGSTOP)  # as busy as can be
    parsing = asyncio.gather(worker.parse("/generate", document()), return_exceptions=True)
    await asyncio.sleep(0)
    await worker.close()
    await until(lambda: not is_running(pid))
    await parsing


PARENT = """
import asyncio, os, sys
from router.parse_worker import LARGE_BODY_BYTES, ParseWorker

async def main():
    worker = ParseWorker()
    await worker.parse("/generate", b" " * LARGE_BODY_BYTES + b'{"inputs":"a"}')
    print(worker._process.pid, flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_a_client_that_leaves_while_its_body_is_parsed_disturbs_nobody(worker):
    await worker.parse("/generate", document())
    os.kill(pids(worker)[0], signal.SIGSTOP)
    parsing = asyncio.gather(worker.parse("/generate", document()))
    await asyncio.sleep(0)
    parsing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await parsing
    assert (await worker.parse("/generate", document(b"abc"))).input_chars == 3


async def test_the_process_dies_with_its_parent(tmp_path, until):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=subprocess.PIPE
    )
    try:
        pid = int(await parent.stdout.readline())
        assert is_running(pid)
    finally:
        parent.kill()
        await parent.communicate()
    await until(lambda: not is_running(pid))


async def test_a_bodys_memory_is_bounded_in_the_process(worker):
    """The limit stands in the process, not here."""
    await worker.parse("/generate", document())
    [pid] = pids(worker)
    bound = (3 * 1024**3, 3 * 1024**3)
    assert resource.prlimit(pid, resource.RLIMIT_AS) == bound
    assert resource.getrlimit(resource.RLIMIT_AS) != bound
