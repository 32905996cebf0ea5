"""What a container is asked to be, and the same as a command line."""

import json
import shlex
import shutil
import subprocess
from contextlib import nullcontext

import pytest

from launcher.config import DockerConfig
from launcher.docker.container import (
    Container,
    container_of,
    create_body,
    require_no_engine_socket,
)
from launcher.docker.gpu_injection import EngineFacts
from launcher.docker.labels import Place
from launcher.docker.run_words import docker_run_words, is_secret
from launcher.engines.base import ContainerCommand, Mount
from router.errors import StartError

GPU = "GPU-11111111-2222-3333-4444-555555555555"
OTHER = "GPU-99999999-2222-3333-4444-555555555555"
PLACE = Place("tgi", "/state/tgi", 3, "127.0.0.1", 9091, "http://127.0.0.1:9091")
TGI = ContainerCommand(
    image="ghcr.io/huggingface/text-generation-inference:1.4.4",
    argv=("--model-id", "/model", "--num-shard", "1"),
    env={"HF_TOKEN": "hf_secret", "LEVEL": "2"},
    port=80,
    mounts=(Mount("/path/to/fine_tuned_v1", "/model"),),
    shm_bytes=1024**3,
    ready_path="/health",
    ready_timeout_s=60.0,
    capabilities=("DAC_OVERRIDE",),
)


@pytest.fixture
def make(make_spec):
    def make(command=TGI, devices=(GPU,), facts=None, place=PLACE, **docker) -> Container:
        spec = make_spec(devices=devices)
        return container_of(
            spec, command, place, DockerConfig(**docker), facts or EngineFacts(version="20.10.24")
        )

    return make


def changed(command=TGI, **fields):
    values = {name: getattr(command, name) for name in ContainerCommand.__slots__}
    return ContainerCommand(**{**values, **fields})


def test_the_body_is_all_that_the_engine_is_asked(make):
    assert create_body(make()) == {
        "Image": "ghcr.io/huggingface/text-generation-inference:1.4.4",
        "Cmd": ["--model-id", "/model", "--num-shard", "1"],
        "Env": ["HF_TOKEN=hf_secret", "LEVEL=2"],
        "Labels": {
            "io.gpu-fleet.cluster": "tgi",
            "io.gpu-fleet.replica": "replica-0",
            "io.gpu-fleet.generation": "3",
            "io.gpu-fleet.fingerprint": "new",
            "io.gpu-fleet.home": "/state/tgi",
            "io.gpu-fleet.url": "http://127.0.0.1:9091",
            "io.gpu-fleet.devices": GPU,
        },
        "ExposedPorts": {"80/tcp": {}},
        "HostConfig": {
            "Binds": ["/path/to/fine_tuned_v1:/model"],
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "9091"}]},
            "DeviceRequests": [
                {
                    "Driver": "",
                    "Count": 0,
                    "DeviceIDs": [GPU],
                    "Capabilities": [["gpu"]],
                    "Options": {},
                }
            ],
            "RestartPolicy": {"Name": "no"},
            "CapDrop": ["ALL"],
            "CapAdd": ["DAC_OVERRIDE"],
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": 16_384,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
            "Init": True,
            "Ulimits": [{"Name": "nofile", "Soft": 65_536, "Hard": 65_536}],
            "ShmSize": 1024**3,
        },
    }


def test_its_name_says_whose_it_is(make):
    assert make().name == "gpu-fleet.tgi.replica-0"


@pytest.mark.parametrize(
    ("docker", "expected"),
    [
        ({"memory": "64GiB"}, {"Memory": 64 * 1024**3, "MemorySwap": 64 * 1024**3}),
        ({"network": "models"}, {"NetworkMode": "models"}),
        (
            {"log_max_size": "1g", "log_max_files": 9},
            {"LogConfig": {"Type": "json-file", "Config": {"max-size": "1g", "max-file": "9"}}},
        ),
    ],
)
def test_settings_reach_the_engine(make, docker, expected):
    assert expected.items() <= create_body(make(**docker))["HostConfig"].items()


