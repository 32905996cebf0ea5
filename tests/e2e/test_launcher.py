"""Every verb of the launcher against real processes, as an operator uses it."""

import signal
import socket
import subprocess
import threading
import time

import pytest

pytestmark = pytest.mark.e2e

PHASES = {"pending", "starting", "loading", "ready", "draining", "stopped", "failed"}


def test_up_serves_and_ctrl_c_leaves_nothing_behind(fleet) -> None:
    launcher = fleet.start("up")
    status = fleet.until_ready()
    assert fleet.generate(status["endpoint"])
    assert len({replica["pid"] for replica in status["replicas"]}) == 4
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=30) == 0
    output = fleet.output_of(launcher)
    assert f"curl {status['endpoint']}/generate" in output
    assert "replica-3: ready" in output
    assert fleet.running() == []


def test_up_goes_on_when_nobody_reads_its_output_any_more(fleet) -> None:
    launcher = subprocess.Popen(fleet.command("up"), stdout=subprocess.PIPE, text=True)
    fleet.started.append(launcher)
    assert launcher.stdout is not None
    assert launcher.stdout.readline().startswith("replica-0: ")
    launcher.stdout.close()
    fleet.until_ready()
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=30) == 0
    assert fleet.running() == []


def test_a_second_ctrl_c_does_not_wait_for_calls_in_flight(fleet) -> None:
    fleet.config["engine"]["args"]["time-scale"] = 1
    fleet.write()
    launcher = fleet.start("up")
    endpoint = fleet.until_ready()["endpoint"]
    ended = threading.Event()

    def call() -> None:
        try:
            fleet.generate(endpoint, max_new_tokens=500)
        except OSError:
            ended.set()

    caller = threading.Thread(target=call)
    caller.start()
    fleet.until(lambda _: "in flight" in fleet.look().stdout)
    launcher.send_signal(signal.SIGINT)
    fleet.until(lambda _: "stopping" in fleet.look().stdout)
    assert launcher.poll() is None  # the call in flight is waited for
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=8) == 0
    assert ended.wait(timeout=10)
    caller.join()
    assert fleet.running() == []


def test_detached_status_and_down(fleet) -> None:
    status = fleet.up()
    assert set(status) >= {"cluster", "endpoint", "replicas"}
    assert status["cluster"] == "e2e"
    for replica in status["replicas"]:
        assert set(replica) >= {"id", "phase", "url", "restarts", "pid"}
        assert replica["phase"] == "ready"
    assert [replica["id"] for replica in status["replicas"]] == [f"replica-{i}" for i in range(4)]
    assert fleet.generate(status["endpoint"])
    fleet.run("down")
    assert fleet.running() == []
    after = fleet.status()
    assert {replica["phase"] for replica in after["replicas"]} == {"stopped"}
    assert {replica["pid"] for replica in after["replicas"]} == {None}
    assert "nothing runs" in fleet.run("down").stdout


def test_status_before_the_first_start(fleet) -> None:
    assert {replica["phase"] for replica in fleet.status()["replicas"]} == {"stopped"}
    assert "replica-0" in fleet.run("status", rc=3).stdout
    assert not fleet.state_dir.exists()  # looking changes nothing


def test_one_of_several_models_is_asked_by_its_name(fleet) -> None:
    fleet.config["models"] = [
        {"id": "gpu-fleet/simulated-7b", "name": name, "replicas": 1} for name in ("large", "small")
    ]
    fleet.write()
    said = fleet.run("up", "-d").stdout
    fleet.until_ready()
    ready = said.index("  curl http")  # up to the next line, which has a command in backticks
    curl = subprocess.run(
        ["bash", "-c", said[ready:].partition("\nlauncher:")[0]], capture_output=True
    )
    assert b"generated_text" in curl.stdout, said
    unnamed = fleet.run("ask", "hi", rc=2)
    assert "found 2 models, expected --model with one of: large, small" in unnamed.stderr
    answer = fleet.run("ask", "hi", "--model", "small", "--max-new-tokens", "3")
    assert answer.stderr.strip().endswith("from small-0")
    assert (
        "expected one of: 'large', 'small'" in fleet.run("ask", "hi", "--model", "x", rc=1).stderr
    )


