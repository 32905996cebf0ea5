"""Which way GPUs get into a container, by what the config says and the engine can."""

import pytest

from launcher.docker.gpu_injection import (
    EngineFacts,
    Injection,
    device_requests,
    facts_of,
    injection_of,
    require_api_version,
)
from router.errors import StartError

OLD = EngineFacts("20.10.24", frozenset({"runc"}))
TOOLKIT = EngineFacts("24.0.7", frozenset({"runc", "nvidia"}))
CDI = EngineFacts(
    "28.5.2", frozenset({"runc"}), frozenset({"nvidia.com/gpu=0", "nvidia.com/gpu=GPU-a"})
)
RUNTIME = Injection(
    runtime="nvidia",
    env={
        "NVIDIA_VISIBLE_DEVICES": "GPU-a,GPU-b",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    },
)


@pytest.mark.parametrize(
    ("way", "devices", "facts", "expected"),
    [
        ("auto", ("GPU-a",), OLD, Injection(ids=("GPU-a",))),
        ("auto", ("GPU-a", "GPU-b"), TOOLKIT, Injection(ids=("GPU-a", "GPU-b"))),
        ("auto", ("MIG-1",), TOOLKIT, Injection(ids=("MIG-1",))),
        ("auto", ("cuda:0", "cuda:2"), OLD, Injection(ids=("0", "2"))),
        ("auto", ("GPU-a",), CDI, Injection("cdi", ("nvidia.com/gpu=GPU-a",))),
        ("auto", ("cuda:0",), CDI, Injection("cdi", ("nvidia.com/gpu=0",))),
        # Not all of them are listed: one way for all.
        ("auto", ("GPU-a", "GPU-b"), CDI, Injection(ids=("GPU-a", "GPU-b"))),
        ("request", ("GPU-a",), CDI, Injection(ids=("GPU-a",))),
        ("cdi", ("GPU-a",), CDI, Injection("cdi", ("nvidia.com/gpu=GPU-a",))),
        ("runtime", ("GPU-a", "GPU-b"), TOOLKIT, RUNTIME),
        ("none", ("GPU-a",), TOOLKIT, Injection()),
        *(
            (way, (), CDI, Injection(env={"NVIDIA_VISIBLE_DEVICES": "void"}))
            for way in ("auto", "request", "cdi", "runtime", "none")
        ),
    ],
)
def test_the_way_in(way, devices, facts, expected):
    assert injection_of(way, devices, facts) == expected


@pytest.mark.parametrize(
    ("way", "facts", "said"),
    [
        ("cdi", OLD, "knows no nvidia.com/gpu=GPU-b; it knows: none"),
        ("cdi", CDI, "it knows: nvidia.com/gpu=0, nvidia.com/gpu=GPU-a"),
        ("runtime", OLD, "it has: runc"),
    ],
)
def test_a_way_that_the_engine_has_not_is_refused_with_what_it_has(way, facts, said):
    with pytest.raises(StartError) as caught:
        injection_of(way, ("GPU-b",), facts)
    assert said in str(caught.value)
    assert "nvidia-ctk" in str(caught.value)


def test_there_is_one_request_for_all_gpus_and_none_without_ids():
    assert device_requests(Injection()) == []
    assert device_requests(RUNTIME) == []
    (request,) = device_requests(Injection(ids=("a", "b")))
    assert (request["DeviceIDs"], request["Count"], request["Driver"]) == (["a", "b"], 0, "")
    (request,) = device_requests(Injection("cdi", ("nvidia.com/gpu=0",)))
    assert request == {
        "Driver": "cdi",
        "Count": 0,
        "DeviceIDs": ["nvidia.com/gpu=0"],
        "Capabilities": [],
        "Options": {},
    }


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, EngineFacts()),
        (
            {
                "ServerVersion": "20.10.24",
                "Runtimes": {"runc": {}, "nvidia": {"path": "x"}},
                "InitCommit": {"ID": "N/A"},
            },
            EngineFacts("20.10.24", frozenset({"runc", "nvidia"}), has_init=False),
        ),
        (
            {
                "ServerVersion": "28.5.2",
                "Runtimes": {"runc": {}},
                "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}],
                "InitCommit": {"ID": "de40ad0"},
            },
            EngineFacts("28.5.2", frozenset({"runc"}), frozenset({"nvidia.com/gpu=0"})),
        ),
        (
            {"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"]},
            EngineFacts(raises_limits=False),
        ),
        ({"DiscoveredDevices": None, "Runtimes": None, "InitCommit": None}, EngineFacts()),
    ],
)
def test_what_the_engine_tells_of_itself(info, expected):
    assert facts_of(info) == expected


@pytest.mark.parametrize(
    ("version", "is_fine"), [("1.39", False), ("1.24", False), ("1.40", True), ("1.52", True)]
)
def test_an_engine_that_would_ignore_requests_for_gpus_is_refused(version, is_fine):
    if is_fine:
        require_api_version(version)
        return
    with pytest.raises(StartError, match=r"19\.03"):
        require_api_version(version)
