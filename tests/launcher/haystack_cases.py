"""What each label in data/haystack_device_cases.json means, in code.

A case takes the module whose types it tries, `launcher.device` or `haystack.utils`, so that the
table itself can be checked against Haystack: run with haystack-ai 3.4.0 on it, with this fake torch
as with torch 2.13.0 for CPUs, all 202 outcomes are the recorded ones.
"""

import copy
import pickle
import sys
from types import SimpleNamespace


class FakeTorchDevice:
    """As much of `torch.device` as device types see: its type, its index and its repr."""

    def __init__(self, string):
        self.type, colon, index = string.partition(":")
        self.index = int(index) if colon else None

    def __repr__(self):
        index = "" if self.index is None else f", index={self.index}"
        return f"device(type='{self.type}'{index})"


def fake_torch(*, cuda=False, xpu=False, mps=False):
    """A torch that finds these; the recordings were made where it found none."""
    return SimpleNamespace(
        device=FakeTorchDevice,
        cuda=SimpleNamespace(is_available=lambda: cuda),
        xpu=SimpleNamespace(is_available=lambda: xpu),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
    )


def torch_device(string):
    return sys.modules["torch"].device(string)


def outcome(case, api):
    """The case's outcome as it was recorded."""
    try:
        return repr(case(api))
    except Exception as exc:
        return f"!! {type(exc).__module__}.{type(exc).__qualname__}: {exc}"


def parts(device):
    return device.type.name, device.id, str(device)


def read(string):
    return lambda h: parts(h.Device.from_str(string))


def layers(h):
    """The map `m` of the labels."""
    return h.DeviceMap(
        {"l1": h.Device.gpu(0), "l2": h.Device.gpu(1), "l3": h.Device.cpu(), "l4": h.Device.disk()}
    )


def single(h):
    return h.ComponentDevice.from_str("cuda:0")


def multi(h):
    return h.ComponentDevice.from_multiple(layers(h))


def multi_of(h, **devices):
    mapping = {key: h.Device.from_str(string) for key, string in devices.items()}
    return h.ComponentDevice.from_multiple(h.DeviceMap(mapping))


def both(h):
    return h.ComponentDevice(h.Device.cpu(), layers(h))


def from_hf(value):
    return lambda h: h.DeviceMap.from_hf({"a": value}).to_dict()


def torch_and_hf(string):
    def case(h):
        device = h.ComponentDevice.from_str(string)
        return device.to_torch(), device.to_torch_str(), device.to_hf()

    return case


def spacy(string):
    return lambda h: h.ComponentDevice.from_str(string).to_spacy()


def update(make, kwargs, overwrite):
    def case(h):
        given = copy.deepcopy(kwargs)
        updated = make(h).update_hf_kwargs(given, overwrite=overwrite)
        return updated, updated is given

    return case


def set_id(h):
    device = h.Device.gpu()
    device.id = -5
    return str(device)


def set_string(h):
    m = layers(h)
    m["n"] = "cuda:0"
    return {key: str(device) for key, device in m}


def set_single(h):
    device = single(h)
    device._single_device = h.Device.cpu()


def first_is_equal_but_new(h):
    device = single(h)
    first = device.first_device
    return first == device, first is device, type(first).__name__


def resolves_to_itself(h):
    device = single(h)
    return h.ComponentDevice.resolve_device(device) is device


def read_back(h, device):
    return h.ComponentDevice.from_dict(device.to_dict()) == device


