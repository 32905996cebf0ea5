"""Step times as arithmetic, without a clock."""

import pytest

from launcher.simulator.cli import parse
from launcher.simulator.engine import Engine
from launcher.simulator.gpu_presets import GPU_PRESETS
from launcher.simulator.settings import Pace


def test_step_times_of_a_gpu():
    gpu = GPU_PRESETS["a100"]
    assert gpu.step_s(0, 10) == pytest.approx(0.021)
    assert gpu.step_s(1200, 0) == pytest.approx(0.110)
    assert gpu.step_s(1200, 10) == pytest.approx(0.111)


def test_slower_gpus_take_longer():
    a100, a10g = GPU_PRESETS["a100"], GPU_PRESETS["a10g"]
    assert a10g.decode_s(8) > a100.decode_s(8)
    assert a10g.prefill_s(1000) > a100.prefill_s(1000)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 10.0), (20.0, 0.5), (0.0, 0.0)])
def test_time_scale_shortens_every_wait(scale, expected):
    assert Pace(1.0, scale, 0.0, 0).waited_s(10.0) == expected


@pytest.mark.parametrize(
    ("speed", "scale", "expected"), [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0), (2.0, 10.0, 0.05)]
)
async def test_speed_is_of_the_gpu_alone(speed, scale, expected):
    argv = ["--speed", str(speed), "--time-scale", str(scale), "--noise", "0"]
    engine = Engine(parse(argv, {}), metrics=None)
    assert engine.step_wait_s(1.0) == pytest.approx(expected)


async def test_noise_is_bounded_and_repeatable():
    def draws():
        engine = Engine(parse(["--noise", "0.05", "--seed-noise", "3"], {}), metrics=None)
        return [engine.step_wait_s(1.0) for _ in range(200)]

    assert draws() == draws()
    assert len(set(draws())) > 150
    assert all(0.95 <= value <= 1.05 for value in draws())
