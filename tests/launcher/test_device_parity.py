"""Our device types do what Haystack's do, in all 202 cases recorded with haystack-ai 3.4.0.

data/haystack_device_cases.json holds pairs of label and outcome: the result's repr, or
`!! module.Exception: message`. DEVIATIONS lists every case in which we differ on purpose, with what
we do instead and why. Everything else must be equal to the letter.
"""

import json
import sys
from pathlib import Path

import pytest

from launcher import device
from tests.launcher.haystack_cases import CASES, fake_torch, outcome

DATA = Path(__file__).parent / "data" / "haystack_device_cases.json"
RECORDED = json.loads(DATA.read_text(encoding="utf-8"))

TYPE_ERROR = "!! builtins.TypeError: "
VALUE_ERROR = "!! builtins.ValueError: "
NEITHER_NOR = (
    f"{VALUE_ERROR}The component device can neither be empty nor contain both a single device "
    "and a device map"
)

ID_IS_A_NUMBER = "an id of another type makes strings that nothing can read, such as 'cuda:True'"
SAYS_WHAT = "same exception; the message says what was found and what is expected"
HASHABLE = "devices are values: they can be keys and members of sets"
CHECKED_WHEN_MADE = "a wrong value is refused where it is made, not where it is used much later"
TYPE_IS_CHECKED = "a wrong type is a TypeError that names it, no accidental AttributeError"
NO_ASSERTS = "what a caller can do wrong is a ValueError with a reason, no bare AssertionError"

DEVIATIONS = {
    "Device.gpu('1')": (
        f"{TYPE_ERROR}Device id must be an int or None, got str '1'",
        SAYS_WHAT,
    ),
    "Device.gpu(1.5)": (
        f"{TYPE_ERROR}Device id must be an int or None, got float 1.5",
        ID_IS_A_NUMBER,
    ),
    "Device.gpu(True)": (
        f"{TYPE_ERROR}Device id must be an int or None, got bool True",
        ID_IS_A_NUMBER,
    ),
    "from_hf True": (
        f"{TYPE_ERROR}Couldn't convert HuggingFace device map - unexpected device 'True' for 'a'",
        ID_IS_A_NUMBER,
    ),
    "Device('cuda', 0) str type": (
        f"{TYPE_ERROR}Device type must be a DeviceType, got str 'cuda'; "
        "Device.from_str reads strings",
        "such a device looks like cuda:0, but equals no other and is no GPU to the conversions",
    ),
    "hash(Device.gpu())": ("True", HASHABLE),
    "hash(C.single)": ("True", HASHABLE),
    "Device.gpu(0) in m": ("False", HASHABLE + "; `in` asks for keys, and this is none"),
    "Device mutable: d.id=-5": (
        "!! dataclasses.FrozenInstanceError: cannot assign to field 'id'",
        "an assignment would pass by the checks, and change the hash",
    ),
    "Device.from_str('cuda:0:1')": (
        f"{VALUE_ERROR}Device 'cuda:0:1' has more than one ':', expected TYPE or TYPE:ID, "
        "for example 'cuda:0'",
        SAYS_WHAT,
    ),
    "Device.from_str(0)": (
        f"{TYPE_ERROR}Device must be a string such as 'cuda:0' or 'cpu', got int 0",
        SAYS_WHAT,
    ),
    "Device.from_str(None)": (
        f"{TYPE_ERROR}Device must be a string such as 'cuda:0' or 'cpu', got NoneType None",
        SAYS_WHAT,
    ),
    "DeviceMap.from_dict({'a':0})": (
        f"{TYPE_ERROR}Device must be a string such as 'cuda:0' or 'cpu', got int 0",
        SAYS_WHAT,
    ),
    "m['n']='cuda:0' (not validated)": (
        f"{TYPE_ERROR}Device map entry 'n' must be a Device, got str 'cuda:0'; "
        "Device.from_str reads strings",
        CHECKED_WHEN_MADE,
    ),
    "DeviceMap({'a':'cuda:0'}).first_device unvalidated": (
        f"{TYPE_ERROR}Device map entry 'a' must be a Device, got str 'cuda:0'; "
        "Device.from_str reads strings",
        CHECKED_WHEN_MADE,
    ),
    "DeviceMap(None)": (
        f"{TYPE_ERROR}A device map must be a dict, got NoneType None",
        CHECKED_WHEN_MADE,
    ),
    "len(DeviceMap(None))": (
        f"{TYPE_ERROR}A device map must be a dict, got NoneType None",
        CHECKED_WHEN_MADE,
    ),
    "from_hf('auto')": (
        f"{TYPE_ERROR}A device map must be a dict, got str 'auto'",
        TYPE_IS_CHECKED,
    ),
    "C.from_single('cuda:0')": (
        f"{TYPE_ERROR}A single device must be a Device, got str 'cuda:0'; "
        "ComponentDevice.from_str reads strings",
        TYPE_IS_CHECKED,
    ),
    "C.from_single(None)": (NEITHER_NOR, "none given is empty, as in from_multiple(None)"),
    "C.from_multiple({...plain dict})": (
        f"{TYPE_ERROR}Multiple devices must be a DeviceMap, got dict "
        "{'a': Device(type=<DeviceType.CPU: 'cpu'>, id=None)}; "
        "DeviceMap.from_dict and DeviceMap.from_hf read dicts",
        TYPE_IS_CHECKED,
    ),
    "C() constructs": (NEITHER_NOR, CHECKED_WHEN_MADE),
    "C().to_dict()": (NEITHER_NOR, NO_ASSERTS),
    "C(single,multi).to_dict()": (
        NEITHER_NOR,
        CHECKED_WHEN_MADE + "; Haystack serialises half of it",
    ),
    "resolve_device(C()) (invalid not validated)": (NEITHER_NOR, CHECKED_WHEN_MADE),
    "from_str('cuda').to_spacy()": (
        f"{VALUE_ERROR}spaCy must be told which GPU, got 'cuda'; write for example 'cuda:0'",
        NO_ASSERTS,
    ),
    "multi w/ cuda(no id).to_hf()": (
        f"{VALUE_ERROR}Hugging Face must be told which GPU, got 'cuda' for 'a'; "
        "write for example 'cuda:0'",
        NO_ASSERTS,
    ),
}


@pytest.fixture(autouse=True)
def torch(monkeypatch):
    """A torch without accelerators, as on the machine of the recordings, here or not."""
    monkeypatch.setitem(sys.modules, "torch", fake_torch())


def test_there_are_202_cases_and_each_is_tried_once():
    labels = [label for label, _ in RECORDED]
    assert len(labels) == len(set(labels)) == 202
    assert set(CASES) == set(labels)
    assert set(DEVIATIONS) <= set(labels)


@pytest.mark.parametrize(
    ("label", "recorded"),
    [(label, recorded) for label, recorded in RECORDED if label not in DEVIATIONS],
)
def test_a_device_does_what_it_does_in_haystack(label, recorded):
    assert outcome(CASES[label], device) == recorded


@pytest.mark.parametrize("label", DEVIATIONS)
def test_a_listed_deviation_is_one_and_is_as_listed(label):
    ours, reason = DEVIATIONS[label]
    assert outcome(CASES[label], device) == ours
    assert ours != dict(RECORDED)[label]
    assert reason
