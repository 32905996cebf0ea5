"""Devices as values: serialised and back, the best one here, and life without torch.

What they share with Haystack's, and where they differ, is in test_device_parity.py.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.device import ComponentDevice, Device, DeviceMap, DeviceType
from tests.launcher.haystack_cases import FakeTorchDevice, fake_torch

ROOT = Path(__file__).parent.parent.parent

devices = st.builds(Device, st.sampled_from(DeviceType), st.none() | st.integers(0, 10**6))
device_maps = st.dictionaries(st.text(), devices).map(DeviceMap)
components = st.one_of(
    devices.filter(lambda device: device.type is not DeviceType.DISK).map(
        ComponentDevice.from_single
    ),
    device_maps.map(ComponentDevice.from_multiple),
)


@pytest.fixture
def set_torch(monkeypatch):
    """Puts a torch in place, or makes its import fail, whatever is installed here."""
    for variable in ("HAYSTACK_XPU_ENABLED", "HAYSTACK_MPS_ENABLED"):
        monkeypatch.delenv(variable, raising=False)
    return lambda torch: monkeypatch.setitem(sys.modules, "torch", torch)


def default():
    return ComponentDevice.resolve_device().to_torch_str()


@given(devices)
def test_a_device_is_what_its_string_says(device):
    assert Device.from_str(str(device)) == device


@given(components)
def test_a_component_device_survives_its_serialised_form(component):
    data = json.loads(json.dumps(component.to_dict()))
    assert ComponentDevice.from_dict(data) == component
    assert ComponentDevice.from_dict(data).to_dict() == data


@given(device_maps)
def test_a_map_survives_its_serialised_form_in_order(device_map):
    data = json.loads(json.dumps(device_map.to_dict()))
    assert list(DeviceMap.from_dict(data)) == list(device_map)


@given(device_maps)
def test_a_map_survives_hugging_face_unless_a_gpu_has_no_number(device_map):
    component = ComponentDevice.from_multiple(device_map)
    if Device.from_str("cuda") in device_map.mapping.values():
        with pytest.raises(ValueError, match="must be told which GPU"):
            component.to_hf()
    else:
        assert DeviceMap.from_hf(component.to_hf()) == device_map


def test_one_device_is_serialised_as_haystack_does():
    component = ComponentDevice.from_single(Device.gpu())
    assert component.to_dict() == {"type": "single", "device": "cuda:0"}


def test_several_devices_are_serialised_as_strings_gpus_included():
    mapping = {"l1": Device.gpu(), "l2": Device.cpu(), "l3": Device.disk()}
    assert ComponentDevice.from_multiple(DeviceMap(mapping)).to_dict() == {
        "type": "multiple",
        "device_map": {"l1": "cuda:0", "l2": "cpu", "l3": "disk"},
    }


def test_equal_devices_are_one_key():
    assert len({Device.gpu(), Device.gpu(0), Device.from_str("cuda:0")}) == 1
    assert len({Device.from_str("cuda"), Device.gpu()}) == 2


def test_a_map_is_no_longer_changed_through_the_dict_it_was_made_from():
    mapping = {"a": Device.cpu()}
    device_map = DeviceMap(mapping)
    mapping["b"] = "no device"
    assert device_map.to_dict() == {"a": "cpu"}


def test_a_map_takes_further_devices_at_its_end():
    device_map = DeviceMap({"a": Device.cpu()})
    device_map["b"] = Device.gpu(1)
    assert device_map.to_dict() == {"a": "cpu", "b": "cuda:1"}


@pytest.mark.parametrize("read", [DeviceMap, DeviceMap.from_dict, DeviceMap.from_hf])
@pytest.mark.parametrize("wrong", [None, "auto", ["cuda:0"], 0])
def test_only_a_dict_is_a_map(read, wrong):
    with pytest.raises(TypeError, match="must be a dict, got"):
        read(wrong)


def test_the_disk_is_refused_however_a_single_device_is_made():
    with pytest.raises(ValueError, match="only be used as a part of device maps"):
        ComponentDevice(_single_device=Device.disk())


def test_hugging_face_maps_may_hold_torch_devices():
    found = DeviceMap.from_hf({"a": FakeTorchDevice("cuda:1"), "b": FakeTorchDevice("cpu")})
    assert found.to_dict() == {"a": "cuda:1", "b": "cpu"}


@pytest.mark.parametrize(
    "wrong",
    [
        object(),
        Device.cpu(),
        SimpleNamespace(type="cuda", index="1"),
        SimpleNamespace(type=DeviceType.GPU, index=0),
        [],
    ],
)
def test_what_is_no_torch_device_is_refused_without_torch(wrong, set_torch):
    set_torch(None)
    with pytest.raises(TypeError, match=r"unexpected device .* for 'a'"):
        DeviceMap.from_hf({"a": wrong})


@pytest.mark.parametrize(("cuda", "xpu", "mps"), list(itertools.product([False, True], repeat=3)))
def test_the_default_is_cuda_before_xpu_before_mps_before_cpu(cuda, xpu, mps, set_torch):
    set_torch(fake_torch(cuda=cuda, xpu=xpu, mps=mps))
    expected = "cuda:0" if cuda else "xpu" if xpu else "mps" if mps else "cpu"
    assert default() == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HAYSTACK_XPU_ENABLED": "false"}, "mps"),
        ({"HAYSTACK_MPS_ENABLED": "false"}, "xpu"),
        ({"HAYSTACK_XPU_ENABLED": "false", "HAYSTACK_MPS_ENABLED": "false"}, "cpu"),
        ({"HAYSTACK_XPU_ENABLED": "False"}, "xpu"),
        ({"HAYSTACK_XPU_ENABLED": "0"}, "xpu"),
        ({"HAYSTACK_XPU_ENABLED": ""}, "xpu"),
    ],
)
def test_only_the_word_false_switches_a_backend_off(environ, expected, set_torch, monkeypatch):
    set_torch(fake_torch(xpu=True, mps=True))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert default() == expected


def test_an_old_torch_without_the_newer_backends_gives_the_cpu(set_torch):
    torch = fake_torch()
    del torch.xpu, torch.backends.mps
    set_torch(torch)
    assert default() == "cpu"


def test_without_torch_the_default_is_the_cpu(set_torch):
    set_torch(None)
    assert default() == "cpu"


def test_without_torch_a_torch_device_says_what_to_install(set_torch):
    set_torch(None)
    with pytest.raises(ImportError, match="pip install torch"):
        ComponentDevice.from_str("cuda:0").to_torch()


def test_torch_is_not_imported_before_it_is_asked_for(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    code = (
        "from launcher.device import ComponentDevice, DeviceMap\n"
        "DeviceMap.from_hf({'a': 0, 'b': 'cpu'})\n"
        "ComponentDevice.from_dict({'type': 'single', 'device': 'cuda:0'}).to_torch_str()\n"
        "print('read')\n"
        "ComponentDevice.resolve_device()\n"
    )
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=60
    )
    assert (done.stdout, done.stderr.strip()) == ("read\n", "torch was imported")
