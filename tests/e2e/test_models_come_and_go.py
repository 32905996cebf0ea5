"""Another model in the config is none of the first one's business: nothing of it is stopped."""

import pytest

pytestmark = pytest.mark.e2e


def pids(status):
    return {replica["id"]: replica["pid"] for replica in status["replicas"]}


def test_a_model_that_comes_and_goes_leaves_the_other_ones_replicas_alone(fleet):
    before = pids(fleet.up())
    first = fleet.config["models"][0]["id"]
    fleet.config["models"].insert(0, {"id": "gpu-fleet/other", "replicas": 2})
    fleet.write()
    assert f"= {', '.join(before)}: unchanged" in fleet.run("up").stdout
    both = pids(fleet.status())
    assert set(both) == {"other-0", "other-1", *before}
    assert before.items() <= both.items()
    # The same without a launcher that knows.
    fleet.kill(fleet.status()["launcher"]["pid"])
    fleet.run("up", "-d")
    assert pids(fleet.status()) == both
    fleet.config["models"] = [{"id": "gpu-fleet/other", "replicas": 2}]
    fleet.write()
    fleet.run("up")
    fleet.until_ready()
    assert pids(fleet.status()) == {name: both[name] for name in ("other-0", "other-1")}
    # Once all is down, names are given anew.
    fleet.run("down")
    fleet.config["models"] = [{"id": first}]
    fleet.write()
    assert set(pids(fleet.up())) == {"replica-0"}
