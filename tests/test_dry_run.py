"""`launcher up --dry-run` for a model of one's own, beside the command an operator wrote by hand.

The same image, engine arguments, shared memory and bind; all else that differs is in LISTED.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
BY_HAND = (
    "docker run --gpus device=1 --shm-size 1g -p 9091:80 -v /path/to/fine_tuned_v1:/model "
    "ghcr.io/huggingface/text-generation-inference:1.4.4 --model-id /model --dtype float16 "
    "--num-shard 1 --max-input-length 3600 --max-total-tokens 4000 --speculate 2"
)
WITH_VALUE = {"--gpus", "--shm-size", "-p", "-v", "-e", "--name", "--cap-drop", "--cap-add"}
WITH_VALUE |= {"--security-opt", "--pids-limit", "--ulimit", "--log-driver", "--log-opt", "--label"}
LISTED = {"-d", "--name", "--label"}  # run in the background, and found again
LISTED |= {"--cap-drop", "--cap-add", "--security-opt", "--pids-limit", "--ulimit", "--init"}
LISTED |= {"--log-driver", "--log-opt"}


def dry_run(config: Path, home: Path, **env: str) -> list[list[str]]:
    """The words of each replica's command."""
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "up", "--dry-run", "-c", str(config)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    text = done.stdout.replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("docker run")]


def parsed(words: list[str]) -> tuple[dict[str, list[str]], str, list[str]]:
    """Docker's options, the image, and the engine's arguments."""
    options: dict[str, list[str]] = {}
    rest = iter(words[2:])
    for word in rest:
        if not word.startswith("-"):
            return options, word, list(rest)
        options.setdefault(word, []).append(next(rest) if word in WITH_VALUE else "")
    raise AssertionError("no image")


def test_it_differs_from_a_command_by_hand_in_what_is_listed_and_nothing_else(tmp_path):
    theirs, image, arguments = parsed(shlex.split(BY_HAND))
    [words] = dry_run(ROOT / "configs" / "fine-tuned.yaml", tmp_path)
    ours, our_image, our_arguments = parsed(words)
    assert (our_image, our_arguments) == (image, arguments)
    assert ours["--shm-size"] == theirs["--shm-size"]
    assert ours["-v"] == theirs["-v"]
    assert ours["-p"] == [f"127.0.0.1:{port}" for port in theirs["-p"]]
    # No driver here tells a UUID for GPU 1; with one, tests/docker see it.
    assert ours["--gpus"] == theirs["--gpus"]
    assert set(ours) - set(theirs) == LISTED


@pytest.mark.parametrize(
    ("engine", "image", "arguments"),
    [
        ("tgi", "ghcr.io/huggingface/text-generation-inference:", ["--model-id", "org/model"]),
        ("vllm", "vllm/vllm-openai:", ["--model", "org/model", "--served-model-name", "mine"]),
        (
            "aphrodite",
            "alpindale/aphrodite-openai:",
            ["--model", "org/model", "--served-model-name", "mine"],
        ),
    ],
)
def test_every_engine_for_gpus_has_one_command_for_each_gpu(tmp_path, engine, image, arguments):
    path = tmp_path / "fleet.yaml"
    model = {"id": "org/model", "name": "mine", "devices": ["cuda:0", "cuda:2"]}
    path.write_text(yaml.safe_dump({"models": [model], "engine": engine, "runtime": "docker"}))
    found = [parsed(words) for words in dry_run(path, tmp_path, HF_TOKEN="hf_secretsecret")]
    assert [options["--gpus"] for options, _, _ in found] == [["device=0"], ["device=2"]]
    for options, its_image, its_arguments in found:
        assert its_image.startswith(image)
        assert " ".join(arguments) in " ".join(its_arguments)
        assert "HF_TOKEN" in options["-e"]  # by name, taken from the environment
    assert found[0][0]["-p"] != found[1][0]["-p"]