def test_ask_streams_an_answer_and_names_the_replica(fleet) -> None:
    fleet.up()
    through_router = fleet.run("ask", "What is Deep Learning?", "--max-new-tokens", "7")
    assert through_router.stdout.strip()
    assert through_router.stderr.startswith("7 tokens in ")
    assert "from replica-" in through_router.stderr
    direct = fleet.run("ask", "hi", "--replica", "replica-2", "--max-new-tokens", "3")
    assert direct.stderr.strip().endswith("from replica-2")
    assert "expected one of: replica-0" in fleet.run("ask", "hi", "--replica", "x", rc=1).stderr


def test_ask_says_what_to_do_when_nothing_runs(fleet) -> None:
    done = fleet.run("ask", "hi", rc=1)
    assert done.stderr.startswith("error: no router runs")
    assert "launcher up" in done.stderr


def test_logs_of_replica_router_and_launcher(fleet) -> None:
    fleet.up()
    assert "simulator" in fleet.run("logs", "replica-1").stdout.lower()
    assert fleet.run("logs", "router").returncode == 0
    assert "loading -> ready" in fleet.run("logs", "launcher").stdout
    assert len(fleet.run("logs", "replica-1", "-n", "2").stdout.splitlines()) == 2
    assert "expected one of: replica-0" in fleet.run("logs", "../lock", rc=1).stderr


def test_drain_takes_a_replica_out_and_undrain_puts_it_back(fleet) -> None:
    fleet.up()
    assert "drained" in fleet.run("drain", "replica-1", "--wait").stdout
    phases = {replica["id"]: replica["phase"] for replica in fleet.status()["replicas"]}
    assert phases["replica-1"] == "draining"
    assert set(phases.values()) <= PHASES
    fleet.run("undrain", "replica-1")
    fleet.until_ready()
    assert "expected one of" in fleet.run("drain", "nobody", rc=1).stderr


def test_a_drain_is_forgotten_by_down_and_kept_by_a_kill(fleet) -> None:
    before = fleet.up()
    fleet.run("drain", "replica-1")
    fleet.kill(before["launcher"]["pid"])
    fleet.kill(before["router"]["pid"])
    assert fleet.up()["replicas"][1]["phase"] == "draining"
    fleet.run("down")
    assert {replica["phase"] for replica in fleet.up()["replicas"]} == {"ready"}


@pytest.mark.parametrize("ends_by", ["down", "down after a kill", "ctrl-c"])
def test_a_full_stop_leaves_only_logs_and_no_open_files(fleet, ends_by: str) -> None:
    launcher = fleet.start("up")
    status = fleet.until_ready()
    files = [path for path in fleet.state_dir.rglob("*") if not path.is_dir()]
    assert {path.name for path in files} >= {"router.sock", "replicas.json", "launcher.log"}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == dict.fromkeys(
        (path.name for path in files), oct(0o600)
    )
    if ends_by == "ctrl-c":
        launcher.send_signal(signal.SIGINT)
        launcher.wait(timeout=30)
    elif ends_by == "down":
        fleet.run("down")
    else:
        fleet.kill(status["launcher"]["pid"])
        fleet.run("down")
    left = {path.name for path in fleet.state_dir.rglob("*") if not path.is_dir()}
    assert {name for name in left if ".log" not in name} <= {"lock", "cluster.yaml"}
    assert "router.sock" not in left


