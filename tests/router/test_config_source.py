"""Config files: YAML, lines, variables, and what a wrong one is told."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.config import RouterConfig, RouterFile, load_model, read_source
from router.config.yaml_tree import MAX_VALUES
from router.errors import ConfigError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes f.yaml in the current folder, so that messages begin with `f.yaml`."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        path = Path("f.yaml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def load(write):
    return lambda text, env=(): load_model(read_source(write(text), dict(env)), RouterFile)


@pytest.fixture
def problems(load):
    """The lines an operator sees for this file."""

    def problems(text, env=()):
        with pytest.raises(ConfigError) as caught:
            load(text, env)
        assert caught.value.exit_code == 2
        return str(caught.value).splitlines()

    return problems


HASH = "sha256:" + "a" * 64
OTHER_HASH = "sha256:" + "b" * 64

WRONG_KEYS = [
    (f"[{{name: a, hash: '{HASH}'}}, {{name: b, hash: '{HASH}'}}]",
     "router.keys[1].hash: found the hash of keys[0] again, expected each key once"),
    (f"[{{name: a, hash: '{HASH}'}}, {{name: a, hash: '{OTHER_HASH}', max_concurrent: 2}}]",
     "router.keys[1].max_concurrent: found 2, expected what keys[0] of the same name says"),
    ("[{name: a, hash: sk-hunter2}]",
     "router.keys[0].hash: found a text (not shown), "
     "expected a text of the form ^sha256:[0-9a-f]{64}$"),
    ("[{name: a, hash: sk-hunter2, hush: 1}]",
     "router.keys[0].hash: found a text (not shown), "
     "expected a text of the form ^sha256:[0-9a-f]{64}$"),
    ("[sk-hunter2]",
     "router.keys[0]: found a text (not shown), expected a mapping (key: value lines)"),
    ("sk-hunter2", "router.keys: found a text (not shown), expected a list"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "expected"), WRONG_KEYS)
def test_what_is_wrong_with_a_key_is_told_without_the_key(problems, keys, expected):
    found = problems(f"router:\n  keys: {keys}\n")
    assert f"f.yaml:2: {expected}" in found
    assert "hunter2" not in "\n".join(found)


def test_a_private_key_in_the_place_of_its_file_is_not_shown(problems):
    text = "router:\n  tls: {certificate: cert.pem, key: '-----BEGIN hunter2-----'}\n"
    assert problems(text) == [
        'f.yaml:2: router.tls.certificate: found a text "cert.pem", '
        "expected the absolute path of a PEM file",
        "f.yaml:2: router.tls.key: found a text (not shown), "
        "expected the absolute path of a PEM file",
    ]


ROUTER_KEYS = ", ".join(RouterConfig.model_fields)

WRONG_VALUES = [
    ("router: {port: abc}", 'router.port: found a text "abc", expected a whole number'),
    ("router: {port: 1.5}", "router.port: found the number 1.5, expected a whole number"),
    ("router: {port: 70000}", "router.port: found the whole number 70000, expected at most 65535"),
    ("router: {port: }", "router.port: found nothing, expected a whole number"),
    ("router: {port: [1, 2]}", "router.port: found a list of 2 entries, expected a whole number"),
    ("router: {port: on}",
     "router.port: found on, which YAML reads as true, expected a whole number"),
    ("router: {log_calls: 7}",
     "router.log_calls: found the whole number 7, expected true or false"),
    ("router: 5", "router: found the whole number 5, expected a mapping (key: value lines)"),
    (
        "router: {host: no}",
        'router.host: found no, which YAML reads as false, expected a text: write "no", '
        "with the quotes",
    ),
    (
        "router: {host: 3.10}",
        'router.host: found the number 3.10, expected a text: write "3.10", with the quotes',
    ),
    (
        "router: {host: 2024-01-31}",
        "router.host: found the date 2024-01-31, expected a text: "
        'write "2024-01-31", with the quotes',
    ),
    ('router: {host: ""}', 'router.host: found a text "", expected a text of at least 1 character'),
    ("router: {queue: {timeout_s: -1}}",
     "router.queue.timeout_s: found the whole number -1, expected at least 0"),
    ("router: {queue: {timeout_s: .nan}}",
     "router.queue.timeout_s: found the number .nan, expected a finite number"),
    ("router: {timeouts: {total_s: .inf}}",
     "router.timeouts.total_s: found the number .inf, expected a finite number"),
    (
        "router: {policy: least_token}",
        'router.policy: found a text "least_token", expected one of: expected_finish, '
        "least_tokens, least_requests, round_robin, power_of_two, prefix_affinity "
        "(did you mean least_tokens?)",
    ),
    (
        "router: {prot: 1}",
        f"router.prot: found an unknown key, expected one of: {ROUTER_KEYS} (did you mean port?)",
    ),
    ("router: {zzz: 1}", f"router.zzz: found an unknown key, expected one of: {ROUTER_KEYS}"),
    ("replicas: [{}]",
     "replicas[0].url: found nothing, expected base URL, for example http://10.0.0.7:8080"),
    ("replicas: [ftp://x]",
     'replicas[0]: found a text "ftp://x", expected a base URL like http://HOST:PORT'),
    ("replicas: [{url: 'http://a:1', id: -x}]",
     'replicas[0].id: found a text "-x", expected a text of the form '
     "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"),
    # A literal that may be a secret is not repeated.
    ("router: {engine_api_key: 12345}",
     "router.engine_api_key: found the whole number (not shown), expected a text"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), WRONG_VALUES, ids=lambda value: value[:40])
def test_wrong_values_name_line_path_found_and_expected(problems, text, expected):
    assert problems(text) == [f"f.yaml:1: {expected}"]


UNREADABLE = [
    ("", "f.yaml: found an empty file, expected a mapping (key: value lines)"),
    ("# only a comment\n", "f.yaml: found an empty file, expected a mapping (key: value lines)"),
    ("---\n", "f.yaml: found an empty file, expected a mapping (key: value lines)"),
    ("- a\n", "f.yaml:1: found a list, expected a mapping (key: value lines)"),
    ("\nhello\n", 'f.yaml:2: found a single value "hello", expected a mapping (key: value lines)'),
    ("router: {}\n---\nrouter: {}\n",
     "f.yaml:3: found a second document after ---, expected one document per file"),
    ("router:\n\tport: 1\n",
     "f.yaml:2: found a tab, expected spaces: YAML is not indented with tabs"),
    ("router:\n  host: a: b\n",
     "f.yaml:2: found a second ': ' in one line, "
     "expected quotes around a text that has ': ' in it"),
    ("router: {port: ${PORT}}\n",
     'f.yaml:1: found ${ inside [ ] or { }, expected quotes around it there: "${NAME}"'),
    ("router: [1, 2\n", "f.yaml:2: found the end of the file, expected ',' or ']'"),
    ("router:\n  port: 1\n host: a\n",
     "f.yaml:3: found a key less deep than line 2, "
     "expected as deep as line 2 (2 spaces), or as one further up"),
    ("models:\n  - id: a\n    # note\n\n  replicas: 2\n",
     "f.yaml:5: found a key less deep than line 2, "
     "expected as deep as line 2 (4 spaces), or as one further up"),
    ("models:\n  - a\n - b\n",
     "f.yaml:3: found a list item less deep than line 2, "
     "expected as deep as line 2 (2 spaces), or as one further up"),
    ("router:\n  host: a\n   port: 1\n",
     "f.yaml:3: found a key deeper than line 2, which has its value already, "
     "expected as deep as line 2 (2 spaces)"),
    (b"router:\n  host: \xff\n",
     "f.yaml:2: found a byte that is not UTF-8 (0xff), expected a file in UTF-8"),
    ("a: b\nrouter: \x01\n",
     "f.yaml:2: found the control character U+0001, expected printable text"),
    ('router: "\\UFFFFFFFF"\n',
     "f.yaml: found an escape that is no character, expected valid YAML"),
    ("router: *nowhere\n", "f.yaml:1: found undefined alias 'nowhere', expected valid YAML"),
    ("a: " + "[" * 5000,
     "f.yaml: found lists or mappings nested too deep, expected a few levels"),
    ("# " + "x" * 1024 * 1024, "f.yaml: found more than 1 MiB, expected a config of at most 1 MiB"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), UNREADABLE, ids=lambda value: str(value[:30]))
def test_unreadable_files_say_why(problems, text, expected):
    assert problems(text) == [expected]


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^none\.yaml: found no such file, expected a YAML conf"):
        read_source(Path("none.yaml"))


def test_a_directory_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"found a directory, expected a YAML file$"):
        read_source(tmp_path)


def test_a_name_that_is_no_file_name_is_refused():
    with pytest.raises(ConfigError, match="found a file that cannot be read"):
        read_source(Path("a\0b"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_named(write):
    path = write("router: {}")
    path.chmod(0)
    with pytest.raises(ConfigError, match=r"cannot be read \(Permission denied\)"):
        read_source(path)


def test_a_loop_of_links_is_no_file(tmp_path):
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_source(tmp_path / "a")


def test_all_problems_are_told_at_once_in_the_order_of_the_file(problems):
    text = """\
