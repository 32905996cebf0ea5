"""UUIDs become the numbers that vLLM wants, in the process that becomes vLLM."""

import os
import subprocess
import sys

import pytest

from launcher.by_index import indexes
from launcher.engines.base import Fault
from launcher.engines.vllm_log import fault_of

LISTING = "0, GPU-aaaa\n1, GPU-bbbb\n10, GPU-cccc\n"


@pytest.mark.parametrize(
    ("devices", "numbers"),
    [
        (["GPU-bbbb"], ["1"]),
        (["GPU-cccc", "GPU-aaaa"], ["10", "0"]),
        (["3"], ["3"]),
        (["3", "GPU-bbbb"], ["3", "1"]),
    ],
)
def test_numbers(devices, numbers):
    assert indexes(devices, LISTING) == numbers


@pytest.mark.parametrize(
    ("device", "says", "fault"),
    [
        ("MIG-1234", "the MIG slice MIG-1234: as a process it takes whole", Fault.BAD_FLAG),
        ("GPU-dddd", "has no GPU GPU-dddd; see `nvidia-smi -L`", Fault.GPU_LOST),
        ("", "has no GPU of no name", Fault.GPU_LOST),
    ],
)
def test_what_has_no_number_is_refused_in_words_the_launcher_reads(device, says, fault):
    with pytest.raises(LookupError, match=says) as caught:
        indexes([device], LISTING)
    assert fault_of(str(caught.value)) is fault


@pytest.fixture
def become(tmp_path):
    """Runs the real thing with an `nvidia-smi` of our own on the PATH."""

    def become(smi, visible, *argv):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{smi}\n")
        program.chmod(0o755)
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
        return subprocess.run(
            [sys.executable, "-m", "launcher.by_index", *argv],
            env=env | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )

    return become


def test_the_program_takes_the_process_over(become):
    shell = 'echo $$ "$CUDA_VISIBLE_DEVICES" "$0" "$1"; exit 7'
    done = become(f"printf '{LISTING}'", "GPU-bbbb,GPU-aaaa", "sh", "-c", shell, "a b", "c")
    assert done.stdout.split(maxsplit=1)[1] == "1,0 a b c\n"
    assert done.returncode == 7


def test_it_stays_the_same_process(tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0, GPU-aaaa\n")
    program.chmod(0o755)
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "GPU-aaaa",
    }
    command = [sys.executable, "-m", "launcher.by_index", "sh", "-c", "echo $$"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert int(process.communicate()[0]) == process.pid


@pytest.mark.parametrize(
    ("smi", "says"),
    [
        ("echo 0, GPU-aaaa", "has no GPU GPU-bbbb"),
        ("echo Failed to initialize NVML: Unknown Error; exit 255", "NVML: Unknown Error"),
        ("exit 9", "`nvidia-smi --query-gpu=index,uuid --format=csv,noheader` says"),
    ],
)
def test_without_the_gpu_nothing_is_started_and_the_log_says_why(become, smi, says):
    done = become(smi, "GPU-bbbb", "sh", "-c", "echo started")
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert {fault_of(line) for line in done.stderr.splitlines()} == {Fault.GPU_LOST}


def test_a_program_that_is_not_there_is_named(become):
    done = become("echo 0, GPU-aaaa", "GPU-aaaa", "no-such-program-anywhere")
    assert done.returncode == 1
    assert "cannot start no-such-program-anywhere: No such file or directory" in done.stderr