def test_a_second_launcher_on_one_cluster_starts_nothing(fleet) -> None:
    before = fleet.up()
    for args in (("up",), ("up", "-d")):
        said = fleet.run(*args).stdout
        assert f"launcher pid {before['launcher']['pid']} runs this config already" in said
    after = fleet.until_ready()
    assert [r["pid"] for r in after["replicas"]] == [r["pid"] for r in before["replicas"]]


def test_comments_change_nothing(fleet) -> None:
    fleet.up()
    fleet.path.write_text(fleet.path.read_text() + "# a comment\n")
    assert "runs this config already" in fleet.run("up", "-d").stdout


def test_what_was_removed_while_no_launcher_looked_is_stopped_by_the_next(fleet) -> None:
    before = fleet.up()
    fleet.kill(before["launcher"]["pid"])
    fleet.config["models"][0]["replicas"] = 3
    fleet.write()
    gone = before["replicas"][3]["pid"]
    stopped = f"replica-3: no longer in the config: stopped, pid {gone}"
    assert stopped in fleet.run("up", "-d").stdout
    logs = fleet.run("logs", "replica-3")
    assert "has no replica replica-3" in logs.stderr
    assert logs.stdout


def test_what_does_not_run_cannot_be_drained(fleet) -> None:
    fleet.config["models"][0]["replicas"] = 2
    fleet.write()
    status = fleet.up()
    fleet.kill(status["launcher"]["pid"])
    fleet.kill(status["replicas"][1]["pid"])
    said = fleet.run("drain", "replica-1", rc=1).stderr
    assert said == "error: replica-1 is not running (it is stopped); nothing was changed\n"
    fleet.run("status", rc=1)
    assert {replica["phase"] for replica in fleet.up()["replicas"]} == {"ready"}


def test_a_taken_endpoint_port_is_named_and_nothing_is_left(fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        fleet.config["router"]["port"] = port
        fleet.write()
        for args in (("up",), ("up", "-d")):
            done = fleet.run(*args, rc=1)
            assert f"127.0.0.1:{port}" in done.stderr
            assert "pid " in done.stderr
    assert fleet.running() == []


def test_taken_replica_ports_are_gone_around(fleet) -> None:
    first = fleet.config["runtime"]["first_port"]
    with socket.create_server(("127.0.0.1", first + 1)):
        urls = [replica["url"] for replica in fleet.up()["replicas"]]
    assert f"http://127.0.0.1:{first + 1}" not in urls
    assert len(set(urls)) == 4


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"start_timeout_s": 0.2, "args": {"load-s": 60}}, "not ready in time"),
        ({"env": {"PYTHONHOME": "/nonexistent"}}, "exited with code 1"),
    ],
)
def test_a_detached_start_that_fails_says_why_and_leaves_nothing(fleet, engine, said) -> None:
    fleet.config["models"][0]["replicas"] = 1
    fleet.config["engine"] = {"name": "simulator", **engine}
    fleet.config["runtime"]["restart"] = {"base_s": 0.1}
    fleet.write()
    done = fleet.run("up", "-d", rc=1)
    assert "error: replica-0: " in done.stderr
    assert said in done.stderr
    assert fleet.running() == []


def test_a_bad_config_exits_with_2_before_anything_starts(fleet) -> None:
    fleet.config["models"][0]["replicsa"] = 1
    fleet.write()
    assert "replicsa" in fleet.run("up", "-d", rc=2).stderr
    assert not fleet.state_dir.exists()


def test_following_a_log_survives_a_restart(fleet) -> None:
    fleet.config["models"][0]["replicas"] = 1
    fleet.write()
    pid = fleet.up()["replicas"][0]["pid"]
    follower = fleet.start("logs", "-f", "-n", "1", "replica-0")

    def until_it_printed(what: str) -> None:
        deadline_s = time.monotonic() + 20
        while what not in fleet.output_of(follower):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)

    until_it_printed("\n")  # it follows from here on
    fleet.kill(pid)
    until_it_printed("Connected")
    follower.send_signal(signal.SIGINT)
    assert follower.wait(timeout=10) == 130
