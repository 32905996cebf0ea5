"""What single checks make of a machine, and what becomes of checks that hang or break."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.checkup import CHECKS, view
from launcher.checkup.base import Check, Finding, NotTold, Verdict, failed, passed, warned
from launcher.checkup.question import NoAnswer, Question
from launcher.checkup.runner import Result, examine
from launcher.checkup.subject import Subject
from launcher.commands.doctor import exit_code
from launcher.gpu import DriverState, Gpu, Inventory, Reading
from launcher.gpu_view import Look
from router.errors import ConfigProblem, StartError
from tests.fakes.nvml import GIB, FakeNvml

SOON_S = 10.0
NOBODY = 65_534
SECRET = "Zq8XwVtY5uBn"


@pytest.fixture
def subject_of(tmp_path: Path) -> Callable[..., Subject]:
    """For a config of one TGI replica on cuda:0; keywords are the model's."""

    def make(
        engine: str = "tgi",
        environ: dict[str, str] | None = None,
        state_dir: Path = tmp_path / "state",
        **model: Any,
    ) -> Subject:
        model = {"id": "a/b", "devices": "[0]"} | model
        fields = ", ".join(f"{name}: {value}" for name, value in model.items())
        path = tmp_path / "cluster.yaml"
        lines = [f"models: [{{{fields}}}]", f"engine: {engine}", "router: {port: 0}"]
        path.write_text("\n".join([*lines, f"runtime: {{state_dir: {state_dir}}}", ""]))
        return Subject.load(path, environ=environ or {})

    return make


def with_gpu(subject: Subject, cuda: str = "12.6", capability: tuple[int, int] = (9, 0)) -> Subject:
    """Placed on a GPU that no library has to tell of."""
    gpu = Gpu("GPU-1", 0, "Card", 80 * GIB, capability, "0:1", None, None, False)
    inventory = Inventory(DriverState.OK, (gpu,), driver_version="560.1", cuda_version=cuda)
    look = Look(inventory, {gpu.uuid: Reading(gpu.uuid, 0, 80 * GIB)})
    subject.driver = Question("the driver", lambda: look, SOON_S, "")
    return subject


def findings(subject: Subject, name: str) -> list[Finding]:
    checks = [check for check in CHECKS if check.name == name and check.matters(subject)]
    return [result.finding for result in examine(checks, subject)]


def only(subject: Subject, name: str) -> tuple[Verdict, str]:
    (finding,) = findings(subject, name)
    return finding.verdict, finding.found


# ---- the driver's age, and what cards can do


@pytest.mark.parametrize(
    ("engine", "cuda", "verdict"),
    [
        ("{name: tgi, version: '1.4.4'}", "12.0", Verdict.FAIL),
        ("{name: tgi, version: '1.4.4'}", "12.1", Verdict.PASS),
        ("{name: tgi, version: '3.3.5'}", "11.8", Verdict.FAIL),
        ("{name: tgi, version: '3.3.5'}", "12.1", Verdict.WARN),
        ("{name: tgi, version: '3.3.5'}", "12.2", Verdict.PASS),
        ("tgi", "13.0", Verdict.PASS),
        ("tgi", "", Verdict.SKIP),
    ],
)
def test_whether_the_driver_is_new_enough(
    subject_of: Callable[..., Subject], engine: str, cuda: str, verdict: Verdict
) -> None:
    assert only(with_gpu(subject_of(engine), cuda), "cuda")[0] is verdict


@pytest.mark.parametrize(
    ("quantize", "capability", "verdict"),
    [
        ("awq", (7, 5), Verdict.PASS),
        ("awq", (7, 0), Verdict.FAIL),
        ("fp8", (7, 5), Verdict.FAIL),
        ("fp8", (9, 0), Verdict.PASS),
        ("eetq", (8, 9), Verdict.PASS),
        ("eetq", (9, 0), Verdict.WARN),
        ("bitsandbytes-nf4", (6, 1), Verdict.PASS),
    ],
)
def test_whether_a_card_can_do_what_is_asked(
    subject_of: Callable[..., Subject],
    quantize: str,
    capability: tuple[int, int],
    verdict: Verdict,
) -> None:
    subject = with_gpu(subject_of(quantize=quantize), capability=capability)
    found_verdict, found = only(subject, "quantize")
    assert found_verdict is verdict
    assert "Card (cuda:0) has " in found


def test_an_old_card_has_no_bfloat16(subject_of: Callable[..., Subject]) -> None:
    subject = with_gpu(subject_of(dtype="bfloat16"), capability=(7, 5))
    assert only(subject, "quantize")[0] is Verdict.FAIL
    subject = with_gpu(subject_of(dtype="bfloat16"), capability=(8, 0))
    assert findings(subject, "quantize") == []


# ---- how a GPU is


