"""Both schedulers as tables: what takes part in which step."""

import pytest

from launcher.simulator.prefix_cache import PrefixCache, prefix_of
from launcher.simulator.scheduler import ChunkingScheduler, Entry, PaddedScheduler
from launcher.simulator.settings import BatchLimits


def limits(prefill=4096, total=10_000, size=None, waiting=20, ratio=1.2):
    return BatchLimits(prefill, total, size, waiting, ratio)


def padded(zero_room_means_no_cap=True, **changes):
    return PaddedScheduler(limits(**changes), 16, zero_room_means_no_cap)


def chunking(block=1, cache=None, **changes):
    return ChunkingScheduler(limits(**changes), block, cache)


def arrive(scheduler, *shapes):
    entries = [Entry(*shape) for shape in shapes]
    for entry in entries:
        scheduler.arrive(entry)
    return entries


@pytest.mark.parametrize("make", [padded, chunking])
def test_idle_scheduler_has_no_step(make):
    assert make().next_step() is None


def test_prefill_emits_the_first_token_then_decodes_follow():
    scheduler = padded()
    first, second = arrive(scheduler, (100, 50), (200, 50))
    step = scheduler.next_step()
    assert (step.prefill_tokens, step.decoding, step.emits) == (300, 0, (first, second))
    step = scheduler.next_step()
    assert (step.prefill_tokens, step.decoding, step.emits) == (0, 2, (first, second))


def test_reservation_is_input_and_output_in_whole_blocks():
    scheduler = padded()
    arrive(scheduler, (17, 1))
    scheduler.next_step()
    assert scheduler.reserved_tokens == 32 + 16


def test_a_head_that_does_not_fit_holds_back_all_behind_it():
    scheduler = padded(total=1000)
    small, big, tiny = arrive(scheduler, (160, 160), (640, 320), (16, 16))
    assert scheduler.next_step().emits == (small,)
    assert scheduler.waiting == 2
    scheduler.leave(small)
    assert scheduler.next_step().emits == (big, tiny)


def test_prefill_budget_limits_the_group():
    scheduler = padded(prefill=320)
    first, *_ = arrive(scheduler, (160, 16), (160, 16), (16, 16))
    assert scheduler.next_step().emits[0] is first
    assert scheduler.running == 2


def test_newcomers_wait_for_the_served_ratio():
    scheduler = padded(ratio=1.2)
    arrive(scheduler, *[(16, 100)] * 5)
    scheduler.next_step()
    arrive(scheduler, *[(16, 100)] * 5)
    assert scheduler.next_step().prefill_tokens == 0
    arrive(scheduler, (16, 100))
    step = scheduler.next_step()
    assert (step.admitted, step.concat_reason) == (6, "backpressure")


def test_newcomers_wait_no_longer_than_max_waiting_tokens():
    scheduler = padded(waiting=4)
    arrive(scheduler, *[(16, 100)] * 5)
    scheduler.next_step()
    (late,) = arrive(scheduler, (16, 100))
    decodes = 0
    while not (step := scheduler.next_step()).admitted:
        decodes += 1
    assert decodes == 3
    assert (step.emits, step.concat_reason) == ((late,), "wait_exceeded")


def test_a_decode_follows_each_joining_prefill():
    scheduler = padded(ratio=0.0001)
    arrive(scheduler, (16, 100))
    scheduler.next_step()
    arrive(scheduler, (16, 100))
    assert scheduler.next_step().admitted == 1
    arrive(scheduler, (16, 100))
    assert scheduler.next_step().decoding == 2
    assert scheduler.next_step().admitted == 1


@pytest.mark.parametrize(("quirk", "admitted"), [(True, 1), (False, 0)])
def test_full_batch_size_quirk(quirk, admitted):
    scheduler = padded(zero_room_means_no_cap=quirk, size=2, ratio=0.0001)
    arrive(scheduler, (16, 100), (16, 100), (16, 100))
    assert scheduler.next_step().admitted == 2
    assert scheduler.next_step().admitted == admitted


