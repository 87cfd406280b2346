from __future__ import annotations

import json

import pytest

from airflow_provider_luma.exceptions import LumaValueError
from airflow_provider_luma.relay.batch import parse_task_ids

A = "4665a07c-7641-4809-a133-10786201bb56"
B = "luma_gen_abc123"


class LazyXCom:
    """Iterable as what a mapped task pushed: it has a length and items, and is no list."""

    def __iter__(self):
        return iter([A, B])

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ([A, B], [A, B]),
        ([B, A, B, A], [B, A]),
        ((A, B), [A, B]),
        ({A: None, B: None}.keys(), [A, B]),
        (iter([A, B]), [A, B]),
        (LazyXCom(), [A, B]),
        (A, [A]),
        (f"  {A}\n", [A]),
        ([f" {A} ", A], [A]),
        (json.dumps([A, B]), [A, B]),
        (json.dumps([A, B], indent=2), [A, B]),
        (str([A, B]), [A, B]),
        (f" ['{A}', \"{B}\",] ", [A, B]),
        ([], []),
        ((), []),
        ("[]", []),
        (" [ ] ", []),
    ],
)
def test_ids_are_parsed_in_every_form_that_users_and_templates_pass(given, ids):
    assert parse_task_ids(given) == ids


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (None, "must be a list of ids, one id or a JSON list, not None"),
        (5, "must be a list of ids, one id or a JSON list, not 5"),
        (True, "must be a list of ids"),
        ({A, B}, "must be a list, not a set"),
        (frozenset({A}), "must be a list, not a set"),
        (1.5, "must be a list of ids"),
        ({A: 1}, "must be a list of ids"),
        ("", r"luma_task_ids\[0\] must be a non-empty string, not ''"),
        (" \n", r"luma_task_ids\[0\] must be a non-empty string"),
        ([A, ""], r"luma_task_ids\[1\] must be a non-empty string, not ''"),
        ([A, "  "], r"luma_task_ids\[1\]"),
        ([A, None], r"luma_task_ids\[1\] must be a non-empty string, not None"),
        ([A, 5], r"luma_task_ids\[1\] must be a non-empty string, not 5"),
        ([[A], B], r"luma_task_ids\[0\]"),
        ([{"id": A}], r"luma_task_ids\[0\]"),
        (A.encode(), r"luma_task_ids\[0\]"),
        ("[1, 2]", r"luma_task_ids\[0\] must be a non-empty string, not 1"),
        (f'["{A}", null]', r"luma_task_ids\[1\]"),
        (f"['{A}'", "looks like a list but cannot be read as one"),
        (f"[{A}]", "looks like a list but cannot be read as one"),
        ("[{[]: 1}]", "looks like a list but cannot be read as one"),
        ("[\0]", "looks like a list but cannot be read as one"),
        ("[" * 10_000, "looks like a list but cannot be read as one"),
        ("[__import__('os').getcwd()]", "looks like a list but cannot be read as one"),
    ],
)
def test_an_invalid_id_is_rejected_with_its_position(given, complaint):
    with pytest.raises(LumaValueError, match=complaint):
        parse_task_ids(given)


def test_an_error_is_short_however_long_the_argument():
    for given in ({"x" * 10_000: 1}, [["x" * 10_000]], "[" + "x" * 10_000):
        with pytest.raises(LumaValueError) as caught:
            parse_task_ids(given)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["None", "null", "a, b", "('a', 'b')", '{"a": 1}', "a b", '"a"'])
def test_text_that_cannot_be_an_id_is_rejected_before_it_is_missing(text):
    with pytest.raises(LumaValueError, match="which is not a task id"):
        parse_task_ids(text)
