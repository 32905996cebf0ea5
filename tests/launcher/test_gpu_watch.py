"""A watch over the fake driver's GPUs: what it tells of, and what it only writes down."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from launcher import gpu_watch, gpus
from launcher.gpu import GpuEvent, Inventory, Reading
from launcher.gpu_watch import GpuWatch
from tests.fakes.nvml import FakeNvml

UNKNOWN = 999
DEADLINE_S = 10.0


@pytest.fixture
def nvml(tmp_path: Path) -> Iterator[FakeNvml]:
    with FakeNvml(tmp_path).loaded() as fake:
        fake.add_gpu()
        fake.add_gpu()
        yield fake


class Heard(logging.Handler):
    """What a watch says, in order: events, and lines of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: asyncio.Queue[GpuEvent | str] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        self.loop.call_soon_threadsafe(self.queue.put_nowait, record.getMessage())

    async def next(self) -> GpuEvent | str:
        async with asyncio.timeout(DEADLINE_S):
            return await self.queue.get()


@asynccontextmanager
async def watching() -> AsyncIterator[Heard]:
    """A watch that has looked at all GPUs once; its thread has ended on return."""
    looked, heard = asyncio.Event(), Heard()
    wait = gpus.GpuMonitor.wait_events

    def wait_events(monitor: gpus.GpuMonitor, timeout_s: float) -> list[GpuEvent]:
        events = wait(monitor, timeout_s)
        heard.loop.call_soon_threadsafe(looked.set)
        return events

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpus, "_WAIT_S", 0.01)
        patch.setattr(gpu_watch, "_WAIT_S", 0.05)
        patch.setattr(gpus.GpuMonitor, "wait_events", wait_events)
        gpu_watch.log.addHandler(heard)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(GpuWatch(heard.queue.put_nowait).run())
            async with asyncio.timeout(DEADLINE_S):
                await looked.wait()
            yield heard
            watch.cancel()
        gpu_watch.log.removeHandler(heard)
        for thread in threading.enumerate():
            if thread.name == "gpus":
                thread.join(DEADLINE_S)


async def test_a_lost_gpu_is_told_of(nvml: FakeNvml) -> None:
    async with watching() as heard:
        nvml.lose(nvml.gpus[1])
        event = await heard.next()
    assert isinstance(event, GpuEvent)
    assert (event.uuid, event.kind) == (nvml.gpus[1].uuid, "lost")


async def test_a_lost_gpu_takes_its_slices_along(nvml: FakeNvml) -> None:
    parts = [nvml.add_slice(nvml.gpus[1]), nvml.add_slice(nvml.gpus[1])]
    async with watching() as heard:
        nvml.lose(nvml.gpus[1])
        event = await heard.next()
    assert isinstance(event, GpuEvent)
    assert (event.uuid, event.slices) == (nvml.gpus[1].uuid, tuple(part.uuid for part in parts))


def answer_all(nvml: FakeNvml, code: int) -> None:
    """All GPUs at the same time."""
    for gpu in nvml.gpus:
        gpu.errors = {"*": code} if code else {}
    nvml.change(nvml.gpus[0])


async def test_a_driver_that_serves_this_process_no_more_is_one_line_and_no_event(
    nvml: FakeNvml,
) -> None:
    async with watching() as heard:
        answer_all(nvml, UNKNOWN)
        gone = await heard.next()
        answer_all(nvml, 0)
        back = await heard.next()
        nvml.lose(nvml.gpus[0])
        event = await heard.next()
    assert isinstance(gone, str)
    assert gone.startswith("GPUs: the launcher's own access to the driver is gone: no GPU answers")
    assert back == "GPUs: the driver answers again"
    assert isinstance(event, GpuEvent)


async def test_how_the_gpus_are_is_told_too(nvml: FakeNvml) -> None:
    nvml.gpus[1].throttle = 0x40
    nvml.change(nvml.gpus[1])
    told: asyncio.Queue[tuple[dict[str, Reading], Inventory]] = asyncio.Queue()
    watch = GpuWatch(print, lambda readings, inventory: told.put_nowait((readings, inventory)))
    task = asyncio.get_running_loop().create_task(watch.run())
    async with asyncio.timeout(DEADLINE_S):
        readings, inventory = await told.get()
    task.cancel()
    await asyncio.wait([task])
    assert [gpu.uuid for gpu in inventory.gpus] == [gpu.uuid for gpu in nvml.gpus]
    assert readings[nvml.gpus[1].uuid].throttle_reasons == ("heat (hardware)",)
