"""The rig itself: that the private engine does with GPUs what a host's engine does, that its
images serve, and that nothing of it stays."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

FAKES = Path(__file__).parents[1] / "fakes"
DEADLINE_S = 20
LOOK_EVERY_S = 0.02
AT_ONCE = ("--load-s=0", "--time-scale=0")
HELLO = {"inputs": "Hello", "parameters": {"max_new_tokens": 4}}


def until(found, what):
    """Asks again, until there is an answer or the deadline has passed."""
    deadline_s = time.monotonic() + DEADLINE_S
    while (answer := found()) is None:
        assert time.monotonic() < deadline_s, f"no {what} within {DEADLINE_S} s"
        time.sleep(LOOK_EVERY_S)
    return answer


def gpu(*ids):
    from docker.types import DeviceRequest

    return [DeviceRequest(device_ids=list(ids), capabilities=[["gpu", "compute", "utility"]])]


@pytest.fixture
def started(docker_client):
    """A container that was started, with one port published on loopback; as a launcher does it."""

    def start(image, *command, gpus=(), port=80, **options):
        container = docker_client.containers.create(
            image,
            list(command),
            device_requests=gpu(*gpus) if gpus else None,
            ports={f"{port}/tcp": ("127.0.0.1", None)},
            **options,
        )
        container.start()
        container.reload()
        return container

    return start


def post(container, port, path, body):
    """The answer, once the server in there is up."""
    host_port = container.ports[f"{port}/tcp"][0]["HostPort"]
    data = json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{host_port}{path}", data)
    request.add_header("content-type", "application/json")

    def answer():
        try:
            with urlopen(request, timeout=DEADLINE_S) as reply:
                return json.load(reply)
        except (URLError, ConnectionError):
            return None

    return until(answer, f"answer of {path}")


# ---- GPUs ----


def test_the_gpus_asked_for_are_those_inside(docker_engines, docker_client, simulator_image):
    ids = docker_engines.GPUS[1:3]
    output = docker_client.containers.run(
        simulator_image, entrypoint="env", device_requests=gpu(*ids), remove=True
    )
    variables = dict(line.split("=", 1) for line in output.decode().splitlines())
    assert variables["NVIDIA_VISIBLE_DEVICES"] == ",".join(ids)
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


def test_an_unknown_gpu_fails_at_start_and_leaves_a_created_container(
    docker_engines, docker_client, started, simulator_image
):
    from docker.errors import APIError

    with pytest.raises(APIError, match="device error: GPU-none: unknown device") as error:
        started(simulator_image, gpus=[docker_engines.GPUS[0], "GPU-none"])
    assert error.value.status_code == 500
    (container,) = docker_client.containers.list(all=True)
    assert container.status == "created"


def test_gpus_come_and_go_while_the_engine_runs(engine, docker_engines, started, simulator_image):
    from docker.errors import APIError

    engine.set_gpus("GPU-new")
    started(simulator_image, gpus=["GPU-new"])
    with pytest.raises(APIError, match="unknown device"):
        started(simulator_image, gpus=[docker_engines.GPUS[0]])
    engine.break_gpus("initialization error: nvml error: driver not loaded")
    with pytest.raises(APIError, match="nvml error: driver not loaded"):
        started(simulator_image, gpus=["GPU-new"])


def test_without_the_hook_the_engine_has_no_driver_for_gpus(make_engine, docker_engines, images):
    from docker.errors import APIError

    engine = make_engine(hook=False)
    image = images.crash_image(engine, "crash:test", 0, "runs")
    client = engine.client()
    try:
        container = client.containers.create(image, device_requests=gpu(docker_engines.GPUS[0]))
        with pytest.raises(APIError, match="could not select device driver"):
            container.start()
        assert client.containers.run(image, stderr=True) == b"runs\n"
    finally:
        client.close()


def test_no_image_can_be_pulled(docker_client):
    from docker.errors import APIError

    with pytest.raises(APIError, match="connection refused"):
        docker_client.images.pull("ghcr.io/nobody/nothing", "1")


# ---- images ----


def test_tgi_serves_on_a_published_port(docker_engines, started, tgi_image):
    id_ = docker_engines.GPUS[3]
    flags = ("--model-id", "a/b", "--num-shard", "1", "--quantize", "eetq", "--usage-stats=off")
    environment = {"SIMULATOR_ARGS": " ".join(AT_ONCE)}
    container = started(tgi_image, *flags, gpus=[id_], environment=environment)
    assert post(container, 80, "/generate", HELLO)["generated_text"]
    log = container.logs().decode()
    assert f"NVIDIA_VISIBLE_DEVICES={id_}" in log
    assert "Shard ready in" in log
    container.stop()
    assert container.wait()["StatusCode"] == 0


@pytest.mark.parametrize(
    ("gpus", "flags", "exit_code", "said"),
    [
        (1, ("--num-shards", "1"), 2, "unexpected argument '--num-shards' found"),
        (1, ("--quantize", "int8"), 2, "invalid value 'int8' for '--quantize <QUANTIZE>'"),
        (1, ("--model-id",), 2, "a value is required for '--model-id <MODEL_ID>'"),
        (1, ("--port", "80", "-p", "81"), 2, "cannot be used multiple times"),
        (1, ("--num-shard", "2"), 1, "Shard 1 failed to start"),
        (0, (), 1, "Found no NVIDIA driver"),
    ],
)
def test_tgi_refuses_what_the_real_one_refuses(
    docker_engines, started, tgi_image, gpus, flags, exit_code, said
):
    container = started(tgi_image, *flags, gpus=docker_engines.GPUS[:gpus])
    assert container.wait()["StatusCode"] == exit_code
    assert said in container.logs().decode()


def test_an_older_tgi_does_not_know_newer_flags(engine, docker_engines, started, images):
    tag = images.tgi_image(engine, "ghcr.io/huggingface/text-generation-inference:1.4.4")
    container = started(tag, "--usage-stats", "off", gpus=docker_engines.GPUS[:1])
    assert container.wait()["StatusCode"] == 2
    assert "unexpected argument '--usage-stats'" in container.logs().decode()


def test_the_simulator_serves_for_another_user_on_a_read_only_disk(started, simulator_image):
    container = started(simulator_image, *AT_ONCE, user="1000:1000", read_only=True)
    assert post(container, 80, "/generate", HELLO)["generated_text"]


def test_llama_server_completes_with_a_real_model(started, llama_image, tiny_gguf):
    mount = {str(tiny_gguf.parent): {"bind": "/models", "mode": "ro"}}
    flags = ("-m", "/models/tiny.gguf", "-c", "4096", "-np", "4", "-ngl", "99")
    container = started(llama_image, *flags, port=8080, volumes=mount)
    answer = post(container, 8080, "/v1/completions", {"prompt": "Hello", "max_tokens": 12})
    assert answer["usage"]["completion_tokens"] == 12
    asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    answer = post(container, 8080, "/v1/chat/completions", asked)
    assert answer["choices"][0]["finish_reason"] == "length"


def test_programs_that_end_badly(engine, docker_engines, started, images):
    message = 'torch.OutOfMemoryError: CUDA out of memory.\n  "$free" is 0'
    crash = started(images.crash_image(engine, "crash:test", 3, message), "--any", "flag")
    assert crash.wait()["StatusCode"] == 3
    assert crash.logs().decode() == f"{message}\n"
    greedy = started(images.oom_image(engine), mem_limit="32m")
    assert greedy.wait()["StatusCode"] == 137
    greedy.reload()
    assert greedy.attrs["State"]["OOMKilled"] is docker_engines.tells_oom()


def test_an_image_is_made_again_only_if_it_would_differ(engine, docker_client, images):
    first = docker_client.images.get(images.crash_image(engine, "crash:test", 1, "a")).id
    assert docker_client.images.get(images.crash_image(engine, "crash:test", 1, "a")).id == first
    assert docker_client.images.get(images.crash_image(engine, "crash:test", 2, "a")).id != first


# ---- the engine's life ----


def test_images_and_containers_outlive_a_restart(engine, docker_client, started, simulator_image):
    container = started(simulator_image, *AT_ONCE)
    post(container, 80, "/generate", HELLO)
    engine.restart()
    assert docker_client.images.get(simulator_image)
    container.reload()
    assert container.status == "exited"


def test_a_crash_of_the_daemon_leaves_containers_running(engine, started, simulator_image):
    container = started(simulator_image, *AT_ONCE)
    post(container, 80, "/generate", HELLO)
    pid = container.attrs["State"]["Pid"]
    engine.kill()
    assert not engine.is_running
    assert not engine.answers()
    assert Path(f"/proc/{pid}").exists()
    engine.start()
    assert engine.answers()


def test_nothing_stays_when_the_test_run_is_killed(docker_engines, shared_engine):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import docker_engine as d, images, docker\n"
        "engine = d.PrivateEngine().__enter__()\n"
        "tag = images.crash_image(engine, 'crash:test', 0, 'runs')\n"
        "how = {'entrypoint': 'cat', 'stdin_open': True, 'detach': True}\n"
        "how['ports'] = {'80/tcp': ('127.0.0.1', None)}\n"
        "engine.client().containers.run(tag, **how)\n"
        "network = engine.client().networks.create('own')\n"
        "print(engine.root, network.id, flush=True); sys.stdin.read()"
    )
    run = [sys.executable, "-c", script, str(FAKES)]
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        place, network = process.stdout.readline().split()
        root, links = Path(place), Path("/sys/class/net")
        bridges = [links / root.name, links / f"br-{network[:12]}"]
        assert all(bridge.exists() for bridge in bridges)
        process.send_signal(signal.SIGKILL)
    until(lambda: None if root.exists() else True, "end of the engine's folder")
    assert not any(bridge.exists() for bridge in bridges)
    assert str(root) not in Path("/proc/self/mountinfo").read_text()
