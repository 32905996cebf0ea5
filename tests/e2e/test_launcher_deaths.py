"""Whatever is killed comes back, and whatever the killed one left running is found again."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytestmark = pytest.mark.e2e


@contextmanager
def calls_all_the_time(fleet, endpoint: str) -> Iterator[list[str]]:
    """One call after the other in the background; gives the list of what went wrong."""
    wrong: list[str] = []
    done = threading.Event()
    served = threading.Event()

    def call() -> None:
        while not done.is_set():
            try:
                fleet.generate(endpoint)
                served.set()
            except Exception as exc:
                wrong.append(repr(exc))

    caller = threading.Thread(target=call)
    caller.start()
    assert served.wait(timeout=20)
    try:
        yield wrong
        served.clear()
        assert served.wait(timeout=20) or wrong
    finally:
        done.set()
        caller.join()


def pids(status) -> dict[str, int]:
    return {replica["id"]: replica["pid"] for replica in status["replicas"]}


def test_a_killed_replica_comes_back_and_no_call_fails(fleet) -> None:
    before = fleet.up()
    with calls_all_the_time(fleet, before["endpoint"]) as wrong:
        fleet.kill(pids(before)["replica-2"])
        fleet.until(lambda s: s["replicas"][2]["restarts"] == 1)
        after = fleet.until_ready()
    assert wrong == []
    assert pids(after)["replica-2"] != pids(before)["replica-2"]
    assert {k: v for k, v in pids(after).items() if k != "replica-2"} == {
        k: v for k, v in pids(before).items() if k != "replica-2"
    }


def test_after_a_killed_router_calls_succeed_within_2_s(fleet) -> None:
    before = fleet.up()
    fleet.generate(before["endpoint"])
    fleet.kill(before["router"]["pid"])
    begun_s = time.monotonic()
    assert fleet.generate(before["endpoint"], timeout_s=10)
    assert time.monotonic() - begun_s < 2.0
    after = fleet.until(lambda s: s["router"]["phase"] == "ready")
    assert after["router"]["restarts"] == 1
    assert pids(after) == pids(before)


def test_a_killed_launcher_changes_nothing_and_the_next_adopts_all(fleet) -> None:
    before = fleet.up()
    with calls_all_the_time(fleet, before["endpoint"]) as wrong:
        fleet.kill(before["launcher"]["pid"])
        orphaned = fleet.status()
        assert orphaned["launcher"]["pid"] is None
        assert {replica["phase"] for replica in orphaned["replicas"]} == {"ready"}
        assert "launcher: not running" in fleet.run("status").stdout
        after = fleet.up()
    assert wrong == []
    assert pids(after) == pids(before)
    assert after["router"]["pid"] == before["router"]["pid"]
    assert after["endpoint"] == before["endpoint"]
    # The adopter looks after them as if it had started them.
    fleet.kill(pids(after)["replica-0"])
    fleet.until(lambda s: s["replicas"][0]["restarts"] == 1)
    fleet.until_ready()
    fleet.kill(after["router"]["pid"])
    assert fleet.generate(before["endpoint"])


def test_what_died_while_no_launcher_looked_is_started_by_the_next(fleet) -> None:
    before = fleet.up()
    fleet.kill(before["launcher"]["pid"])
    fleet.kill(before["router"]["pid"])
    fleet.kill(pids(before)["replica-3"])
    assert fleet.status()["replicas"][3]["phase"] == "stopped"
    after = fleet.up()
    assert pids(after)["replica-0"] == pids(before)["replica-0"]
    assert pids(after)["replica-3"] != pids(before)["replica-3"]
    assert fleet.generate(after["endpoint"])


def test_down_after_a_killed_launcher_leaves_nothing(fleet) -> None:
    before = fleet.up()
    fleet.kill(before["launcher"]["pid"])
    fleet.run("down")
    assert fleet.running() == []


def test_lost_records_do_not_lose_processes(fleet) -> None:
    before = fleet.up()
    fleet.kill(before["launcher"]["pid"])
    for path in (fleet.state_dir / "replicas").iterdir():
        path.write_text("")
    (fleet.state_dir / "status.json").write_text("{")
    assert pids(fleet.up()) == pids(before)


def test_a_changed_replica_is_replaced_and_an_unchanged_one_kept(fleet) -> None:
    fleet.config["engine"]["per_replica"] = [{}, {"speed": 0.5}]
    fleet.write()
    before = fleet.up()
    fleet.kill(before["launcher"]["pid"])
    fleet.config["engine"]["per_replica"] = [{}, {"speed": 0.25}]
    fleet.config["models"][0]["replicas"] = 3
    fleet.write()
    with calls_all_the_time(fleet, before["endpoint"]) as wrong:
        after = fleet.up()
        fleet.until(lambda _: len([f for f in fleet.running() if "replica" in f.marks.role]) == 3)
    assert wrong == []
    assert pids(after)["replica-0"] == pids(before)["replica-0"]
    assert pids(after)["replica-1"] != pids(before)["replica-1"]
    assert list(pids(after)) == ["replica-0", "replica-1", "replica-2"]


def test_a_changed_router_is_replaced_on_the_same_socket(fleet) -> None:
    before = fleet.up()
    fleet.kill(before["launcher"]["pid"])
    fleet.config["router"]["policy"] = "round_robin"
    fleet.write()
    with calls_all_the_time(fleet, before["endpoint"]) as wrong:
        after = fleet.up()
    assert wrong == []
    assert after["router"]["pid"] != before["router"]["pid"]
    assert after["endpoint"] == before["endpoint"]
    assert pids(after) == pids(before)


def test_a_failed_adoption_stops_nothing_that_served_before(fleet) -> None:
    before = fleet.up()
    fleet.kill(before["launcher"]["pid"])
    fleet.config["models"].append(
        {
            "id": "gpu-fleet/broken",
            "engine": {"name": "simulator", "env": {"PYTHONHOME": "/nonexistent"}},
        }
    )
    fleet.config["models"][0]["name"] = "replica"  # whose ids stay what they were
    fleet.config["runtime"]["restart"] = {"base_s": 0.1}
    fleet.write()
    done = fleet.run("up", "-d", rc=1)
    assert "broken-0" in done.stderr
    assert "left running" in done.stderr
    after = fleet.status()
    assert pids(after)["replica-0"] == pids(before)["replica-0"]


def test_a_start_does_not_wait_for_what_an_operator_drained(fleet) -> None:
    before = fleet.up()
    fleet.run("drain", "replica-2")
    fleet.kill(before["launcher"]["pid"])
    done = fleet.run("up", "-d")
    assert f"drained by you: `launcher undrain -c {fleet.path} replica-2`" in done.stdout
    assert "3 of 4 replicas ready, 1 drained" in fleet.run("status").stdout  # whose exit code is 0
    assert "replica-2: drained by an operator" in fleet.run("logs", "launcher").stdout


def test_ctrl_c_while_waiting_stops_nothing_that_served_before(fleet) -> None:
    before = fleet.up()
    fleet.kill(before["launcher"]["pid"])
    fleet.config["models"][0]["replicas"] = 5
    fleet.config["engine"]["per_replica"] = [{}, {}, {}, {}, {"load-s": 60}]
    fleet.write()
    waiting = fleet.start("up", "-d")
    fleet.until(lambda s: len(s["replicas"]) == 5 and s["replicas"][4]["phase"] == "loading")
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(timeout=30) == 130
    after = fleet.status()
    said = fleet.output_of(waiting)
    assert f"left running: what served before, and launcher pid {after['launcher']['pid']}" in said
    assert {name: pid for name, pid in pids(after).items() if name != "replica-4"} == pids(before)
    assert fleet.generate(before["endpoint"])


def test_ctrl_c_while_waiting_for_a_first_start_leaves_nothing(fleet) -> None:
    fleet.config["engine"]["args"]["load-s"] = 60
    fleet.write()
    waiting = fleet.start("up", "-d")
    fleet.until(lambda s: s["replicas"][3]["phase"] == "loading")
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(timeout=30) == 130
    assert fleet.running() == []
