"""Which slot is whose: the rules, and what holds for any edit of any list."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.exceptions import SubmitRecordError
from airflow_provider_luma.submit.journal_slots import assign_slots

Known = dict[int, str]


def assign(now: str, known: Known, charged: set[int], *, was_edited: bool) -> list[int]:
    return assign_slots(now, known, charged=dict.fromkeys(charged, True), was_edited=was_edited)


@pytest.mark.parametrize(
    ("now", "earlier", "charged", "slots"),
    [
        pytest.param("abc", "", "", [0, 1, 2], id="the first try"),
        pytest.param("abc", "abc", "ab", [0, 1, 2], id="the same list"),
        pytest.param("ac", "abc", "abc", [0, 2], id="one is taken out"),
        pytest.param("axbc", "abc", "abc", [0, 3, 1, 2], id="one is inserted"),
        pytest.param("cd", "abcd", "ab", [2, 3], id="the rest"),
        pytest.param("axc", "abc", "abc", [0, 1, 2], id="one renders differently"),
        pytest.param("xyz", "abc", "abc", [0, 1, 2], id="all render differently"),
        pytest.param("cba", "abc", "abc", [2, 1, 0], id="the order is changed"),
        pytest.param("ab", "aab", "\x01b", [1, 2], id="of equal ones that which was paid for"),
        pytest.param("aaa", "a", "a", [0, 1, 2], id="an equal one is added"),
        pytest.param("xy", "abc", "", [0, 1], id="all are others, and none was paid for"),
        pytest.param("bx", "abc", "b", [1, 3], id="a rejected one is replaced, and the list is shorter"),
    ],
)
def test_each_rule(now: str, earlier: str, charged: str, slots: list[int]) -> None:
    known = dict(enumerate(earlier))
    paid = {slot for slot, text in known.items() if text in charged or chr(slot) in charged}
    assert assign(now, known, paid, was_edited=len(now) != len(earlier)) == slots


@pytest.mark.parametrize(
    ("now", "was_edited"),
    [
        pytest.param("xy", True, id="another list of another length"),
        pytest.param("xyz", True, id="all render differently after an edit"),
        pytest.param("bcx", False, id="the first is removed, and another one is appended"),
        pytest.param("cdef", True, id="the rest and more"),
        pytest.param("cbx", False, id="the order is changed, and one is replaced"),
    ],
)
def test_a_list_that_may_pay_twice_is_an_error(now: str, was_edited: bool) -> None:
    with pytest.raises(SubmitRecordError, match="are new, or render differently"):
        assign(now, dict(enumerate("abc")), {0}, was_edited=was_edited)


def test_of_equal_prompts_the_one_with_an_id_is_kept() -> None:
    known = dict(enumerate("aab"))
    assert assign_slots("ab", known, charged={0: False, 1: True, 2: True}, was_edited=True) == [1, 2]


@given(
    lists=st.lists(st.text("abcdef", max_size=8), min_size=1, max_size=6),
    data=st.data(),
)
def test_no_edit_pays_twice_or_gives_a_prompt_the_task_of_another(
    lists: list[str], data: st.DataObject
) -> None:
    """But a prompt that was replaced in a list never edited may have rendered differently."""
    known: Known = {}
    charged: set[int] = set()
    size, is_edited = 0, False
    for now in lists:
        was_edited = is_edited or len(now) != size
        try:
            slots = assign(now, known, charged, was_edited=was_edited)
        except SubmitRecordError:
            paid = Counter(known[slot] for slot in charged)
            assert paid - Counter(now)
            assert Counter(now) - Counter(known.values())
            return
        assert len(set(slots)) == len(slots) == len(now)
        in_place = not was_edited and slots == list(range(len(now)))
        paid = Counter(known[slot] for slot in charged)
        held = Counter(known[slot] for slot in slots if slot in charged)
        for position, slot in enumerate(slots):
            assert in_place or slot not in charged or known[slot] == now[position]
        for text, number in Counter(now).items():
            assert in_place or held[text] == min(number, paid[text])
        known |= {slot: text for slot, text in zip(slots, now, strict=True) if slot not in charged}
        is_edited = bool(charged) and (was_edited or slots != list(range(len(now))))
        size = max([*slots, *charged, size - 1 if charged else -1], default=-1) + 1
        charged |= set(data.draw(st.lists(st.sampled_from(slots), unique=True))) if slots else set()
