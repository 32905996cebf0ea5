"""What is normal for a replica, and when its silence means something: short histories."""

import pytest

from router.pace import Pace, Peak


def running(*, gap_s=0.03, events=200, now_s=1000.0, pace=None):
    """A replica whose one stream has sent an event every `gap_s`; gives it and the time."""
    pace = pace or Pace(probe_timeout_s=3.0)
    pace.heard(now_s)
    for _ in range(events):
        now_s += gap_s
        pace.event(now_s, gap_s)
    return pace, now_s


def test_a_peak_is_the_longest_seen_and_fades():
    peak = Peak()
    peak.add(4.0, 1000.0)
    peak.add(1.0, 1001.0)
    assert peak.value_s(1000.0) == 4.0
    assert peak.value_s(1060.0) == pytest.approx(2.0)
    peak.add(3.0, 1060.0)
    assert peak.value_s(1060.0) == 3.0


def test_before_anything_is_known_it_is_patient():
    pace = Pace(probe_timeout_s=3.0)
    assert pace.silence_allowed_s(1000.0) == 2.0
    assert pace.stream_deadline_s(1000.0) == 4.0
    assert pace.first_token_deadline_s(10, 1000.0) == 10.0
    assert pace.first_token_deadline_s(1000, 1000.0) > 60.0, "as slow as an engine without a GPU"


@pytest.mark.parametrize(
    ("gap_s", "allowed_s", "stream_s"),
    [(0.005, 0.5, 2.0), (0.03, 0.5, 2.0), (0.2, 0.5, 2.0), (0.4, 0.8, 2.0), (1.0, 2.0, 4.0)],
)
def test_the_silence_allowed_is_twice_the_normal_step(gap_s, allowed_s, stream_s):
    pace, now_s = running(gap_s=gap_s)
    assert pace.silence_allowed_s(now_s) == pytest.approx(allowed_s, rel=0.1)
    silent_s = now_s + pace.silence_allowed_s(now_s) + 0.1
    assert pace.stream_deadline_s(silent_s) == pytest.approx(stream_s, rel=0.1)


def test_a_prefill_that_froze_all_streams_is_remembered_for_a_while():
    pace, now_s = running()
    for freeze_s in (0.9, 1.6, 3.0):
        now_s += freeze_s
        pace.event(now_s, freeze_s)
        pace, now_s = running(pace=pace, now_s=now_s)
    assert pace.silence_allowed_s(now_s) > 4.0
    pace, now_s = running(pace=pace, now_s=now_s + 600.0)
    assert pace.silence_allowed_s(now_s) == 0.5


def test_one_hang_does_not_excuse_the_next():
    """It was silent for a minute: twice what was allowed is learned, no more."""
    pace, now_s = running()
    pace.event(now_s + 60.0, 60.0)
    assert pace.silence_allowed_s(now_s + 60.0) == 2.0
    assert pace.stream_deadline_s(now_s + 63.0) < 8.0


def test_the_silence_allowed_has_an_upper_bound():
    pace, now_s = running(gap_s=30.0, events=50)
    assert pace.silence_allowed_s(now_s) == 6.0


def test_time_without_calls_is_no_silence():
    pace, now_s = running()
    pace.heard(now_s + 3600.0)
    pace.event(now_s + 3600.03, 0.03)
    assert pace.silence_allowed_s(now_s + 3600.1) == 0.5
    pace.busy_since_s = now_s + 3700.0
    assert pace.silent_since_s() == now_s + 3700.0


def test_a_client_that_paused_its_stream_teaches_nothing():
    """The exchange counts the gap from where it read on."""
    pace, now_s = running()
    pace.event(now_s + 25.0, 0.01)
    assert pace.silence_allowed_s(now_s + 25.0) == 0.5


def test_a_stream_that_others_overtake_is_put_off_not_stalled():
    pace, now_s = running()
    assert pace.stream_deadline_s(now_s) == 10.0
    assert pace.stream_deadline_s(now_s + 3.0) == 2.0


