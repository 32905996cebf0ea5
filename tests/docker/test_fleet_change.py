"""An edited config and `launcher up` again, with containers: one at a time, and no call notices."""

import asyncio
import re
import time
from contextlib import asynccontextmanager

import pytest

NEWER = "localhost:1/gpu-fleet/tgi:3.3.5-newer"
NOTHING = "localhost:1/gpu-fleet/nothing:1"
CLIENTS = 16


@pytest.fixture(scope="module")
def cluster(fleets):
    with fleets() as fleet:
        fleet.use_tgi(4, "--load-s 0.2 --time-scale 2")
        fleet.config["cluster"] = "change"
        fleet.write()
        fleet.up()
        yield fleet


@pytest.fixture
def under_load(cluster, loads):
    """Streams and unary calls."""

    @asynccontextmanager
    async def running():
        load = loads.Load(cluster.endpoint, loads.small(6, (20, 60)), clients=CLIENTS)
        async with cluster.loaded(load, served=30):
            yield load

    return running


async def changed(cluster, load):
    """`launcher up` with the edited config: what it said, and how long it took."""
    begun_s, before = time.monotonic(), len(load.answers)
    said = (await asyncio.to_thread(cluster.run, "up")).stdout
    took_s, during = time.monotonic() - begun_s, load.answers[before:]
    longest_s = max(a.done_s - a.sent_s for a in during)
    print(
        f"\n4 containers replaced in {took_s:.1f} s; of {len(during)} calls meanwhile 0 failed, "
        f"the longest took {longest_s:.1f} s"
    )
    return said


def fewest_ready(said):
    return min(int(ready) for ready in re.findall(r"(\d) of 4 replicas ready", said))


async def test_an_image_that_is_not_there_takes_out_nobody_and_can_be_taken_back(
    cluster, under_load
):
    before = {one.name: one.id for one in cluster.containers}
    async with under_load():
        cluster.config["engine"]["image"] = NOTHING
        cluster.config["runtime"]["docker"] = {"pull": "never"}
        cluster.write()
        refused = await asyncio.to_thread(cluster.run, "up", rc=1)
        assert f"{NOTHING} is not on this Docker Engine" in refused.stderr
        assert "serve on with the older config" in refused.stderr
        del cluster.config["engine"]["image"]
        cluster.write()
        await asyncio.to_thread(cluster.run, "up")
    after = {one.name: one.id for one in cluster.containers}
    assert after == before


async def test_a_changed_flag_reaches_all_four_one_after_the_other(cluster, under_load):
    before, record = {one.id for one in cluster.containers}, cluster.record()
    async with under_load() as load:
        cluster.config["engine"]["args"]["max-batch-size"] = 32
        cluster.write()
        said = await changed(cluster, load)
    assert "~ replica-2: args.max-batch-size: none -> 32" in said
    assert fewest_ready(said) == 3
    assert not before & {one.id for one in cluster.containers}
    assert all("--max-batch-size 32" in words_of(one) for one in cluster.containers)
    assert cluster.record()["router"]["pid"] == record["router"]["pid"]


async def test_a_changed_image_does_so_too(cluster, under_load, tgi_image):
    cluster.client.images.get(tgi_image).tag(*NEWER.rsplit(":", 1))
    try:
        async with under_load() as load:
            cluster.config["engine"]["image"] = NEWER
            cluster.write()
            said = await changed(cluster, load)
        assert f"~ replica-0: image: none -> {NEWER}" in said
        assert fewest_ready(said) == 3
        assert {one.attrs["Config"]["Image"] for one in cluster.containers} == {NEWER}
    finally:
        cluster.client.images.remove(NEWER, force=True)


def words_of(container):
    return " ".join(container.attrs["Config"]["Cmd"])
