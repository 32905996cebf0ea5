"""What models' replicas are called, and that they go on being called so."""

import pytest

from launcher.replica_ids import names_given, short_names


@pytest.mark.parametrize(
    ("given", "models", "expected"),
    [
        # 1. A model beside the only one, before or after it.
        ({"org/a": "replica"}, ["org/a", "org/b"], ["replica", "b"]),
        ({"org/a": "replica"}, ["org/b", "org/a"], ["b", "replica"]),
        # 2. The other one goes again.
        ({"org/a": "a", "org/b": "b"}, ["org/b"], ["b"]),
        # 3. A name that would be the shortest for a new one, too.
        ({"x/m": "m"}, ["x/m", "y/m"], ["m", "y-m"]),
        ({"x/m": "replica"}, ["x/m", "replica"], ["replica", "replica-2739"]),
        ({"x/m": "replica"}, ["x/m", "a/replica"], ["replica", "replica-a969"]),
        # 4. Of models that are no more nothing is kept: who comes instead takes over.
        ({"org/a": "replica"}, ["org/b"], ["replica"]),
        ({"org/a": "replica", "c": "c"}, ["org/b", "c"], ["b", "c"]),
        # 5. Two of one name were never given.
        ({"a": "m", "b": "m"}, ["a", "b"], ["a", "b"]),
    ],
)
def test_a_model_keeps_the_name_it_was_given(given, models, expected):
    assert short_names(models, given) == expected


def test_names_are_the_same_once_they_are_given():
    models = ["a/x", "b/x", "a_b", "a-b", "模型", "y" * 300, "c/y.gguf"]
    names = short_names(models)
    assert len(set(names)) == len(models)
    given = names_given((f"{name}-11", model) for name, model in zip(names, models, strict=True))
    assert short_names(models[::-1], given) == names[::-1]


def test_what_is_no_replicas_id_gives_no_name():
    found = [("replica-0", "a"), ("b", "b"), ("c-x", "c"), ("../d-0", "d"), ("e.f-g-10", "e")]
    assert names_given(found) == {"a": "replica", "e": "e.f-g"}