def test_too_few_for_the_ratio_go_back_in_order():
    scheduler = padded(ratio=1.0, total=1000)
    running = arrive(scheduler, (16, 112), (16, 112))
    scheduler.next_step()
    first, big = arrive(scheduler, (16, 112), (512, 400))
    assert scheduler.next_step().prefill_tokens == 0
    assert scheduler.waiting == 2
    for entry in running:
        scheduler.leave(entry)
    assert scheduler.next_step().emits == (first,)
    scheduler.leave(first)
    assert scheduler.next_step().emits == (big,)


@pytest.mark.parametrize("make", [padded, chunking])
def test_dropped_entries_are_skipped(make):
    scheduler = make()
    gone, here = arrive(scheduler, (16, 16), (16, 16))
    gone.is_dropped = True
    assert scheduler.next_step().emits == (here,)
    assert scheduler.running == 1


@pytest.mark.parametrize("make", [padded, chunking])
def test_leaving_frees_all_room_and_may_be_repeated(make):
    scheduler = make()
    entries = arrive(scheduler, (33, 44), (5, 6))
    scheduler.next_step()
    for entry in [*entries, *entries]:
        scheduler.leave(entry)
    assert (scheduler.running, scheduler.reserved_tokens) == (0, 0)
    assert scheduler.next_step() is None


@pytest.mark.parametrize("make", [padded, chunking])
def test_the_largest_legal_request_runs_alone(make):
    scheduler = make(prefill=1000, total=1001)
    (entry,) = arrive(scheduler, (1000, 1))
    assert scheduler.next_step().emits == (entry,)


def test_admission_shares_its_step_with_the_decodes():
    scheduler = chunking()
    (first,) = arrive(scheduler, (100, 50))
    scheduler.next_step()
    (second,) = arrive(scheduler, (200, 50))
    step = scheduler.next_step()
    assert (step.prefill_tokens, step.decoding, step.emits) == (200, 1, (first, second))
    assert step.concat_reason == "chunking"


def test_a_long_prompt_is_prefilled_in_chunks_and_emits_at_its_end():
    scheduler = chunking(prefill=100)
    (running,) = arrive(scheduler, (10, 50))
    scheduler.next_step()
    (long,) = arrive(scheduler, (250, 50))
    seen = []
    for _ in range(3):
        step = scheduler.next_step()
        seen.append((step.prefill_tokens, long in step.emits, running in step.emits))
    assert seen == [(99, False, True), (99, False, True), (52, True, True)]


def test_an_ordinary_step_follows_each_joining():
    scheduler = chunking()
    admitted = []
    for _ in range(4):
        arrive(scheduler, (10, 50))
        admitted.append(scheduler.next_step().admitted)
    assert admitted == [1, 1, 0, 2]


def test_blocks_of_the_budget_limit_the_batch():
    scheduler = chunking(block=256, total=256 * 5)
    first, second = arrive(scheduler, (500, 13), (600, 169))
    assert scheduler.next_step().emits == (first,)
    assert scheduler.reserved_tokens == 512
    scheduler.next_step()
    assert scheduler.waiting == 1
    scheduler.leave(first)
    assert scheduler.next_step().emits == (second,)


def test_a_known_prefix_shortens_the_prefill():
    scheduler = chunking(cache=PrefixCache(10_000))
    text = "x" * 640
    for expected in (100, 1):
        entry = Entry(100, 10, prefix_of(text))
        scheduler.arrive(entry)
        step = scheduler.next_step()
        assert (step.prefill_tokens, step.emits) == (expected, (entry,))
        scheduler.leave(entry)
    other = Entry(100, 10, prefix_of("x" * 320 + "y" * 320))
    scheduler.arrive(other)
    assert scheduler.next_step().prefill_tokens == 50


def test_prefix_cache_forgets_the_longest_unused():
    cache = PrefixCache(32)
    texts = ["a" * 64, "b" * 64, "c" * 64]
    cache.add(prefix_of(texts[0]))
    cache.add(prefix_of(texts[1]))
    assert cache.match(prefix_of(texts[0])) == 1.0
    cache.add(prefix_of(texts[2]))
    assert [cache.match(prefix_of(text)) for text in texts] == [1.0, 0.0, 1.0]
