"""Desired against owned, as a table of small worlds."""

from launcher.plan import make_plan


def ids(pairs) -> list[tuple[str, int]]:
    return [(spec.id, handle.generation) for spec, handle in pairs]


def test_what_does_not_run_is_started_in_the_configs_order(make_spec) -> None:
    plan = make_plan([make_spec("b"), make_spec("a")], [])
    assert [spec.id for spec in plan.start] == ["b", "a"]
    assert (plan.adopt, plan.replace, plan.strays) == ((), (), ())


def test_what_runs_unchanged_is_adopted(make_spec, make_handle) -> None:
    plan = make_plan([make_spec("a"), make_spec("b")], [make_handle("b", 7)])
    assert ids(plan.adopt) == [("b", 7)]
    assert [spec.id for spec in plan.start] == ["a"]


def test_what_runs_with_another_fingerprint_is_replaced(make_spec, make_handle) -> None:
    plan = make_plan([make_spec("a")], [make_handle("a", 3, fingerprint="old")])
    assert ids(plan.replace) == [("a", 3)]
    assert (plan.start, plan.adopt, plan.strays) == ((), (), ())


def test_what_nobody_wants_is_a_stray(make_spec, make_handle) -> None:
    plan = make_plan([make_spec("a")], [make_handle("a"), make_handle("gone", 2)])
    assert [stray.replica_id for stray in plan.strays] == ["gone"]


def test_of_two_starts_the_wanted_one_stays_even_if_older(make_spec, make_handle) -> None:
    owned = [make_handle("a", 1), make_handle("a", 2, fingerprint="old")]
    plan = make_plan([make_spec("a")], owned)
    assert ids(plan.adopt) == [("a", 1)]
    assert [stray.generation for stray in plan.strays] == [2]


def test_of_two_equal_starts_the_newest_stays(make_spec, make_handle) -> None:
    plan = make_plan([make_spec("a")], [make_handle("a", 1), make_handle("a", 2)])
    assert ids(plan.adopt) == [("a", 2)]
    assert [stray.generation for stray in plan.strays] == [1]


def test_of_two_outdated_starts_only_the_newest_serves_until_replaced(
    make_spec, make_handle
) -> None:
    owned = [make_handle("a", g, fingerprint=f"old{g}") for g in (1, 2, 3)]
    plan = make_plan([make_spec("a")], owned)
    assert ids(plan.replace) == [("a", 3)]
    assert [stray.generation for stray in plan.strays] == [2, 1]


def test_an_empty_world_needs_nothing() -> None:
    plan = make_plan([], [])
    assert (plan.start, plan.adopt, plan.replace, plan.strays) == ((), (), (), ())
