"""What leaked is seen, and what did not is not."""

import os
import socket
import threading
from collections import Counter
from dataclasses import replace

from tests.campaign import leaks


def state(**replica):
    books = {"id": "r0", "requests": 0, "tokens": 0} | replica
    return {"calls": 0, "pools": [{"waiting_calls": 0, "waiting_bytes": 0, "replicas": [books]}]}


def test_a_process_that_has_not_changed_has_no_leak():
    before = leaks.look(os.getpid())
    assert before.files
    assert leaks.grown(before, leaks.look(os.getpid())) == []


def test_a_file_left_open_is_one():
    before = leaks.look(os.getpid())
    with socket.socket() as _, open(os.devnull) as _:
        assert len(leaks.grown(before, leaks.look(os.getpid()))) == 2


def test_a_half_closed_socket_is_one():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        served, _ = server.accept()
        before = leaks.look(os.getpid())
        client.close()
        assert served.recv(1) == b""
        after = leaks.look(os.getpid())
        assert any("half-closed" in leak for leak in leaks.grown(before, after))
        served.close()


def test_a_thread_is_one():
    before, end = leaks.look(os.getpid()), threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    after = leaks.look(os.getpid())
    end.set()
    thread.join()
    assert any("threads" in leak for leak in leaks.grown(before, after))


def test_memory_may_grow_a_little():
    before = leaks.Look(Counter(), 0, 50 * 2**20, 1, 0)
    assert leaks.grown(before, replace(before, rss_bytes=60 * 2**20)) == []
    assert leaks.grown(before, replace(before, rss_bytes=200 * 2**20)) != []


def test_books_that_are_not_at_rest():
    assert leaks.unrest(state()) == []
    assert leaks.unrest(state(requests=1)) == ["r0: requests: 1"]
    assert leaks.unrest(state(tokens=-1)) == ["r0: tokens: -1"]
    assert leaks.unrest(state() | {"calls": 2}) == ["calls running: 2"]


def test_an_engine_that_still_runs_something():
    rest = "# TYPE x gauge\ntgi_queue_size 0\n\ntgi_batch_current_size 0\n"
    assert leaks.engine_unrest(rest) == []
    assert leaks.engine_unrest(rest.replace("tgi_queue_size 0", "tgi_queue_size 3")) == [
        "tgi_queue_size 3"
    ]


def test_bugs_in_a_log():
    assert leaks.bugs("router: serving on x\nall is well\n") == []
    found = leaks.bugs("call 7: a bug in the router\nTraceback (most recent call last):\n  x\n")
    assert len(found) == 2