def test_a_user_is_the_containers(make):
    assert create_body(make(user="1000:1000"))["User"] == "1000:1000"
    assert "User" not in create_body(make())


@pytest.mark.parametrize(
    ("user", "home"),
    [
        (None, None),
        ("0", None),
        ("root:1", None),
        ("1000", "/cache/home"),
        ("me:me", "/cache/home"),
    ],
)
def test_a_user_for_whom_the_image_has_no_home_is_given_one(make, user, home):
    command = changed(user_env={"HOME": "/cache/home", "LEVEL": "1"})
    env = make(command, user=user).env
    assert env.get("HOME") == home
    assert env["LEVEL"] == "2"  # what the operator sets wins


def test_an_engine_without_its_init_is_asked_for_none(make):
    body = create_body(make(facts=EngineFacts(has_init=False)))
    assert "Init" not in body["HostConfig"]


def test_an_engine_that_is_not_root_is_asked_for_no_more_open_files_than_it_has(make):
    made = make(facts=EngineFacts(raises_limits=False))
    assert "Ulimits" not in create_body(made)["HostConfig"]
    assert "--ulimit" not in docker_run_words(made)


def test_proxies_of_the_users_settings_do_not_replace_an_engines_own(make):
    proxies = {"HTTP_PROXY": "http://me:secret@corp", "LEVEL": "1"}
    made = make(facts=EngineFacts(proxies=proxies))
    env = create_body(made)["Env"]
    assert "HTTP_PROXY=http://me:secret@corp" in env
    assert [one for one in env if one.startswith("LEVEL=")] == ["LEVEL=2"]
    assert "secret@" not in repr(made) + repr(EngineFacts(proxies=proxies))


def test_words_after_the_entrypoint_go_before_the_arguments_as_on_a_command_line(make):
    made = make(changed(entrypoint=("python3", "-m", "server")))
    assert create_body(made)["Entrypoint"] == ["python3"]
    assert create_body(made)["Cmd"][:3] == ["-m", "server", "--model-id"]
    assert "Entrypoint" not in create_body(make())


def test_a_read_only_folder_is_mounted_so(make):
    mounts = (Mount("/a", "/b", is_read_only=True), Mount("/c", "/d"))
    made = make(changed(mounts=mounts))
    assert create_body(made)["HostConfig"]["Binds"] == ["/a:/b:ro", "/c:/d"]


@pytest.mark.parametrize("network", ["host", "none", "container:other"])
def test_networks_without_ports_of_their_own_are_refused(make, network):
    with pytest.raises(StartError, match=r"runtime\.docker\.network") as caught:
        make(network=network)
    assert not caught.value.recoverable


def test_a_path_that_docker_cannot_mount_is_refused(make):
    with pytest.raises(StartError, match="colon"):
        make(changed(mounts=(Mount("/models/a:b", "/model"),)))


@pytest.mark.parametrize(
    ("source", "is_refused"),
    [
        ("/run/docker.sock", True),
        ("/run", True),
        ("/", True),
        ("/run/docker", False),
        ("/srv/models", False),
        ("/run/dock", False),
    ],
)
def test_nothing_that_holds_an_engines_socket_is_mounted(source, is_refused):
    expected = (
        pytest.raises(StartError, match=r"/run/docker\.sock") if is_refused else nullcontext()
    )
    with expected:
        require_no_engine_socket(source, ["/run/docker.sock"])


def test_secrets_are_in_no_text_of_it(make):
    assert "hf_secret" not in repr(make())
    assert "hf_secret" not in json.dumps(create_body(make())["Labels"])


# ---- the same as a command line


