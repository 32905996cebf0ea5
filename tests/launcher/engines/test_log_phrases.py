"""What a starting server's log tells about its progress."""

import json

import pytest

from launcher.engines import ENGINES

PHRASES = [
    ('Args { model_id: "m", revision: None', "reading arguments"),
    ("Starting download process.", "checking weights"),
    ("Starting check and download process for org/m", "checking weights"),
    ("Files are already present on the host. Skipping download.", "weights are here"),
    ("File model.safetensors already present in cache.", "weights are here"),
    ("Download file: model-00001-of-00002.safetensors", "downloading weights"),
    ("Download: [1/2] -- ETA: 0:01:10", "downloading weights: 1 of 2, 0:01:10 left"),
    ("Download: [2/2] -- ETA: 0", "downloading weights: 2 of 2, 0 left"),
    ("Retrying in 5 seconds", "downloading weights again"),
    ("Successfully downloaded weights", "weights are here"),
    ("Starting shard", "loading the model"),
    ("Waiting for shard to be ready...", "loading the model"),
    ("Server started at unix:///tmp/x-0", "model loaded"),
    ("Shard ready in 10.2s", "model loaded"),
    ("Starting Webserver", "starting the web server"),
    ("Serving revision abc of model org/m", "reading the tokenizer"),
    ("Warming up model", "warming up"),
    ("KV-cache blocks: 100, size: 16", "warming up"),
    ("Setting max batch total tokens to 16000", "warmed up"),
    ("Connected", "connected"),
    ("Not enough memory to handle 4096 prefill tokens.", "failed: not enough GPU memory"),
    (
        "Shard process was signaled to shutdown with signal 9",
        "failed: killed, the host was probably out of memory",
    ),
    ("Shard 0 failed to start", "failed: the model did not load"),
    ("Webserver Crashed", "failed: the web server crashed"),
    ("Success", None),
    ("Connected to something else", None),
    ("", None),
]


def forms(message):
    """The line as the launcher's text log, its JSON log, and the web server's JSON log have it."""
    yield f"2024-03-22T10:00:00.000000Z  INFO text_generation_launcher: {message}\n"
    yield json.dumps({"timestamp": "t", "level": "INFO", "fields": {"message": message}})
    yield json.dumps({"timestamp": "t", "level": "INFO", "message": message, "line_number": 1})


@pytest.mark.parametrize("engine", ["simulator", "tgi"])
@pytest.mark.parametrize(("message", "phase"), PHRASES)
def test_phases_are_read_from_every_form_of_the_log(engine, message, phase):
    assert {ENGINES[engine].phase_of(line) for line in forms(message)} == {phase}


@pytest.mark.parametrize("engine", ["simulator", "tgi"])
def test_the_token_budget_is_read_from_the_line_that_has_it(engine):
    for line in forms("Setting max batch total tokens to 16000"):
        assert ENGINES[engine].token_budget_of(line) == 16_000
    for line in forms("Starting shard"):
        assert ENGINES[engine].token_budget_of(line) is None


def test_a_line_of_any_length_is_read_quickly():
    line = "Download: [" * 100_000
    assert ENGINES["tgi"].phase_of(line) is None