@pytest.mark.parametrize(
    ("state", "verdict", "words"),
    [
        ({}, Verdict.PASS, "79.5 GiB free, 31 °C"),
        ({"throttle": 0x04}, Verdict.PASS, "free"),  # the power cap of a busy card
        ({"throttle": 0x40, "temp": 91}, Verdict.WARN, "heat (hardware), 91 °C"),
        ({"temp": 88}, Verdict.WARN, "hot: 88 °C"),
        ({"ecc": 3}, Verdict.WARN, "memory errors since the driver was loaded: 3"),
        ({"remap": (1, 0)}, Verdict.FAIL, "waits to be remapped"),
    ],
)
def test_how_a_gpu_is(
    subject_of: Callable[..., Subject],
    tmp_path: Path,
    state: dict[str, Any],
    verdict: Verdict,
    words: str,
) -> None:
    with FakeNvml(tmp_path).loaded() as nvml:
        nvml.change(nvml.add_gpu(), **state)
        found_verdict, found = only(subject_of(), "gpu")
    assert found_verdict is verdict
    assert words in found


def test_a_driver_that_hangs_is_one_failure_and_waited_for_once(
    subject_of: Callable[..., Subject], tmp_path: Path
) -> None:
    with FakeNvml(tmp_path).loaded() as nvml:
        gpu = nvml.add_gpu()
        nvml.change(gpu, hangs="nvmlDeviceGetMemoryInfo_v2")
        subject = subject_of()
        subject = Subject.load(subject.path, driver_limit_s=0.5)
        began_s = time.monotonic()
        found = {name: only(subject, name) for name in ("driver", "gpu", "fit", "placement")}
        took_s = time.monotonic() - began_s
        nvml.change(gpu, hangs=None)  # its thread may end
    assert took_s < SOON_S
    assert found["driver"][0] is Verdict.FAIL
    assert "has not answered within 0.5 s" in found["driver"][1]
    assert {found[name][0] for name in ("gpu", "fit", "placement")} == {Verdict.SKIP}


def test_replicas_that_fare_alike_are_one_line_and_others_are_named(
    subject_of: Callable[..., Subject], tmp_path: Path
) -> None:
    model = {"id": "mistralai/Mistral-7B-Instruct-v0.3", "devices": "[0, 1, 2]"}
    with FakeNvml(tmp_path).loaded() as nvml:
        for _ in range(3):
            nvml.add_gpu()
        (alike,) = findings(subject_of(**model), "fit")
        nvml.change(nvml.gpus[1], used=60 * GIB)
        good, bad = findings(subject_of(**model), "fit")
    assert (alike.verdict, alike.about) == (Verdict.PASS, model["id"])
    assert (good.verdict, good.about) == (Verdict.PASS, "replica-0, replica-2")
    assert bad.verdict in (Verdict.WARN, Verdict.FAIL)
    assert bad.about == "replica-1"