CASES = {
    # DeviceType
    "list(DeviceType) name=value": lambda h: [(kind.name, kind.value) for kind in h.DeviceType],
    "DeviceType.from_str('cpu')": lambda h: h.DeviceType.from_str("cpu"),
    "DeviceType.from_str('cuda')": lambda h: h.DeviceType.from_str("cuda"),
    "DeviceType.from_str('gpu')": lambda h: h.DeviceType.from_str("gpu"),
    "DeviceType.from_str('disk')": lambda h: h.DeviceType.from_str("disk"),
    "DeviceType.from_str('mps')": lambda h: h.DeviceType.from_str("mps"),
    "DeviceType.from_str('xpu')": lambda h: h.DeviceType.from_str("xpu"),
    "DeviceType.from_str('CUDA')": lambda h: h.DeviceType.from_str("CUDA"),
    "DeviceType.from_str('Cpu')": lambda h: h.DeviceType.from_str("Cpu"),
    "DeviceType.from_str('')": lambda h: h.DeviceType.from_str(""),
    "DeviceType.from_str(' cuda')": lambda h: h.DeviceType.from_str(" cuda"),
    "DeviceType.from_str('hip')": lambda h: h.DeviceType.from_str("hip"),
    "DeviceType.from_str('meta')": lambda h: h.DeviceType.from_str("meta"),
    "DeviceType.from_str('auto')": lambda h: h.DeviceType.from_str("auto"),
    "DeviceType.from_str('tpu')": lambda h: h.DeviceType.from_str("tpu"),
    "DeviceType.from_str(None)": lambda h: h.DeviceType.from_str(None),
    "DeviceType.from_str(0)": lambda h: h.DeviceType.from_str(0),
    "str(DeviceType.GPU)": lambda h: str(h.DeviceType.GPU),
    "DeviceType('cuda')": lambda h: h.DeviceType("cuda"),
    "f'{DeviceType.GPU}'": lambda h: f"{h.DeviceType.GPU}",
    # Device
    "Device.cpu()": lambda h: parts(h.Device.cpu()),
    "Device.gpu()": lambda h: parts(h.Device.gpu()),
    "Device.disk()": lambda h: parts(h.Device.disk()),
    "Device.mps()": lambda h: parts(h.Device.mps()),
    "Device.xpu()": lambda h: parts(h.Device.xpu()),
    "Device.gpu(3)": lambda h: str(h.Device.gpu(3)),
    "Device.gpu(-1)": lambda h: str(h.Device.gpu(-1)),
    "Device.gpu(None)": lambda h: (str(h.Device.gpu(None)), h.Device.gpu(None).id),
    "Device.gpu('1')": lambda h: str(h.Device.gpu("1")),
    "Device.gpu(1.5)": lambda h: str(h.Device.gpu(1.5)),
    "Device.gpu(True)": lambda h: str(h.Device.gpu(True)),
    "Device(DeviceType.CPU, 0)": lambda h: str(h.Device(h.DeviceType.CPU, 0)),
    "Device(DeviceType.DISK, 2)": lambda h: str(h.Device(h.DeviceType.DISK, 2)),
    "Device('cuda', 0) str type": lambda h: (
        str(h.Device("cuda", 0)),
        h.Device("cuda", 0) == h.Device.gpu(0),
    ),
    "repr(Device.gpu(0))": lambda h: h.Device.gpu(0),
    "Device.gpu()==Device.gpu(0)": lambda h: h.Device.gpu() == h.Device.gpu(0),
    "Device.gpu(0)==Device.gpu(1)": lambda h: h.Device.gpu(0) == h.Device.gpu(1),
    "Device.from_str('cuda')==Device.gpu()": lambda h: h.Device.from_str("cuda") == h.Device.gpu(),
    "hash(Device.gpu())": lambda h: hash(h.Device.gpu()) == hash(h.Device.gpu(0)),
    "Device mutable: d.id=-5": set_id,
    "Device.from_str('cuda:0')": read("cuda:0"),
    "Device.from_str('cuda:7')": read("cuda:7"),
    "Device.from_str('cuda')": read("cuda"),
    "Device.from_str('cpu')": read("cpu"),
    "Device.from_str('cpu:0')": read("cpu:0"),
    "Device.from_str('cpu:3')": read("cpu:3"),
    "Device.from_str('mps')": read("mps"),
    "Device.from_str('mps:0')": read("mps:0"),
    "Device.from_str('xpu')": read("xpu"),
    "Device.from_str('xpu:1')": read("xpu:1"),
    "Device.from_str('disk')": read("disk"),
    "Device.from_str('disk:1')": read("disk:1"),
    "Device.from_str('gpu:0')": read("gpu:0"),
    "Device.from_str('cuda:')": read("cuda:"),
    "Device.from_str('cuda:-1')": read("cuda:-1"),
    "Device.from_str('cuda:a')": read("cuda:a"),
    "Device.from_str('cuda:0:1')": read("cuda:0:1"),
    "Device.from_str('cuda:1.0')": read("cuda:1.0"),
    "Device.from_str('cuda: 1')": read("cuda: 1"),
    "Device.from_str('cuda:+1')": read("cuda:+1"),
    "Device.from_str('cuda:1_0')": read("cuda:1_0"),
    "Device.from_str('cuda:０')": read("cuda:０"),
    "Device.from_str('cuda:00')": read("cuda:00"),
    "Device.from_str('CUDA:0')": read("CUDA:0"),
    "Device.from_str(' cuda:0')": read(" cuda:0"),
    "Device.from_str('cuda :0')": read("cuda :0"),
    "Device.from_str('')": read(""),
    "Device.from_str(':0')": read(":0"),
    "Device.from_str('0')": read("0"),
    "Device.from_str('1')": read("1"),
    "Device.from_str('balanced')": read("balanced"),
    "Device.from_str('auto')": read("auto"),
    "Device.from_str(0)": read(0),
    "Device.from_str(None)": read(None),
    # DeviceMap
    "DeviceMap() empty len": lambda h: (
        len(h.DeviceMap()),
        h.DeviceMap().first_device,
        h.DeviceMap().to_dict(),
        bool(h.DeviceMap()),
    ),
    "m.to_dict()": lambda h: layers(h).to_dict(),
    "m['l2']": lambda h: str(layers(h)["l2"]),
    "m['zz']": lambda h: layers(h)["zz"],
    "'l1' in m, 'zz' in m, Device.gpu(0) in m": lambda h: ("l1" in layers(h), "zz" in layers(h)),
    "Device.gpu(0) in m": lambda h: h.Device.gpu(0) in layers(h),
    "list(m)": lambda h: [(key, str(device)) for key, device in list(layers(h))],
    "m.keys()": lambda h: layers(h).keys(),
    "len(m)": lambda h: len(layers(h)),
    "m['n']='cuda:0' (not validated)": set_string,
    "del m['l1']": lambda h: layers(h).__delitem__("l1"),
    "m.first_device": lambda h: str(layers(h).first_device),
    "DeviceMap({'a':disk,'b':gpu1}).first_device": lambda h: str(
        h.DeviceMap({"a": h.Device.disk(), "b": h.Device.gpu(1)}).first_device
    ),
    "DeviceMap({'a':'cuda:0'}).first_device unvalidated": lambda h: (
        h.DeviceMap({"a": "cuda:0"}).first_device
    ),
    "DeviceMap.from_dict(roundtrip)": lambda h: (
        h.DeviceMap.from_dict(layers(h).to_dict()) == layers(h)
    ),
    "DeviceMap.from_dict({'a':'gpu:0'})": lambda h: h.DeviceMap.from_dict({"a": "gpu:0"}),
    "DeviceMap.from_dict({'a':0})": lambda h: h.DeviceMap.from_dict({"a": 0}),
    "DeviceMap.from_dict({})": lambda h: h.DeviceMap.from_dict({}),
    "hash(DeviceMap)": lambda h: hash(layers(h)),
    "hasattr DeviceMap.to_hf": lambda h: hasattr(layers(h), "to_hf"),
    "DeviceMap(None)": lambda h: h.DeviceMap(None),
    "len(DeviceMap(None))": lambda h: len(h.DeviceMap(None)),
    "from_hf ints/str": lambda h: h.DeviceMap.from_hf(
        {"e": 0, "h": 1, "x": "cpu", "y": "disk", "z": "cuda:2", "": 0}
    ).to_dict(),
    "from_hf {'': 'auto'}": lambda h: h.DeviceMap.from_hf({"": "auto"}),
    "from_hf('auto')": lambda h: h.DeviceMap.from_hf("auto"),
    "from_hf True": from_hf(True),
    "from_hf -1": from_hf(-1),
    "from_hf 1.0": from_hf(1.0),
    "from_hf None": from_hf(None),
    "from_hf ''": from_hf(""),
    "from_hf {}": lambda h: h.DeviceMap.from_hf({}),
    "from_hf torch.device": lambda h: h.DeviceMap.from_hf(
        {"a": torch_device("cuda:1"), "b": torch_device("cpu"), "c": torch_device("cuda")}
    ).to_dict(),
    "from_hf torch.device('meta')": lambda h: h.DeviceMap.from_hf({"a": torch_device("meta")}),
    # ComponentDevice
    "C.from_str('cuda:1')": lambda h: h.ComponentDevice.from_str("cuda:1"),
    "C.from_str('disk')": lambda h: h.ComponentDevice.from_str("disk"),
    "C.from_str('disk:0')": lambda h: h.ComponentDevice.from_str("disk:0"),
    "C.from_single(Device.disk())": lambda h: h.ComponentDevice.from_single(h.Device.disk()),
    "C.from_single('cuda:0')": lambda h: h.ComponentDevice.from_single("cuda:0"),
    "C.from_single(None)": lambda h: h.ComponentDevice.from_single(None),
    "C.from_multiple({...plain dict})": lambda h: h.ComponentDevice.from_multiple(
        {"a": h.Device.cpu()}
    ).to_hf(),
    "C.from_multiple(None).to_hf()": lambda h: h.ComponentDevice.from_multiple(None).to_hf(),
    "C() constructs": lambda h: h.ComponentDevice(),
    "C().to_hf()": lambda h: h.ComponentDevice().to_hf(),
    "C().to_dict()": lambda h: h.ComponentDevice().to_dict(),
    "C().has_multiple_devices": lambda h: h.ComponentDevice().has_multiple_devices,
    "C().first_device": lambda h: h.ComponentDevice().first_device,
    "C(single,multi).to_torch_str()": lambda h: both(h).to_torch_str(),
    "C(single,multi).to_dict()": lambda h: both(h).to_dict(),
    "frozen: c._single_device=...": set_single,
    "hash(C.single)": lambda h: hash(single(h)) == hash(single(h)),
    "eq": lambda h: (single(h) == single(h), multi(h) == multi(h)),
    "C.has_multiple single/multi/empty map": lambda h: (
        single(h).has_multiple_devices,
        multi(h).has_multiple_devices,
        multi_of(h).has_multiple_devices,
    ),
    "multi with exactly one entry -> has_multiple": lambda h: (
        multi_of(h, a="cuda:0").has_multiple_devices
    ),
    "from_str('cpu') torch/torch_str/hf/spacy": torch_and_hf("cpu"),
    "from_str('cpu').to_spacy()": spacy("cpu"),
    "from_str('cuda:0') torch/torch_str/hf/spacy": torch_and_hf("cuda:0"),
    "from_str('cuda:0').to_spacy()": spacy("cuda:0"),
    "from_str('cuda') torch/torch_str/hf/spacy": torch_and_hf("cuda"),
    "from_str('cuda').to_spacy()": spacy("cuda"),
    "from_str('mps') torch/torch_str/hf/spacy": torch_and_hf("mps"),
    "from_str('mps').to_spacy()": spacy("mps"),
    "from_str('xpu') torch/torch_str/hf/spacy": torch_and_hf("xpu"),
    "from_str('xpu').to_spacy()": spacy("xpu"),
    "from_str('xpu:0') torch/torch_str/hf/spacy": torch_and_hf("xpu:0"),
    "from_str('xpu:0').to_spacy()": spacy("xpu:0"),
    "from_str('cpu:0') torch/torch_str/hf/spacy": torch_and_hf("cpu:0"),
    "from_str('cpu:0').to_spacy()": spacy("cpu:0"),
    "multi.to_torch()": lambda h: multi(h).to_torch(),
    "multi.to_torch_str()": lambda h: multi(h).to_torch_str(),
    "multi.to_spacy()": lambda h: multi(h).to_spacy(),
    "multi.to_hf()": lambda h: multi(h).to_hf(),
    "multi w/ cuda(no id).to_hf()": lambda h: multi_of(h, a="cuda").to_hf(),
    "multi w/ mps,xpu:1,cpu:0 to_hf()": lambda h: multi_of(
        h, a="mps", b="xpu:1", c="cpu:0"
    ).to_hf(),
    "empty multi.to_hf()": lambda h: multi_of(h).to_hf(),
    "multi.first_device": lambda h: multi(h).first_device,
    "multi(disk first).first_device": lambda h: multi_of(h, a="disk", b="cuda:1").first_device,
    "multi(only disk).first_device": lambda h: multi_of(h, a="disk").first_device,
    "multi(empty).first_device": lambda h: multi_of(h).first_device,
    "single.first_device == self / is self": first_is_equal_but_new,
    "single.to_dict()": lambda h: single(h).to_dict(),
    "multi.to_dict()": lambda h: multi(h).to_dict(),
    "roundtrip single/multi": lambda h: (read_back(h, single(h)), read_back(h, multi(h))),
    "from_dict({'type':'single','device':'disk'})": lambda h: h.ComponentDevice.from_dict(
        {"type": "single", "device": "disk"}
    ),
    "from_dict({'type':'foo'})": lambda h: h.ComponentDevice.from_dict({"type": "foo"}),
    "from_dict({})": lambda h: h.ComponentDevice.from_dict({}),
    "from_dict({'type':'single'})": lambda h: h.ComponentDevice.from_dict({"type": "single"}),
    "from_dict({'type':'multiple'})": lambda h: h.ComponentDevice.from_dict({"type": "multiple"}),
    "from_dict multi extra keys ignored": lambda h: h.ComponentDevice.from_dict(
        {"type": "single", "device": "cpu", "device_map": {"a": "cuda:0"}, "extra": 1}
    ),
    "from_dict(None)": lambda h: h.ComponentDevice.from_dict(None),
    "single.update_hf_kwargs({}, overwrite=False)": update(single, {}, False),
    "single.update_hf_kwargs({}, overwrite=True)": update(single, {}, True),
    "single.update_hf_kwargs({'device': 'cpu'}, overwrite=False)": update(
        single, {"device": "cpu"}, False
    ),
    "single.update_hf_kwargs({'device': 'cpu'}, overwrite=True)": update(
        single, {"device": "cpu"}, True
    ),
    "single.update_hf_kwargs({'device_map': 'auto'}, overwrite=False)": update(
        single, {"device_map": "auto"}, False
    ),
    "single.update_hf_kwargs({'device_map': 'auto'}, overwrite=True)": update(
        single, {"device_map": "auto"}, True
    ),
    "single.update_hf_kwargs({'device': None}, overwrite=False)": update(
        single, {"device": None}, False
    ),
    "single.update_hf_kwargs({'device': None}, overwrite=True)": update(
        single, {"device": None}, True
    ),
    "single.update_hf_kwargs({'device': 'cpu', 'device_map': 'auto'}, overwrite=False)": update(
        single, {"device": "cpu", "device_map": "auto"}, False
    ),
    "single.update_hf_kwargs({'device': 'cpu', 'device_map': 'auto'}, overwrite=True)": update(
        single, {"device": "cpu", "device_map": "auto"}, True
    ),
    "single.update_hf_kwargs({'model_kwargs': {'device_map': 'auto'}}, overwrite=False)": update(
        single, {"model_kwargs": {"device_map": "auto"}}, False
    ),
    "single.update_hf_kwargs({'model_kwargs': {'device_map': 'auto'}}, overwrite=True)": update(
        single, {"model_kwargs": {"device_map": "auto"}}, True
    ),
    "single.update_hf_kwargs({'torch_dtype': 'x'}, overwrite=False)": update(
        single, {"torch_dtype": "x"}, False
    ),
    "single.update_hf_kwargs({'torch_dtype': 'x'}, overwrite=True)": update(
        single, {"torch_dtype": "x"}, True
    ),
    "multi.update_hf_kwargs({}, overwrite=False)": update(multi, {}, False),
    "multi.update_hf_kwargs({}, overwrite=True)": update(multi, {}, True),
    "multi.update_hf_kwargs({'device': 'cpu'}, overwrite=False)": update(
        multi, {"device": "cpu"}, False
    ),
    "multi.update_hf_kwargs({'device': 'cpu'}, overwrite=True)": update(
        multi, {"device": "cpu"}, True
    ),
    "multi.update_hf_kwargs({'device_map': 'auto'}, overwrite=False)": update(
        multi, {"device_map": "auto"}, False
    ),
    "multi.update_hf_kwargs({'device_map': 'auto'}, overwrite=True)": update(
        multi, {"device_map": "auto"}, True
    ),
    "multi.update_hf_kwargs({'device': None}, overwrite=False)": update(
        multi, {"device": None}, False
    ),
    "multi.update_hf_kwargs({'device': None}, overwrite=True)": update(
        multi, {"device": None}, True
    ),
    "multi.update_hf_kwargs({'device': 'cpu', 'device_map': 'auto'}, overwrite=False)": update(
        multi, {"device": "cpu", "device_map": "auto"}, False
    ),
    "multi.update_hf_kwargs({'device': 'cpu', 'device_map': 'auto'}, overwrite=True)": update(
        multi, {"device": "cpu", "device_map": "auto"}, True
    ),
    "multi.update_hf_kwargs({'model_kwargs': {'device_map': 'auto'}}, overwrite=False)": update(
        multi, {"model_kwargs": {"device_map": "auto"}}, False
    ),
    "multi.update_hf_kwargs({'model_kwargs': {'device_map': 'auto'}}, overwrite=True)": update(
        multi, {"model_kwargs": {"device_map": "auto"}}, True
    ),
    "multi.update_hf_kwargs({'torch_dtype': 'x'}, overwrite=False)": update(
        multi, {"torch_dtype": "x"}, False
    ),
    "multi.update_hf_kwargs({'torch_dtype': 'x'}, overwrite=True)": update(
        multi, {"torch_dtype": "x"}, True
    ),
    "update_hf_kwargs positional overwrite": lambda h: single(h).update_hf_kwargs({}, True),
    "update_hf_kwargs no overwrite arg": lambda h: single(h).update_hf_kwargs({}),
    "resolve_device(None)": lambda h: h.ComponentDevice.resolve_device(None).to_torch_str(),
    "resolve_device()": lambda h: h.ComponentDevice.resolve_device().to_torch_str(),
    "resolve_device(c) is c": resolves_to_itself,
    "resolve_device('cuda:0')": lambda h: h.ComponentDevice.resolve_device("cuda:0"),
    "resolve_device(Device.gpu())": lambda h: h.ComponentDevice.resolve_device(h.Device.gpu()),
    "resolve_device(DeviceMap)": lambda h: h.ComponentDevice.resolve_device(layers(h)),
    "resolve_device(C()) (invalid not validated)": lambda h: h.ComponentDevice.resolve_device(
        h.ComponentDevice()
    ),
    "resolve_device({'type':..})": lambda h: h.ComponentDevice.resolve_device(
        {"type": "single", "device": "cpu"}
    ),
    "pickle/deepcopy": lambda h: (
        pickle.loads(pickle.dumps(multi(h))) == multi(h),
        copy.deepcopy(multi(h)) == multi(h),
    ),
}
