"""A replica that is stopped (SIGSTOP) in the middle of its work, and goes on later (SIGCONT)."""

import json
import os
import signal
import threading
import time
import urllib.request
from datetime import UTC, datetime

import pytest

pytestmark = pytest.mark.e2e

FOUND_OUT_S = 3.0
"""It is about one second; the rest is for a machine that has other things to do."""


def logged(fleet, name, after, since):
    """When the replica first was in state `after` since then, and why, by the router's log."""

    def found(lines):
        return [
            line
            for line in lines
            if (line["replica"], line["after"]) == (name, after) and at(line) > since
        ]

    return found(fleet.logged("health", found))[0]


def at(line):
    return datetime.fromisoformat(line["time"])


def streams(endpoint, over, results):
    """One streamed call after the other; how each ended."""
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 100}}
    while not over.is_set():
        request = urllib.request.Request(
            f"{endpoint}/generate_stream",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            results.append(b'"error"' not in reply.read())


def test_a_stopped_replica_is_suspect_and_used_again_once_it_goes_on(fleet) -> None:
    fleet.config["models"][0]["replicas"] = 2
    fleet.config["engine"]["args"]["time-scale"] = 4
    fleet.write()
    status = fleet.up()
    over, results = threading.Event(), []
    clients = [
        threading.Thread(target=streams, args=(status["endpoint"], over, results)) for _ in range(8)
    ]
    for client in clients:
        client.start()
    victim = status["replicas"][0]
    try:
        while len(results) < 40:  # both have shown how they normally are
            time.sleep(0.05)
        os.kill(victim["pid"], signal.SIGSTOP)
        stopped_at = datetime.now(UTC)
        fleet.until(lambda s: s["replicas"][0]["shunned"].startswith("suspect"))
        suspected = logged(fleet, victim["id"], "suspect", since=stopped_at)
        assert (at(suspected) - stopped_at).total_seconds() < FOUND_OUT_S
        assert "silent for" in suspected["reason"]
        served = len(results)
        fleet.until(lambda _: len(results) > served)
        assert fleet.generate(status["endpoint"]), "the other one serves"
        os.kill(victim["pid"], signal.SIGCONT)
        fleet.until(lambda s: s["replicas"][0]["shunned"] == "")
        assert logged(fleet, victim["id"], "healthy", since=at(suspected))
    finally:
        os.kill(victim["pid"], signal.SIGCONT)
        over.set()
        for client in clients:
            client.join(60)
    assert all(results)
    fleet.run("down")