# ---- folders


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_this_user_may_not_even_see_is_a_failure(
    subject_of: Callable[..., Subject], tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    subject = subject_of(state_dir=closed / "state")
    os.seteuid(NOBODY)
    try:
        found = only(subject, "state folder")
    finally:
        os.seteuid(0)
    assert found == (Verdict.FAIL, f"{closed}/state: this user may not write there")


# ---- the hub's token


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
@pytest.mark.parametrize(
    ("token", "verdict", "words"),
    [
        (f"hf_{SECRET}", Verdict.PASS, "right form"),
        (f"hf_{SECRET}\n", Verdict.FAIL, "line end"),
        (f"hf_ {SECRET}", Verdict.FAIL, "white space"),
        (f'"hf_{SECRET}"', Verdict.FAIL, "quotes"),
        (f"hf_{SECRET}é", Verdict.FAIL, "characters"),
        (SECRET, Verdict.WARN, "does not look like"),
        (f"hf_{SECRET}-{SECRET}", Verdict.WARN, "does not look like"),
    ],
)
def test_a_token_is_judged_by_its_form(
    subject_of: Callable[..., Subject], name: str, token: str, verdict: Verdict, words: str
) -> None:
    subject = with_gpu(subject_of(environ={name: token}))
    (finding,) = findings(subject, "hub token")
    assert finding.verdict is verdict
    assert words in finding.found
    assert name in finding.found
    assert SECRET[:4] not in finding.found + finding.advice


@pytest.mark.parametrize(
    ("model", "verdict"),
    [
        ("meta-llama/Llama-3.1-8B", Verdict.WARN),
        ("google/gemma-2-9b", Verdict.WARN),
        ("google/flan-t5-xl", Verdict.PASS),
        ("lmsys/vicuna-7b-v1.5", Verdict.PASS),
    ],
)
def test_no_token_matters_for_gated_models(
    subject_of: Callable[..., Subject], model: str, verdict: Verdict
) -> None:
    assert only(with_gpu(subject_of(id=model)), "hub token")[0] is verdict


# ---- checks that hang or break


def check(find: Callable[[Subject], Any], **options: Any) -> Check:
    return Check("it", find, **options)


def results(*checks: Check) -> list[Finding]:
    return [result.finding for result in examine(checks, Subject())]


def test_a_broken_check_is_told_as_one_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(subject: Subject) -> Iterator[Finding]:
        yield passed("half of it")
        raise KeyError("secret of the machine")

    found = results(check(broken), check(lambda subject: [passed("fine")]))
    assert [finding.verdict for finding in found] == [Verdict.PASS, Verdict.BUG, Verdict.PASS]
    assert "KeyError" in found[1].found
    assert "Traceback" in capsys.readouterr().err


def test_a_check_that_hangs_is_given_up_and_what_it_found_counts() -> None:
    over = threading.Event()

    def hangs(subject: Subject) -> Iterator[Finding]:
        yield warned("half of it")
        over.wait(SOON_S)

    found = results(check(hangs, limit_s=0.2), check(lambda subject: [passed("fine")]))
    over.set()
    assert [finding.verdict for finding in found] == [Verdict.WARN, Verdict.FAIL, Verdict.PASS]
    assert "0.2 s" in found[1].found


def test_what_checks_raise_is_a_finding() -> None:
    def refused(subject: Subject) -> Iterator[Finding]:
        raise StartError("found this, expected that; do so")

    def untold(subject: Subject) -> Iterator[Finding]:
        raise NotTold("nobody says")

    assert results(check(refused), check(untold)) == [
        failed("found this, expected that", "do so"),
        Finding(Verdict.SKIP, "nobody says"),
    ]


def test_checks_that_do_not_matter_are_left_out() -> None:
    never = check(lambda subject: [passed("fine")], matters=lambda subject: False)
    assert results(never) == []


def test_a_question_is_asked_once_and_all_hear_the_answer() -> None:
    asked: list[int] = []
    question = Question("it", lambda: asked.append(1) or len(asked), SOON_S, "")
    assert [question.answer(), question.answer()] == [1, 1]


def test_late_askers_do_not_wait_again() -> None:
    over = threading.Event()
    question = Question("it", lambda: over.wait(SOON_S), 0.2, "do so")
    for longest_s in (SOON_S, 0.1):
        began_s = time.monotonic()
        with pytest.raises(NoAnswer, match=r"it has not answered within 0.2 s; do so"):
            question.answer()
        assert time.monotonic() - began_s < longest_s
    over.set()


@pytest.mark.parametrize(
    ("verdicts", "is_readable", "code"),
    [
        ([Verdict.PASS, Verdict.WARN, Verdict.SKIP], True, 0),
        ([Verdict.PASS, Verdict.FAIL], True, 1),
        ([Verdict.FAIL], False, 2),
        ([Verdict.FAIL, Verdict.BUG], False, 70),
    ],
)
def test_the_exit_code_is_the_worst(verdicts: list[Verdict], is_readable: bool, code: int) -> None:
    problem = ConfigProblem("x.yaml", 1, "models", "nothing", "a list")
    subject = Subject(problems=() if is_readable else (problem,))
    found = [Result("it", Finding(verdict, "so")) for verdict in verdicts]
    assert exit_code(subject, found) == code


# ---- how it is shown


@pytest.mark.parametrize("width", [60, 80, 200])
def test_lines_keep_within_the_terminal_and_advice_begins_one(width: int) -> None:
    finding = failed("found " * 30, "do " * 40, about="cuda:0")
    lines = list(view.lines(Result("docker restarts", finding), width))
    texts = [line.verdict + line.text for line in lines]
    assert max(map(len, texts)) <= width
    assert texts[0].startswith("FAIL  docker restarts  cuda:0: found")
    (first_advice,) = [text for text in texts if "-> " in text]
    assert first_advice.index("->") == texts[0].index("cuda:0")


def test_a_pipe_gets_one_line_for_each_finding() -> None:
    finding = warned("found\nthis", "do  that", about="cuda:0")
    assert view.plain(Result("gpu", finding)) == (
        "warn  gpu              cuda:0: found this -> do that"
    )


def test_checks_skipped_for_one_reason_are_one_line() -> None:
    skipped = [Result(name, Finding(Verdict.SKIP, "no driver")) for name in ("cuda", "gpu", "gpu")]
    assert all(map(view.is_consequence, skipped))
    (together,) = view.together(skipped)
    assert together.finding.found == "cuda, gpu: no driver"


def test_no_check_has_the_name_of_another() -> None:
    names = [check.name for check in CHECKS]
    assert len(names) == len(set(names))