router:
  prot: 1
  port: abc
  queue: {timeout_s: -1}
  port: 2
  timeouts:
    total_s: ${NOPE}
replicas:
  - http://127.0.0.1:1
  - 7
extra: 1
"""
    assert problems(text) == [
        f"f.yaml:2: router.prot: found an unknown key, expected one of: {ROUTER_KEYS} "
        "(did you mean port?)",
        'f.yaml:3: router.port: found a text "abc", expected a whole number',
        "f.yaml:4: router.queue.timeout_s: found the whole number -1, expected at least 0",
        "f.yaml:5: router.port: found this key a second time (first in line 3), "
        "expected each key once",
        "f.yaml:7: router.timeouts.total_s: found ${NOPE}, which is not set, expected NOPE in the "
        "environment, or a default: ${NOPE:-value}",
        "f.yaml:10: replicas[1]: found the whole number 7, expected a mapping (key: value lines)",
        "f.yaml:11: extra: found an unknown key, expected one of: router, replicas, cluster, "
        "models, engine, runtime",
    ]


class TestVariables:
    def test_those_that_values_lack_are_named_with_their_places(self, write):
        text = "router: {host: 'a-${NO}-${NOR}-${YES}-${OR:-x}'}\nreplicas: ['${NO}', '$${NO}']"
        assert read_source(write(text), {"YES": "y"}).unset == {
            ("router", "host"): ("NO", "NOR"),
            ("replicas", 0): ("NO",),
        }

    def test_expand_in_values_with_defaults_and_escapes(self, load):
        text = """\
