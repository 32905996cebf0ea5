"""How much vLLM and llama-server are given at a time: told in slots and blocks, or learned."""

import asyncio


async def asked(one, path, body, count):
    """So many calls at once, each on a connection of its own."""
    clients = [await one.client() for _ in range(count)]
    for client in clients:
        client.post(path, body)
    return clients


async def statuses(clients):
    return [(await client.reply()).status for client in clients]


async def test_llama_server_gets_as_many_calls_as_it_has_slots(openai_app, until, shapes):
    one = await openai_app(1, "llama", slots=2)
    gate = asyncio.Event()
    one.replicas[0].otherwise = [gate, shapes.as_json(shapes.answer())]
    clients = await asked(one, shapes.PATH, shapes.CHAT, 5)
    await until(lambda: len(one.replicas[0].requests) + len(one.dispatcher.queue) == 5)
    assert len(one.replicas[0].requests) == 2
    assert one.metric("replica_request_limit", model="default", replica="r0") == 2
    gate.set()
    assert await statuses(clients) == [200] * 5


async def test_several_answers_take_several_slots(openai_app, until, shapes):
    one = await openai_app(1, "llama", slots=4)
    gate = asyncio.Event()
    one.replicas[0].otherwise = [gate, shapes.as_json(shapes.answer())]
    body = {**shapes.CHAT, "n": 3}
    clients = await asked(one, shapes.PATH, body, 2)
    await until(lambda: len(one.dispatcher.queue) == 1)
    assert one["r0"].load.requests == 3
    gate.set()
    assert await statuses(clients) == [200, 200]


async def test_slots_that_share_a_context_are_not_all_filled_with_long_calls(
    openai_app, until, shapes
):
    one = await openai_app(1, "llama", slots=4, length=1000)
    gate = asyncio.Event()
    one.replicas[0].otherwise = [gate, shapes.as_json(shapes.answer())]
    body = {**shapes.CHAT, "max_tokens": 400}
    clients = await asked(one, shapes.PATH, body, 4)
    await until(lambda: len(one.dispatcher.queue) == 2)
    assert one["r0"].load.requests == 2
    gate.set()
    assert await statuses(clients) == [200] * 4


async def test_vllm_gets_no_more_tokens_than_its_cache_has_blocks_for(openai_app, until, shapes):
    one = await openai_app(1, blocks=20)  # 320 tokens
    assert one["r0"].room.capacity.tokens == 320
    gate = asyncio.Event()
    one.replicas[0].otherwise = [gate, shapes.as_json(shapes.answer())]
    body = {**shapes.CHAT, "max_tokens": 150}
    clients = await asked(one, shapes.PATH, body, 3)
    await until(lambda: len(one.dispatcher.queue) == 1)
    assert one["r0"].load.requests == 2
    assert one["r0"].load.tokens <= 320
    gate.set()
    assert await statuses(clients) == [200] * 3


async def test_how_many_calls_vllm_runs_is_learned_from_its_gauge(openai_app, until, shapes):
    one = await openai_app(1, waiting=0)
    gate = asyncio.Event()
    one.replicas[0].otherwise = [gate, shapes.as_json(shapes.answer())]
    clients = await asked(one, shapes.PATH, shapes.CHAT, 40)
    await until(lambda: one["r0"].room.requests >= 32)  # nothing waits inside: more is sent
    full = shapes.as_page(shapes.vllm_gauges(waiting=20))
    one.replicas[0].metrics = [full]
    await until(lambda: one["r0"].room.requests <= 21)
    gate.set()
    assert set(await statuses(clients)) == {200}


async def test_sizes_are_learned_from_unary_bodies_and_last_chunks(openai_app, wire, shapes):
    one = await openai_app()
    estimates = one.dispatcher.pool.estimates
    body = {**shapes.CHAT, "messages": [{"role": "user", "content": "x" * 60}], "max_tokens": 40}
    one.replicas[0].otherwise = [shapes.as_json(shapes.answer(prompt=30, generated=10))]
    for _ in range(3):
        await one.post(shapes.PATH, body)
    share, chars = estimates.output_share, estimates.chars_per_token
    assert share < 0.6
    assert chars < 3.0
    one.replicas[0].otherwise = [wire.streamed(*shapes.whole_stream())]
    await one.post(shapes.PATH, {**body, "stream": True})
    assert estimates.output_share < share


async def test_the_usual_length_of_answers_is_learned_where_calls_say_none(openai_app, shapes):
    one = await openai_app()
    pool = one.dispatcher.pool
    one.replicas[0].otherwise = [shapes.as_json(shapes.answer(generated=40))]
    body = {"model": "served", "messages": shapes.CHAT["messages"]}
    for _ in range(10):
        await one.post(shapes.PATH, body)
    assert 40 < pool.estimates.open_tokens < 120
