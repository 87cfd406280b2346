"""Which slot is whose: the rules, and what holds for any edit of any list."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.exceptions import SubmitRecordError
from airflow_provider_luma.submit.slots import assign_slots

Known = dict[int, str]


@pytest.mark.parametrize(
    ("now", "earlier", "charged", "slots"),
    [
        pytest.param("abc", "", "", [0, 1, 2], id="the first try"),
        pytest.param("abc", "abc", "ab", [0, 1, 2], id="the same list"),
        pytest.param("ac", "abc", "abc", [0, 2], id="one is taken out"),
        pytest.param("axbc", "abc", "abc", [0, 4, 1, 2], id="one is inserted"),
        pytest.param("cd", "abcd", "ab", [2, 3], id="the rest"),
        pytest.param("cdef", "abcd", "ab", [2, 3, 4, 5], id="the rest and more"),
        pytest.param("axc", "abc", "abc", [0, 1, 2], id="one renders differently"),
        pytest.param("xyz", "abc", "abc", [0, 1, 2], id="all render differently"),
        pytest.param("cba", "abc", "abc", [2, 1, 0], id="the order is changed"),
        pytest.param("ab", "aab", "\x01b", [1, 2], id="of equal ones that which was paid for"),
        pytest.param("aaa", "a", "a", [0, 1, 2], id="an equal one is added"),
        pytest.param("xy", "abc", "", [3, 4], id="all are others, and none was paid for"),
    ],
)
def test_each_rule(now: str, earlier: str, charged: str, slots: list[int]) -> None:
    known = dict(enumerate(earlier))
    paid = {slot for slot, text in known.items() if text in charged or chr(slot) in charged}
    assert assign_slots(now, known, charged=paid, was_as_long=len(now) == len(earlier)) == slots


def test_a_list_that_no_rule_understands_is_an_error() -> None:
    with pytest.raises(SubmitRecordError, match="changed completely: none of its 2 prompts"):
        assign_slots("xy", dict(enumerate("abc")), charged={1}, was_as_long=False)


@given(
    lists=st.lists(st.text("abcdef", max_size=8), min_size=1, max_size=6),
    data=st.data(),
)
def test_no_edit_makes_a_prompt_lose_what_was_paid_for(lists: list[str], data: st.DataObject) -> None:
    """Each slot is one prompt's, and a prompt that is still there keeps a slot that was paid for."""
    known: Known = {}
    charged: set[int] = set()
    prompts = 0
    for now in lists:
        try:
            slots = assign_slots(now, known, charged=charged, was_as_long=len(now) == prompts)
        except SubmitRecordError:
            assert not set(now) & set(known.values())
            return
        assert len(set(slots)) == len(slots) == len(now)
        is_kept = len(now) == prompts and slots == list(range(len(now)))
        paid = Counter(known[slot] for slot in charged)
        held = Counter(known[slot] for slot in slots if slot in charged)
        for text, number in Counter(now).items():
            assert is_kept or held[text] == min(number, paid[text])
        known |= {slot: text for slot, text in zip(slots, now, strict=True) if slot not in charged}
        charged |= set(data.draw(st.lists(st.sampled_from(slots), unique=True))) if slots else set()
        prompts = len(now)
