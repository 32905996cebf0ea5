"""Whose containers a cluster may take for its own."""

from pathlib import Path

import pytest

from launcher.docker.labels import DEVICES, HOME
from launcher.docker.ownership import devices_of_others, is_marked, marks_of, require_no_other_home
from router.errors import StartError

MARKS = marks_of("tgi", Path("/state/tgi"))
AB = ("GPU-a", "GPU-b")


def listed(home, names):
    return {"Id": "3f2a9c1b7d1077", "Names": names, "Labels": {HOME: home}}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["/gpu-fleet.tgi.replica-0"], "gpu-fleet.tgi.replica-0"),
        ([], "3f2a9c1b7d10`"),
        (None, "3f2"),
    ],
)
def test_containers_of_that_name_from_another_folder_are_told(names, told):
    mine = listed("/state/tgi", ["/mine"])
    with pytest.raises(StartError, match=f"/elsewhere.*docker rm -f {told}") as caught:
        require_no_other_home([mine, listed("/elsewhere", names)], MARKS)
    assert not caught.value.recoverable
    assert "mine" not in str(caught.value)


def test_ones_own_are_in_nobodys_way():
    require_no_other_home([listed("/state/tgi", None)], MARKS)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({**MARKS, DEVICES: "GPU-a,GPU-b"}, {}),
        (
            marks_of("chat", Path("/s")) | {DEVICES: "GPU-a,GPU-b"},
            dict.fromkeys(AB, "cluster chat"),
        ),
        (marks_of("tgi", Path("/elsewhere")) | {DEVICES: "GPU-a"}, {"GPU-a": "cluster tgi"}),
        (marks_of("chat", Path("/s")) | {DEVICES: ""}, {}),
        (None, {}),
    ],
)
def test_what_other_clusters_have_is_known_by_their_labels(labels, expected):
    assert devices_of_others([{"Labels": labels}], MARKS) == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(MARKS, True), ({**MARKS, "more": "1"}, True), ({HOME: "/state/tgi"}, False), (None, False)],
)
def test_both_marks_make_a_container_ours(labels, expected):
    assert is_marked({"Config": {"Labels": labels}}, MARKS) is expected