def test_the_words_are_what_an_operator_would_have_written(make):
    made = make()
    assert docker_run_words(made) == (
        *("docker", "run", "-d", "--name", "gpu-fleet.tgi.replica-0"),
        *("--gpus", f"device={GPU}"),
        *("--shm-size", "1g", "-p", "127.0.0.1:9091:80"),
        *("-v", "/path/to/fine_tuned_v1:/model", "-e", "HF_TOKEN", "-e", "LEVEL=2", "--init"),
        *("--cap-drop", "ALL", "--cap-add", "DAC_OVERRIDE"),
        *("--security-opt", "no-new-privileges", "--pids-limit", "16384"),
        *("--ulimit", "nofile=65536:65536"),
        *("--log-driver", "json-file", "--log-opt", "max-size=10m", "--log-opt", "max-file=3"),
        *("--label", "io.gpu-fleet.cluster=tgi", "--label", "io.gpu-fleet.replica=replica-0"),
        *("--label", "io.gpu-fleet.generation=3", "--label", "io.gpu-fleet.fingerprint=new"),
        *("--label", "io.gpu-fleet.home=/state/tgi"),
        *("--label", "io.gpu-fleet.url=http://127.0.0.1:9091"),
        *("--label", f"io.gpu-fleet.devices={GPU}"),
        "ghcr.io/huggingface/text-generation-inference:1.4.4",
        *("--model-id", "/model", "--num-shard", "1"),
    )


@pytest.mark.parametrize(
    ("docker", "devices", "expected"),
    [
        ({}, (GPU, OTHER), ("--gpus", f'"device={GPU},{OTHER}"')),
        ({}, ("cuda:1",), ("--gpus", "device=1")),
        ({}, (), ("-e", "NVIDIA_VISIBLE_DEVICES=void")),
        ({"gpu_injection": "cdi"}, (GPU,), ("--device", f"nvidia.com/gpu={GPU}")),
        ({"gpu_injection": "runtime"}, (GPU,), ("--runtime", "nvidia")),
        ({"gpu_injection": "runtime"}, (GPU,), ("-e", f"NVIDIA_VISIBLE_DEVICES={GPU}")),
        ({"memory": "1536MiB"}, (GPU,), ("--memory", "1536m", "--memory-swap", "1536m")),
        ({"user": "1000"}, (GPU,), ("--user", "1000")),
        ({"network": "models"}, (GPU,), ("--network", "models")),
    ],
)
def test_each_setting_has_its_words(make, docker, devices, expected):
    facts = EngineFacts(
        runtimes=frozenset({"nvidia"}), cdi_devices=frozenset({f"nvidia.com/gpu={GPU}"})
    )
    if docker.get("gpu_injection") != "cdi":
        facts = EngineFacts(runtimes=frozenset({"nvidia"}))
    words = docker_run_words(make(devices=devices, facts=facts, **docker))
    assert contains(words, expected)


def contains(words, expected):
    return any(words[i : i + len(expected)] == expected for i in range(len(words)))


def test_an_address_of_ipv6_is_bracketed(make):
    place = Place("tgi", "/s", 1, "::1", 9091, "http://[::1]:9091")
    assert contains(docker_run_words(make(place=place)), ("-p", "[::1]:9091:80"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("HF_TOKEN", "x", True),
        ("HUGGING_FACE_HUB_TOKEN", "x", True),
        ("OPENAI_API_KEY", "x", True),
        ("API_KEY", "x", True),
        ("AWS_SECRET_ACCESS_KEY", "x", True),
        ("DB_PASSWORD", "x", True),
        ("WHATEVER", "hf_abcdefgh", True),
        ("HTTPS_PROXY", "http://me:secret@proxy:3128", True),
        ("HTTPS_PROXY", "http://proxy:3128", False),
        ("HUGGINGFACE_HUB_CACHE", "/data", False),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID", False),
        ("KEYBOARD", "de", False),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("VLLM_MAX_TOKENS", "5", False),
    ],
)
def test_what_counts_as_a_secret(name, value, expected):
    assert is_secret(name, value) is expected


def test_no_secret_is_among_the_words(make):
    assert not any("hf_secret" in word for word in docker_run_words(make()))


def test_a_shell_passes_the_words_on_as_they_are(make):
    words = docker_run_words(make(devices=(GPU, OTHER)))
    line = shlex.join(words)
    done = subprocess.run(
        [shutil.which("sh") or "sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True
    )
    assert tuple(done.stdout.splitlines()) == words
