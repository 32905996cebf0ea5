"""Strict JSON: whatever bytes come in, a reading or a clear refusal goes out, nothing else."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.apis import GENERATION_APIS, TOKENIZER_APIS
from router.apis.body import _decode, _plain_object, load_object
from router.call import Ask
from router.errors import InvalidRequest

APIS = {**GENERATION_APIS, **TOKENIZER_APIS}
DEEP = 200_000

REFUSED = {
    "empty": b"",
    "blank": b"  \n",
    "nan": b'{"inputs":"x","n":NaN}',
    "infinity": b'{"inputs":"x","n":Infinity}',
    "minus infinity": b'{"inputs":"x","n":-Infinity}',
    "float overflow": b'{"inputs":"x","n":1e999}',
    "lone high surrogate": b'{"inputs":"\\ud800"}',
    "lone low surrogate": b'{"inputs":"\\udc00"}',
    "swapped surrogates": b'{"inputs":"\\udc00\\ud800"}',
    "lone surrogate in a key": b'{"inputs":"x","\\ud800":1}',
    "lone surrogate deep inside": b'{"inputs":"x","a":[{"b":["\\ud834"]}]}',
    "surrogate as raw bytes": b'{"inputs":"\xed\xa0\x80"}',
    "duplicate key": b'{"inputs":"x","inputs":"y"}',
    "duplicate key inside": b'{"inputs":"x","parameters":{"seed":1,"seed":2}}',
    "duplicate key by escape": b'{"inputs":"x","\\u0069nputs":"y"}',
    "integer beyond 64 bits": b'{"inputs":"x","n":18446744073709551616}',
    "integer below 64 bits": b'{"inputs":"x","n":-9223372036854775809}',
    "integer of a million digits": b'{"inputs":"x","n":' + b"9" * 10**6 + b"}",
    "deep array": b'{"inputs":"x","a":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep object": b'{"inputs":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "deep and open": b"[" * DEEP,
    "bom": b'\xef\xbb\xbf{"inputs":"x"}',
    "utf-16": '{"inputs":"x"}'.encode("utf-16"),
    "bad utf-8": b'{"inputs":"\xff"}',
    "overlong utf-8": b'{"inputs":"\xc0\xaf"}',
    "utf-8 cut short": b'{"inputs":"\xe2\x82',
    "trailing garbage": b'{"inputs":"x"} x',
    "two documents": b'{"inputs":"x"}{"inputs":"y"}',
    "trailing comma": b'{"inputs":"x",}',
    "cut short": b'{"inputs":"x"',
    "single quotes": b"{'inputs':'x'}",
    "comment": b'{"inputs":"x"/*c*/}',
    "raw control character": b'{"inputs":"a\x00b"}',
    "raw new line": b'{"inputs":"a\nb"}',
    "leading zero": b'{"inputs":"x","n":01}',
    "array": b'["x"]',
    "null": b"null",
    "number": b"1",
    "string": b'"inputs"',
    "true": b"true",
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_what_parsers_disagree_on_is_refused(body):
    with pytest.raises(InvalidRequest) as caught:
        load_object(body)
    assert caught.value.status == 422
    assert 0 < len(caught.value.message) < 300, "the message is for people"
    caught.value.message.encode()


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":"x"}',
        b' \r\n\t{"inputs":"x"}\n ',
        b'{"n":18446744073709551615,"m":-9223372036854775808}',
        b'{"inputs":"\\ud83d\\ude00"}',
        b'{"inputs":"\\u0000"}',
        '{"inputs":"😀 é"}'.encode(),
        b'{"n":1e308,"m":-0.0,"o":1E-400}',
        b'{"a":{"x":1},"b":{"x":1}}',
        b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
        b"{}",
    ],
)
def test_plain_json_is_read_as_any_parser_reads_it(body):
    assert load_object(body) == json.loads(body)


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_every_route_refuses_the_same(path, body):
    with pytest.raises(InvalidRequest):
        APIS[path].parse(path, body)


def parsed(path, body):
    """The ask, checked, or the refusal as the client would be sent it."""
    api = APIS[path]
    try:
        ask = api.parse(path, body)
    except InvalidRequest as error:
        return json.loads(api.error_body(error))  # must hold no character that JSON cannot
    assert isinstance(ask, Ask)
    assert ask.sequences >= 1
    assert ask.input_chars >= 1
    assert ask.images >= 0
    assert ask.new_tokens in ("absent", "rest") or 0 <= ask.new_tokens < 2**32
    return ask


@pytest.mark.parametrize("path", APIS)
@given(body=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_an_ask_or_a_refusal(path, body):
    parsed(path, body)


FIELDS = [
    *("inputs", "parameters", "stream", "model", "best_of", "max_new_tokens", "truncate"),
    *("messages", "role", "content", "type", "text", "image_url", "prompt", "max_tokens"),
    *("max_completion_tokens", "instances", "n", "tools", "input", "documents", "text_1"),
    *("n_predict", "max_output_tokens", "tokens", "input_extra", "instructions", "system"),
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(st.characters(codec=None), max_size=8)
    | st.sampled_from(["image_url", "text", "user", "tgi", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("path", APIS)
@given(value=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
@settings(max_examples=150, deadline=None)
def test_any_json_of_the_right_words_gives_an_ask_or_a_refusal(path, value):
    parsed(path, json.dumps(value).encode())


@pytest.mark.parametrize("path", APIS)
def test_a_refusal_never_repeats_the_body(path):
    secret = "s3cret" * 100_000
    for value in ({"inputs": {secret: 1}}, {"messages": secret}, {"prompt": {secret: secret}}):
        wrong = {**value, "stream": secret}
        with pytest.raises(InvalidRequest) as caught:
            APIS[path].parse(path, json.dumps(wrong).encode())
        assert "s3cret" not in caught.value.message


KEYS = st.sampled_from(["a", "b", "a:b", "", r"\u003a", r"\\", r"x\":"])
NUMBERS = (
    *("1", "-0", "0.0", "1.5", "1e5", "1E+2", "1e400", "-1e400", "9007199254740993", "01", "NaN"),
    *("18446744073709551615", "18446744073709551616", "-9223372036854775809", "1" + "0" * 30),
)
OTHERS = (
    *("null", "true", '"x"', '":"', '"é"', '"\x7f"', '"\x01"'),
    *(r'"\u003a"', r'"\ud800"', r'"\ud83d\ude00"', r'"\":"'),
)
LEAVES = st.sampled_from(NUMBERS + OTHERS)


def documents(values):
    members = st.lists(st.tuples(KEYS, st.sampled_from([":", " : ", ": "]), values), max_size=4)
    objects = members.map(
        lambda some: "{{{}}}".format(",".join(f'"{k}"{c}{v}' for k, c, v in some))
    )
    return objects | st.lists(values, max_size=3).map(lambda some: "[{}]".format(", ".join(some)))


@given(st.recursive(LEAVES, documents, max_leaves=12))
@settings(max_examples=3000)
def test_the_fast_reader_never_differs_from_the_strict_one(document):
    """It may leave a document to the other one; what it reads, that one reads just so."""
    given_bytes = document.encode()
    read = _plain_object(given_bytes)
    if read is None:
        return
    strict = _decode(document)
    assert read == strict
    assert json.dumps(read) == json.dumps(strict)  # 1 is not 1.0


@pytest.mark.parametrize("body", [b'{"inputs":"a: b","parameters":{"n":1}}', b'{"x":[{"y":"z"}]}'])
def test_usual_bodies_are_read_by_the_fast_reader(body):
    assert _plain_object(body) == json.loads(body)


def test_a_key_that_stands_twice_is_named_but_not_at_any_length():
    with pytest.raises(InvalidRequest) as caught:
        load_object(b'{"seed":1,"seed":2}')
    assert "seed" in caught.value.message
    long_key = b'"' + b"k" * 100_000 + b'"'
    with pytest.raises(InvalidRequest) as caught:
        load_object(b"{" + long_key + b":1," + long_key + b":2}")
    assert len(caught.value.message) < 300
