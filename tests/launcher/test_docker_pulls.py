"""How far a pull is, from what engines say per layer; and that one pull serves all."""

import asyncio
import runpy
from contextlib import nullcontext
from pathlib import Path

import pytest

from launcher.docker import pulls
from launcher.docker.pulls import PullProgress, Pulls
from launcher.docker.refusals import NotThere, Refused
from router.errors import StartError

MB, GB = 10**6, 10**9


def layer(layer_id, status, current=0, total=0):
    detail = {"current": current, "total": total} if total else {}
    return {"id": layer_id, "status": status, "progressDetail": detail}


BEGINNING = [
    {"status": "Pulling from a/b", "id": "1.0"},
    layer("a", "Already exists"),
    layer("b", "Pulling fs layer"),
    layer("c", "Pulling fs layer"),
]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], "pulling the image"),
        (BEGINNING, "pulling the image"),
        (
            [*BEGINNING, layer("b", "Downloading", 1.2 * GB, 9 * GB)],
            "pulling the image: 1.2 of at least 9.0 GB",
        ),
        (
            [
                *BEGINNING,
                layer("b", "Downloading", 1.2 * GB, 9 * GB),
                layer("c", "Waiting"),
                layer("c", "Downloading", 0, 0.8 * GB),
            ],
            "pulling the image: 1.2 of 9.8 GB",
        ),
        (
            [*BEGINNING, layer("b", "Downloading", 1, 9 * MB), layer("b", "Verifying Checksum")],
            "pulling the image: 9.0 of at least 9.0 MB",
        ),
        (
            [
                *BEGINNING,
                layer("b", "Downloading", 1, 9 * MB),
                layer("b", "Download complete"),
                layer("c", "Download complete"),
                layer("b", "Extracting", 5, 9 * MB),
                layer("b", "Pull complete"),
            ],
            "pulling the image: unpacking, 1 of 2 layers",
        ),
        (
            [layer("a", "Already exists"), {"status": "Digest: sha256:1"}, {"status": "Status: x"}],
            "pulling the image",
        ),
        ([layer("a", "Downloading", 10_000, 150_000)], "pulling the image: 10.0 of 150 KB"),
    ],
)
def test_layers_are_added_up(events, expected):
    progress = PullProgress()
    for event in events:
        progress.feed(event)
    assert progress.text == expected


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (layer("b", "Downloading", 11, 100), True),
        (layer("b", "Verifying Checksum"), True),
        (layer("c", "Pulling fs layer"), True),
        (layer("b", "Downloading", 10, 100), False),
        (layer("b", "Retrying in 5 seconds"), False),
        ({"status": "Pulling from a/b", "id": "1.0"}, False),
        ({"status": "Digest: sha256:1"}, False),
    ],
)
def test_what_counts_as_progress(event, expected):
    progress = PullProgress()
    progress.feed(layer("b", "Downloading", 10, 100))
    assert progress.feed(event) is expected


def test_a_retry_that_comes_as_far_as_before_is_no_progress():
    progress = PullProgress()
    far = layer("b", "Downloading", 10, 100)
    assert [progress.feed(e) for e in (far, layer("b", "Retrying in 1 second"), far)] == [1, 0, 0]


class FakeEngine:
    """Has the images of `here`."""

    def __init__(self):
        self.here = set()

    async def look(self, call):
        call(self)

    def inspect_image(self, image):
        if image not in self.here:
            raise NotThere(404, f"No such image: {image}")


class Registry:
    """Instead of a long reply: counts pulls, each of which ends once it is let go."""

    def __init__(self, engine):
        self.engine, self.pulled, self.go = engine, [], asyncio.Event()
        self.events = [layer("a", "Downloading", MB, 2 * MB)]

    async def read_all(self, engine, begin, each, name):
        self.pulled.append(name)
        for event in self.events:
            each(event)
        await self.go.wait()
        self.engine.here.add(name.removeprefix("pull "))


@pytest.fixture
async def registry(monkeypatch):
    made = Registry(FakeEngine())
    monkeypatch.setattr(pulls, "read_all", made.read_all)
    return made


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_starts_at_the_same_time_pull_once_and_all_hear_of_it(registry):
    made, heard = Pulls(registry.engine), [[], []]
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for said in heard:
            group.create_task(made.ensure("a/b:1", "missing", said.append))
        await turns()
        registry.go.set()
    assert registry.pulled == ["pull a/b:1"]
    assert all("pulling the image: 1.0 of 2.0 MB" in said for said in heard)


async def test_a_cancelled_pull_is_taken_up_by_the_next_start(registry):
    made = Pulls(registry.engine)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        first = group.create_task(made.ensure("a", "missing", print))
        group.create_task(made.ensure("a", "missing", print))
        await turns()
        first.cancel()
        await turns()
        registry.go.set()
    assert registry.pulled == ["pull a", "pull a"]
    assert "a" in registry.engine.here


async def test_always_pulls_once_in_a_launchers_life(registry):
    registry.go.set()
    registry.engine.here.add("a")
    made = Pulls(registry.engine)
    for _ in range(3):
        await made.ensure("a", "always", print)
    assert registry.pulled == ["pull a"]


@pytest.mark.parametrize(
    "event",
    [
        {"errorDetail": {"message": "manifest unknown"}, "error": "manifest unknown"},
        {"errorDetail": {"message": "manifest unknown"}},
        {"error": "manifest unknown"},
        {"errorDetail": {"code": "manifest unknown"}},
    ],
)
async def test_a_failure_inside_the_reply_is_one(registry, event):
    registry.events = [event]
    with pytest.raises(StartError, match="no such tag"):
        await Pulls(registry.engine).ensure("a", "missing", print)


async def test_a_refused_pull_is_told_in_our_words(registry, monkeypatch):
    async def refuse(*_):
        raise Refused(500, "write /var/lib/docker/tmp/x: no space left on device")

    monkeypatch.setattr(pulls, "read_all", refuse)
    with pytest.raises(StartError, match="the disk is full"):
        await Pulls(registry.engine).ensure("a", "missing", print)


def on_a_jumping_clock(coro):
    path = Path(__file__).parents[1] / "fakes" / "virtual_clock.py"
    loops = runpy.run_path(str(path))
    with asyncio.Runner(loop_factory=loops["VirtualClockLoop"]) as runner:
        return runner.run(coro)


@pytest.mark.parametrize(("step_bytes", "is_given_up"), [(MB, False), (0, True)])
def test_a_slow_pull_goes_on_for_hours_and_one_that_stands_still_is_given_up(
    monkeypatch, step_bytes, is_given_up
):
    async def trickle(engine, begin, each, name):
        for step in range(60):
            each(layer("a", "Downloading", step * step_bytes, 60 * MB))
            await asyncio.sleep(300)

    async def pull():
        started_s = asyncio.get_running_loop().time()
        try:
            await Pulls(FakeEngine()).ensure("a", "missing", said.append)
        finally:
            took.append(asyncio.get_running_loop().time() - started_s)

    said, took = [], []
    monkeypatch.setattr(pulls, "read_all", trickle)
    expected = pytest.raises(StartError, match="sends nothing, for 600 s") if is_given_up else None
    with expected or nullcontext():
        on_a_jumping_clock(pull())
    assert took == [600 if is_given_up else 60 * 300]
