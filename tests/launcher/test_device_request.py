"""Every form in which an operator may write `devices`, and the refusals with their place."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.device import ComponentDevice, Device, DeviceMap
from launcher.device_request import DeviceRequest, index_of, parse_device, parse_devices
from router.config.mismatch import Mismatches


def named(*groups):
    return DeviceRequest("named", groups=groups)


UUID = "GPU-6d1f0e1c-0a2b-4c3d-8e4f-5a6b7c8d9e0f"
OLD_MIG = f"MIG-{UUID}/1/0"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("auto", DeviceRequest("auto")),
        ("cuda", DeviceRequest("auto")),
        ("all", DeviceRequest("all")),
        ("cpu", DeviceRequest("cpu")),
        (1, DeviceRequest("count", 1)),
        (256, DeviceRequest("count", 256)),
        ("cuda:1", named(("cuda:1",))),
        ("cuda:01", named(("cuda:1",))),
        (UUID, named((UUID,))),
        ("GPU-6", named(("GPU-6",))),
        ("MIG-8c0f", named(("MIG-8c0f",))),
        (OLD_MIG, named((OLD_MIG,))),
        ([0], named(("cuda:0",))),
        ([1, "0", "cuda:2", UUID], named(("cuda:1",), ("cuda:0",), ("cuda:2",), (UUID,))),
        ([[0, 1], [UUID, 2]], named(("cuda:0", "cuda:1"), (UUID, "cuda:2"))),
        ([{"a": 0, "b": 1}, 2], named(("cuda:0", "cuda:1"), ("cuda:2",))),
        ({"shard0": "cuda:1", "shard1": 0}, named(("cuda:1", "cuda:0"))),
        ({"type": "cuda:1", "other": "cuda:0"}, named(("cuda:1", "cuda:0"))),
        (DeviceRequest("all"), DeviceRequest("all")),
    ],
    ids=str,
)
def test_what_an_operator_may_write(written, expected):
    assert parse_devices(written) == expected


def of_map(**parts):
    return ComponentDevice.from_multiple(DeviceMap.from_hf(parts)).to_dict()


def of(device):
    return ComponentDevice.from_single(device).to_dict()


@pytest.mark.parametrize(
    ("serialised", "expected"),
    [
        (of(Device.gpu(3)), named(("cuda:3",))),
        (of(Device.gpu(None)), DeviceRequest("auto")),
        (of(Device.cpu()), DeviceRequest("cpu")),
        (of_map(embed=1, layer1=0, layer2=1, head=0), named(("cuda:1", "cuda:0"))),
        ([of(Device.gpu(1)), of_map(a=0, b=2)], named(("cuda:1",), ("cuda:0", "cuda:2"))),
        ({"type": "single", "device": UUID, "more": 1}, named((UUID,))),
        ({"type": "multiple", "device_map": {"a": 0, "b": UUID}}, named(("cuda:0", UUID))),
    ],
    ids=str,
)
def test_what_haystack_serialises_is_one_replicas(serialised, expected):
    assert parse_devices(json.loads(json.dumps(serialised))) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (0, "a number of GPUs from 1 to 256; GPU 0 is cuda:0"),
        (-1, "a number of GPUs from 1 to 256"),
        (257, "a number of GPUs from 1 to 256"),
        ("1", "cuda:1 for that GPU, or 1 without quotes for so many"),
        ("", "auto, all, cpu, a number of GPUs"),
        ("gpu0", "auto, all, cpu, a number of GPUs"),
        ("AUTO", "auto, all, cpu, a number of GPUs"),
        ("cuda:", "auto, all, cpu, a number of GPUs"),
        ("cuda:1,cuda:2", "a list of them, one for each replica"),
        ("mps", "engines keep all of a model on GPUs"),
        ("disk", "engines keep all of a model on GPUs"),
        (True, "auto, all, cpu, a number of GPUs"),
        (None, "auto, all, cpu, a number of GPUs"),
        (1.0, "auto, all, cpu, a number of GPUs"),
        ([], "1 to 256 entries, one for each replica"),
        ([0] * 257, "1 to 256 entries"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_form_is_refused_as_a_whole(written, expected):
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        parse_devices(written)
    assert not isinstance(caught.value, Mismatches)


@pytest.mark.parametrize(
    ("written", "path", "found", "expected"),
    [
        ([0, "gpu1"], (1,), 'a text "gpu1"', "a GPU like cuda:0"),
        ([None], (0,), "nothing", "a GPU like cuda:0"),
        ([True], (0,), "true", "a GPU like cuda:0"),
        ([1.5], (0,), "the number 1.5", "a GPU like cuda:0"),
        ([-1], (0,), "the whole number -1", "a GPU like cuda:0"),
        ([1000], (0,), "the whole number 1000", "a GPU like cuda:0"),
        (["cpu"], (0,), 'a text "cpu"', "engines keep all of a model on GPUs"),
        (["cuda"], (0,), 'a text "cuda"', "for any of them write devices: auto"),
        (["cuda:٣"], (0,), 'a text "cuda:٣"', "a GPU like cuda:0"),
        (["GPU-"], (0,), 'a text "GPU-"', "a GPU like cuda:0"),
        (["GPU-x y"], (0,), 'a text "GPU-x y"', "a GPU like cuda:0"),
        ([[0, "x"]], (0, 1), 'a text "x"', "a GPU like cuda:0"),
        ([[0, [1]]], (0, 1), "a list of 1 entry", "a GPU like cuda:0"),
        ([[]], (0,), "no device", "at least one device for each replica"),
        ({}, (), "no device", "at least one device for each replica"),
        ({"a": "cuda:0", "b": "cpu:1"}, ("b",), 'a text "cpu:1"', "on GPUs"),
        ([0, {"a": "disk"}], (1, "a"), 'a text "disk"', "on GPUs"),
        ({"type": "single"}, ("device",), "nothing", "a GPU like cuda:0"),
        ({"type": "single", "device": "disk:0"}, ("device",), 'a text "disk:0"', "on GPUs"),
        ({"type": "single", "device": ["cuda:0"]}, ("device",), "a list of 1 entry", "a GPU like"),
        ({"type": "multiple"}, ("device_map",), "nothing", "a mapping of parts of the model"),
        ({"type": "multiple", "device_map": {}}, ("device_map",), "no device", "at least one"),
        ({"type": "multiple", "device_map": {"a": "cuda:0", "b": "disk"}},
         ("device_map", "b"), 'a text "disk"', "on GPUs"),
        ({"type": "both", "device": "cuda:0"}, ("type",), 'a text "both"', "single or multiple"),
        ([0, {"type": "single", "device": "cpu"}], (1, "device"), 'the device "cpu"', "a GPU like"),
        ([{"type": "single", "device": "gpu"}], (0, "device"), 'a text "gpu"', "a GPU like"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_inside_is_refused_at_its_place(written, path, found, expected):
    with pytest.raises(Mismatches) as caught:
        parse_devices(written)
    (bad,) = caught.value.mismatches
    assert (bad.path, bad.found) == (path, found)
    assert expected in bad.expected


def test_all_wrong_devices_are_told_at_once():
    with pytest.raises(Mismatches) as caught:
        parse_devices(["x", 0, ["y", 1, "z"], {"a": "cpu"}])
    assert [bad.path for bad in caught.value.mismatches] == [(0,), (2, 0), (2, 2), (3, "a")]


@pytest.mark.parametrize(
    ("request_", "gpus_per_replica", "replicas"),
    [
        (DeviceRequest("auto"), 2, None),
        (DeviceRequest("all"), 1, None),
        (DeviceRequest("cpu"), 1, None),
        (DeviceRequest("count", 4), 1, 4),
        (DeviceRequest("count", 4), 2, 2),
        (named(("cuda:0",), ("cuda:1",)), 1, 2),
        (named(("cuda:0", "cuda:1")), 2, 1),
    ],
)
def test_how_many_replicas_they_make(request_, gpus_per_replica, replicas):
    assert request_.replicas(gpus_per_replica) == replicas


def test_the_place_of_a_single_group_is_the_key_itself():
    assert named(("cuda:0",)).place(0) == ("devices",)
    assert named(("cuda:0",), ("cuda:1",)).place(1) == ("devices", 1)
    assert named(("cuda:1", UUID)).named == ("cuda:1", UUID)


@pytest.mark.parametrize(
    ("device", "index"), [("cuda:0", 0), ("cuda:12", 12), ("7", 7), (UUID, None), ("cpu", None)]
)
def test_the_number_of_a_device(device, index):
    assert index_of(device) == index


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text() | st.just("type"), inner, max_size=3)))  # fmt: skip
def test_anything_is_taken_or_refused_by_value(value):
    try:
        request = parse_devices(value)
    except ValueError:
        return
    assert [parse_device(device) for device in request.named] == list(request.named)
    assert all(request.groups)