def test_slow_answers_to_probes_under_load_raise_what_is_allowed():
    """Engines answer /health between two steps."""
    pace, now_s = running()
    for took_s in (0.7, 0.7):
        pace.probe_answered(now_s, took_s, is_busy=True)
    assert pace.silence_allowed_s(now_s) == pytest.approx(1.4)


def test_probes_of_an_idle_replica_are_no_evidence_of_its_pace():
    pace = Pace()
    for _ in range(100):
        pace.probe_answered(1000.0, 0.001, is_busy=False)
    assert pace.silence_allowed_s(1000.0) == 2.0
    for _ in range(8):
        pace.probe_answered(1000.0, 0.001, is_busy=True)
    assert pace.silence_allowed_s(1000.0) == 0.5


# ---- prompts ----


def seen_prompts(pace, now_s, tokens, took_s, count=20):
    for _ in range(count):
        pace.granted("call", tokens)
        pace.first_token("call", now_s, took_s)


def test_a_long_prompt_just_granted_is_allowed_its_time():
    pace, now_s = running()
    seen_prompts(pace, now_s, 2000, 0.5)  # 4,000 tokens a second
    assert pace.silence_allowed_s(now_s) == 0.5
    pace.granted("long", 8000)
    assert pace.silence_allowed_s(now_s) == pytest.approx(4.0, rel=0.1)
    assert pace.stream_deadline_s(now_s + 9.0) == pytest.approx(8.0, rel=0.1)
    pace.first_token("long", now_s, 2.0)
    assert pace.silence_allowed_s(now_s) == 0.5


def test_short_prompts_go_together_up_to_one_step():
    pace, now_s = running()
    seen_prompts(pace, now_s, 2000, 0.5)
    for i in range(10):
        pace.granted(i, 200)
    assert pace.silence_allowed_s(now_s) == pytest.approx(1.0, rel=0.1)
    for i in range(10, 400):
        pace.granted(i, 200)
    assert pace.silence_allowed_s(now_s) == pytest.approx(2.0, rel=0.1)
    for i in range(400):
        pace.ended(i)
    assert pace.silence_allowed_s(now_s) == 0.5


@pytest.mark.parametrize(
    ("tokens", "took_s", "asked_tokens", "deadline_s"),
    [(2000, 0.5, 100, 10.0), (2000, 0.5, 16_000, 20.0), (2000, 4.0, 2000, 20.0)],
)
def test_the_first_token_may_take_several_times_what_prompts_took(
    tokens, took_s, asked_tokens, deadline_s
):
    pace, now_s = running()
    seen_prompts(pace, now_s, tokens, took_s, count=60)
    found_s = pace.first_token_deadline_s(asked_tokens, now_s)
    assert found_s == pytest.approx(deadline_s, rel=0.1)


def test_waits_that_the_prompt_does_not_explain_count_too():
    pace, now_s = running()
    seen_prompts(pace, now_s, 2000, 0.5)
    seen_prompts(pace, now_s, 10, 6.0)
    assert pace.first_token_deadline_s(10, now_s) == pytest.approx(30.0, rel=0.01)


def test_a_call_that_waited_in_vain_gives_the_next_ones_twice_as_long():
    pace, now_s = running()
    seen_prompts(pace, now_s, 2000, 0.5)
    before_s = pace.first_token_deadline_s(10, now_s)
    pace.granted("call", 10)
    pace.gave_up("call", now_s, before_s)
    assert pace.first_token_deadline_s(10, now_s) == pytest.approx(2 * before_s, rel=0.01)


def test_a_stream_that_failed_after_its_first_token_teaches_no_waiting():
    pace, now_s = running()
    seen_prompts(pace, now_s, 10, 0.1)
    pace.gave_up("call", now_s, 300.0)
    assert pace.first_token_deadline_s(10, now_s) == 10.0


def test_a_word_after_a_silence_is_told():
    told = []
    pace, now_s = running()
    pace.stirred = lambda: told.append(pace.heard_s)
    pace.event(now_s + 0.03, 0.03)
    assert told == []
    pace.event(now_s + 5.0, 4.97)
    pace.heard(now_s + 9.0)
    assert told == [now_s + 5.0, now_s + 9.0]
