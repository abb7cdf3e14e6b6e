"""Which layers a step leaves out: the draws and their weights, the changes, the refusals."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from space.examples import DOWN, MIDDLE, UP

from autodiffusion_opt.errors import UserError
from autodiffusion_opt.space import LayerRanking
from autodiffusion_opt.space.layer_choice import AnyLayers, RankedLayers

RANKING = LayerRanking((UP, DOWN, MIDDLE), 0, 999)
ANY, WEIGHTED, RANKED = AnyLayers(UP), AnyLayers(UP, RANKING), RankedLayers(RANKING)
DRAWS = 6000


def frequencies(layers: list[tuple[int, ...]]) -> list[float]:
    counts = Counter(layer for drawn in layers for layer in drawn)
    return [counts[layer] / len(layers) for layer in UP]


def test_a_ranking_has_an_order_for_each_third_of_the_times() -> None:
    assert [RANKING.at(time) for time in (999, 667, 666, 334, 333, 0)] == [UP, UP, DOWN, DOWN, MIDDLE, MIDDLE]


def test_the_less_a_layer_matters_the_more_often_it_is_removed() -> None:
    rng = np.random.default_rng(0)
    expected = np.exp(-4 * np.arange(10) / 10)
    expected /= expected.sum()  # 0.336, 0.225, 0.151 ... 0.0092
    noisy = frequencies([WEIGHTED.resized(999, (), 1, rng) for _ in range(DRAWS)])
    np.testing.assert_allclose(noisy, expected, atol=0.02)
    middle = frequencies([WEIGHTED.resized(500, (), 1, rng) for _ in range(DRAWS)])
    np.testing.assert_allclose(middle, expected[::-1], atol=0.02)


def test_the_more_a_layer_matters_the_more_often_it_is_given_back() -> None:
    rng = np.random.default_rng(0)
    stay = frequencies([WEIGHTED.resized(999, UP, 5, rng) for _ in range(1000)])
    assert stay[0] > 0.9
    assert stay[9] < 0.15
    assert stay == sorted(stay, reverse=True)


def test_without_a_ranking_every_layer_is_removed_equally_often() -> None:
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(frequencies([ANY.resized(999, (), 1, rng) for _ in range(DRAWS)]), 0.1, atol=0.015)


@pytest.mark.parametrize("choice", [ANY, WEIGHTED])
def test_resized_sets_have_all_they_can_in_common(choice: AnyLayers) -> None:
    rng = np.random.default_rng(0)
    for count in range(11):
        layers = choice.resized(500, (2, 5, 7), count, rng)
        assert list(layers) == sorted(set(layers))
        assert len(layers) == count
        assert len({2, 5, 7}.intersection(layers)) == min(count, 3)


def test_layers_that_may_not_be_removed_are_dropped_when_a_set_is_resized() -> None:
    rng = np.random.default_rng(0)
    assert AnyLayers((1, 3, 5)).resized(0, (0, 3), 1, rng) == (3,)
    assert AnyLayers((1, 3, 5)).resized(0, (0, 2, 4), 0, rng) == ()


def test_nothing_is_drawn_where_there_is_no_choice() -> None:
    rng = np.random.default_rng(0)
    ANY.resized(0, (2, 5), 2, rng)
    ANY.resized(0, (2, 5), 0, rng)
    ANY.resized(0, (), 10, rng)
    ANY.changed(0, (), 0, rng)
    RANKED.resized(0, (), 3, rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_a_change_adds_gives_back_or_exchanges_equally_often() -> None:
    rng = np.random.default_rng(0)
    before = {1, 4, 6, 8}
    kinds: Counter[str] = Counter()
    numbers: Counter[int] = Counter()
    for _ in range(DRAWS):
        after = set(ANY.changed(0, tuple(before), 8, rng))
        added, back = len(after - before), len(before - after)
        assert added == back or not (added and back)
        kinds["exchange" if added and back else "add" if added else "back"] += 1
        numbers[max(added, back)] += 1
    assert all(abs(kinds[kind] / DRAWS - 1 / 3) < 0.03 for kind in ("add", "back", "exchange"))
    # 1, 2, 3 layers with chances 1/2, 1/4, 1/8; all that is left at 4, the most that each of the three can change.
    np.testing.assert_allclose([numbers[n] / DRAWS for n in (1, 2, 3, 4)], [0.5, 0.25, 0.125, 0.125], atol=0.03)


def test_a_change_adds_layers_that_matter_less_and_gives_back_those_that_matter_more() -> None:
    rng = np.random.default_rng(0)
    children = [set(WEIGHTED.changed(999, (1, 2, 7, 8), 8, rng)) for _ in range(2000)]
    added = Counter(layer for child in children for layer in child - {1, 2, 7, 8})
    given_back = Counter(layer for child in children for layer in {1, 2, 7, 8} - child)
    assert added[0] > 5 * added[9]
    assert given_back[8] > 2 * given_back[1]


def test_a_change_keeps_the_greatest_number_of_layers() -> None:
    rng = np.random.default_rng(0)
    children = [ANY.changed(0, (1, 4, 8), 5, rng) for _ in range(300)]
    assert (1, 4, 8) not in children
    assert {len(child) for child in children} == {0, 1, 2, 3, 4, 5}
    assert all(list(child) == sorted(set(child)) for child in children)


def test_where_all_layers_are_removed_a_change_gives_some_back() -> None:
    rng = np.random.default_rng(0)
    assert {len(ANY.changed(0, UP, 10, rng)) for _ in range(300)} >= {9, 8, 7, 6}
    assert ANY.changed(0, (), 0, rng) == ()
    assert len(ANY.changed(0, (), 1, rng)) == 1


def test_any_layers_are_spread_evenly_where_parameters_say_only_how_many() -> None:
    choice = AnyLayers(tuple(range(0, 20, 2)))
    assert choice.chosen(0, 1) == (10,)
    assert choice.chosen(0, 2) == (4, 14)
    assert all(len(set(choice.chosen(0, count))) == count for count in range(11))


def test_ranked_layers_are_the_least_important_of_their_third() -> None:
    assert [RANKED.chosen(time, 3) for time in (999, 500, 0)] == [(0, 1, 2), (7, 8, 9), (4, 5, 6)]
    assert RANKED.resized(500, (0, 1, 2), 2, np.random.default_rng(0)) == (8, 9)
    assert RANKED.removable == UP
    assert (RANKED.fully_parametric, ANY.fully_parametric) == (True, False)


def test_a_change_of_a_ranked_number_goes_both_ways_equally_often() -> None:
    rng = np.random.default_rng(0)
    steps = Counter(len(RANKED.changed(999, (0, 1, 2, 3, 4), 10, rng)) - 5 for _ in range(DRAWS))
    assert abs(sum(steps[step] for step in steps if step > 0) / DRAWS - 0.5) < 0.03
    np.testing.assert_allclose([steps[step] / DRAWS for step in (-2, -1, 1, 2)], [0.125, 0.25, 0.25, 0.125], atol=0.03)


def test_a_change_of_a_ranked_number_stays_between_none_and_the_greatest() -> None:
    rng = np.random.default_rng(0)
    for before in range(6):
        numbers = {len(RANKED.changed(0, RANKED.chosen(0, before), 5, rng)) for _ in range(200)}
        assert before not in numbers
        assert {max(before - 1, 0), min(before + 1, 5)} - {before} <= numbers <= set(range(6))
    assert RANKED.changed(0, (), 0, rng) == ()


def test_a_layer_that_is_not_removable_is_refused_by_its_index() -> None:
    AnyLayers((1, 3)).check(0, (1, 3))
    with pytest.raises(UserError, match=r"only the layers \[1, 3\] may be removed; got \[2\]"):
        AnyLayers((1, 3)).check(0, (1, 2))


def test_a_set_that_does_not_follow_the_ranking_is_refused() -> None:
    RANKED.check(900, (0, 1))
    with pytest.raises(UserError, match=r"at time 900 a step with 1 layer removed must remove \[0\]; got \[1\]"):
        RANKED.check(900, (1,))
    with pytest.raises(UserError, match=r"with 2 layers removed must remove \[8, 9\]; got \[0, 1\]"):
        RANKED.check(500, (0, 1))