router:
  host: ${HOST}
  port: ${PORT:-9000}
  log_calls: ${LOG:-no}
  engine_api_key: pre-${KEY}-${OTHER:-x:-y}
  cors_allow_origin: ["$${HOST}", "${EMPTY:-d}", "$HOST"]
"""
        config = load(text, {"HOST": "h", "KEY": "k", "EMPTY": ""}).router
        assert (config.host, config.port, config.log_calls) == ("h", 9000, False)
        assert config.engine_api_key == "pre-k-x:-y"
        assert config.cors_allow_origin == ["${HOST}", "d", "$HOST"]

    def test_do_not_expand_in_keys(self, problems):
        (line,) = problems('router: {"${NAME}": 1}', {"NAME": "port"})
        assert line.startswith("f.yaml:1: router.${NAME}: found an unknown key")

    def test_an_empty_variable_is_an_empty_text(self, load):
        assert load('router: {engine_api_key: "${K}"}', {"K": ""}).router.engine_api_key == ""

    @pytest.mark.parametrize("written", ["${}", "${1A}", "${A-b}", "${A:b}", "${ A }"])
    def test_malformed_references_are_refused(self, problems, written):
        assert problems(f"router: {{host: '{written}'}}", {"A": "a"}) == [
            f'f.yaml:1: router.host: found "{written}", expected ${{NAME}} or ${{NAME:-default}}'
        ]

    @pytest.mark.parametrize(
        "text",
        [
            "router: {port: '${SECRET}'}",
            "router: {log_calls: '${SECRET}'}",
            "router: {policy: '${SECRET}'}",
            "router: {queue: '${SECRET}'}",
            "router: {timeouts: {total_s: '${SECRET}'}}",
            "router: {cors_allow_origin: '${SECRET}'}",
            "replicas: ['${SECRET}']",
            "replicas: [{url: '${SECRET}', id: '${SECRET}'}]",
            "router: '${SECRET}'",
        ],
    )
    def test_values_of_variables_are_never_shown(self, problems, text):
        lines = problems(text, {"SECRET": "-hunter2-"})
        assert "hunter2" not in "\n".join(lines)
        assert all('found what "${SECRET}" expands to' in line for line in lines)

    def test_a_value_that_is_no_text_is_refused(self, problems):
        (line,) = problems("router: {host: '${A}'}", {"A": "\udc80"})
        assert 'found "${A}" with half a character in it' in line


class TestYamlTraps:
    @pytest.mark.parametrize("word", ["yes", "on", "True", "TRUE"])
    def test_words_for_true_work_where_a_boolean_is_expected(self, load, word):
        assert load(f"router: {{log_calls: {word}}}").router.log_calls is True

    @pytest.mark.parametrize(
        ("written", "read"),
        [("0x1F90", 8080), ("8_080", 8080), ("0", 0), ("+1", 1), ("0o17", 15), ("010", 10)],
    )
    def test_whole_numbers(self, load, written, read):
        assert load(f"router: {{port: {written}}}").router.port == read

    def test_exponents_are_numbers(self, load):
        assert load("router: {max_body_bytes: 1e6}").router.max_body_bytes == 1_000_000

    def test_what_yaml_1_1_counts_in_sixties_stays_a_text(self, problems):
        assert problems("router: {port: 1:30}") == [
            'f.yaml:1: router.port: found a text "1:30", expected a whole number'
        ]

    @pytest.mark.parametrize("written", ["9" * 25, "9" * 6000, "2024-13-45"])
    def test_numbers_and_dates_out_of_range_are_refused(self, problems, written):
        (line,) = problems(f"router: {{port: {written}}}")
        assert line.endswith("expected a smaller number, or quotes around a text")

    @pytest.mark.parametrize("tag", ["!secret", "!!python/object/apply:os.system", "!!set"])
    def test_tags_are_refused_and_run_nothing(self, problems, tag):
        for value in ("x", "{a: 1}", "[x]"):
            (line,) = problems(f"router: {{host: {tag} {value}}}")
            assert line.startswith("f.yaml:1: router.host: found the tag")

    def test_texts_no_process_can_be_given_are_refused(self, problems):
        for written in (r'"a\0b"', r'"\ud800"'):
            assert problems(f"router: {{host: {written}}}") == [
                "f.yaml:1: router.host: found a text with a NUL or half a character, "
                "expected a plain text"
            ]

    @pytest.mark.parametrize("key", ["[a]", "{a: b}"])
    def test_keys_are_texts(self, problems, key):
        assert any("as a key, expected a text as key" in line for line in problems(f"? {key}\n: 1"))

    def test_a_byte_order_mark_is_no_part_of_the_first_key(self, load):
        assert load(b"\xef\xbb\xbfrouter: {port: 1}").router.port == 1


class TestAliases:
    def test_anchors_and_merge_keys_work(self, load):
        text = """\
