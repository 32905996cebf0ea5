"""The plan of faults keeps its promise for any seed."""

import pytest

from tests.campaign.schedule import KINDS, Fault, leaves_one_well, planned


@pytest.mark.parametrize("seed", range(20))
def test_one_replica_is_well_at_every_moment(seed):
    faults = planned(seed, 60.0, 3)
    assert len(faults) > 20
    for fault in faults:
        moment_s = fault.at_s
        ill = {f.replica for f in faults if f.at_s <= moment_s < f.well_again_s}
        assert len(ill) <= 2


@pytest.mark.parametrize("seed", range(20))
def test_a_replica_has_one_fault_at_a_time(seed):
    last_end_s = {}
    for fault in planned(seed, 60.0, 4):
        assert fault.at_s > last_end_s.get(fault.replica, -1.0)
        last_end_s[fault.replica] = fault.at_s + fault.lasts_s


def test_a_seed_gives_the_same_plan_again_and_another_seed_another():
    assert planned(1, 30.0, 4) == planned(1, 30.0, 4)
    assert planned(1, 30.0, 4) != planned(2, 30.0, 4)


def test_ten_minutes_have_every_kind():
    assert {fault.kind for fault in planned(7, 600.0, 4)} == set(KINDS)


def test_no_fault_outlasts_the_campaign():
    assert all(fault.at_s + fault.lasts_s <= 30.0 for fault in planned(3, 30.0, 4))


def test_the_last_well_replica_is_spared():
    first = Fault(0.0, 0, "kill", lasts_s=1.0)
    assert not leaves_one_well([first], Fault(1.5, 1, "cut"), 2)
    assert leaves_one_well([first], Fault(1.5, 1, "cut"), 3)
    assert leaves_one_well([first], Fault(first.well_again_s, 1, "cut"), 2)