x-base: &base {host: a, port: 1}
x-more: &more {port: 2, log_calls: false}
router:
  port: 3
  <<: [*base, *more]
"""
        config = load(text).router
        assert (config.host, config.port, config.log_calls) == ("a", 3, False)

    def test_a_merged_mapping_keeps_its_own_lines(self, problems):
        assert problems("x-base: &b\n  port: abc\nrouter:\n  <<: *b\n") == [
            'f.yaml:2: router.port: found a text "abc", expected a whole number'
        ]

    @pytest.mark.parametrize(
        "text",
        [
            "router: &a {queue: *a}",
            "router: &a [*a]",
            "router: &a {<<: *a}",
            "&a router: &b {queue: {<<: *b}}",
            "x-a: &a {x: &b {<<: *a, y: *b}}\nrouter: *a",
        ],
    )
    def test_loops_are_refused(self, problems, text):
        assert any(line.endswith("expected no loops") for line in problems(text))

    @pytest.mark.parametrize("value", ["5", "[5]", "[[]]"])
    def test_only_mappings_can_be_merged(self, problems, value):
        (line,) = problems(f"router: {{<<: {value}}}")
        assert line.endswith("expected << with an alias of a mapping")

    @pytest.mark.parametrize("shape", ["[{}]", "{{{}}}"])
    def test_aliases_that_multiply_are_refused_before_they_do(self, problems, shape):
        levels = ["a0: &a0 [x]"]
        for level in range(1, 30):
            aliases = [f"*a{level - 1}"] * 9
            body = (
                f"[{', '.join(aliases)}]"
                if shape == "[{}]"
                else "{" + ", ".join(f"k{i}: {alias}" for i, alias in enumerate(aliases)) + "}"
            )
            levels.append(f"a{level}: &a{level} {body}")
        (line,) = problems("\n".join(levels))
        assert f"more than {MAX_VALUES:,} values" in line

    def test_merges_that_multiply_are_refused_before_they_do(self, problems):
        levels = ["x-0: &a0 {k: 1}"]
        for level in range(1, 60):
            twice = f"[*a{level - 1}, *a{level - 1}]"
            levels += [f"x-{level}: &a{level} {{<<: {twice}}}"]
        (line,) = problems("\n".join([*levels, "router: *a59"]))
        assert f"more than {MAX_VALUES:,} values" in line


yaml_pieces = st.sampled_from(
    ["router", "replicas", "port", "x-a", ": ", ":", "\n", "\n  ", "- ", "[", "]", "{", "}", ",",
     "&a ", "*a", "<<", "!t ", "!!int ", "!!float ", "!!bool ", "!!null ", "!!timestamp ",
     "!!merge ", "!!str ", "!!binary ", "|", ">", "'", '"', "\\", "${A}", "${", "}", "$${", "? ",
     "---", "...", "%YAML 1.1\n", "#", "~", "1.5", "1e999", "0x", "2024-01-01", "no", "\t",
     "http://a:1", "http://[", "\u2028", "\ufeff", "é", "queue", "url"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(), st.lists(yaml_pieces).map("".join)))
@example("router: !!int x")
@example("router: !!bool x")
@example("router: !!timestamp x")
@example("router: !!float 1e999")
@example("replicas: ['http://[']")
@example("replicas: ['http://a:99999']")
@example("? !!merge x\n: 1")
def test_any_text_is_read_or_refused_with_a_reason(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_model(read_source(path, {"A": "a"}), RouterFile)
    except ConfigError as exc:
        told = exc.problems
    else:
        return
    assert told
    assert all(str(problem).isprintable() for problem in told)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_a_reason(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any-bytes.yaml"
    path.write_bytes(data)
    try:
        load_model(read_source(path, {}), RouterFile)
    except ConfigError as exc:
        told = exc.problems
    else:
        return
    assert told
