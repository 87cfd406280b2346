"""A body of any size and kind: decoded or rejected, and other threads run meanwhile."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext

import pytest

from airflow_provider_luma.relay.decode import (
    FAST_VALUES,
    MAX_VALUES,
    TooManyValuesError,
    count_values,
    decode_json,
)

VALUES = [1, -1.5e300, "a,[{\u20ac\ud83d", None, True, {}, [], {"a": [{"b": "c"}]}]


@pytest.mark.parametrize("number", [1, FAST_VALUES // 16, FAST_VALUES // 4])
def test_every_size_is_decoded_alike(number):
    values = [VALUES[n % len(VALUES)] for n in range(number)]
    assert decode_json(json.dumps(values).encode()) == values


def test_more_values_than_any_response_needs_are_rejected_by_name():
    with pytest.raises(TooManyValuesError, match=f"more than {MAX_VALUES} JSON values"):
        decode_json(b"[" + b"[]," * MAX_VALUES + b"[]]")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1,]", b"\xff" * 10, b"[" * 100_000, b"<html>" + b"," * FAST_VALUES]
)
def test_invalid_json_is_an_error(body):
    with pytest.raises((ValueError, RecursionError)):
        decode_json(body)


def longest_pause(body):
    """Return how long this thread was held up at most while another one decodes."""

    def pauses(until):
        longest = 0.0
        while not until.is_set():
            started = time.perf_counter()
            time.sleep(0.001)
            longest = max(longest, time.perf_counter() - started - 0.001)
        return longest

    done = threading.Event()

    def decode():
        time.sleep(0.01)  # until this thread is watched
        decode_json(body)
        done.set()

    with ThreadPoolExecutor() as threads:
        threads.submit(decode)
        return pauses(done)


@pytest.mark.parametrize("item", [b"[]", b"{}", b"1", b'"a"', b'{"a":[1]}'])
def test_a_large_body_does_not_block_other_threads_for_long(item):
    body = b"[" + b",".join([item] * (MAX_VALUES // (count_values(item + b",") - 1) - 50)) + b"]"
    assert FAST_VALUES < count_values(body) <= MAX_VALUES
    # Another process may take the core meanwhile, which is nobody's fault: the best of some attempts counts.
    assert min(longest_pause(body) for _ in range(5)) < 0.1


@pytest.mark.parametrize("chars", [60, 180, 770])
def test_long_fractions_do_not_block_other_threads_for_long(chars):
    with localcontext(prec=800):  # halfway between two numbers, so that each digit counts
        halfway = format(Decimal(2**53 + 1) * Decimal(2) ** -1075, "e")
    digits, _, exponent = halfway.partition("e")
    number = f"{digits[: chars - 1 - len(exponent)]}e{exponent}".encode()
    body = b"[" + b",".join([number] * min(FAST_VALUES - 20, 8_000_000 // len(number))) + b"]"
    assert count_values(body) <= FAST_VALUES
    assert min(longest_pause(body) for _ in range(5)) < 0.1


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("5.041667", 5.041667),
        ("-1.7976931348623157e+308", -1.7976931348623157e308),
        ("5.04166700000000016501786376466043293476104736328125", 5.041667),
        ("0." + "1" * 1_000_000, 1 / 9),
        ("1" * 50 + ".5", None),
        ("5.04166700000000016501786376466043293476104736328125e-2", None),
    ],
)
def test_a_fraction_of_many_digits_is_rounded_or_left_out(number, value):
    assert decode_json(f"[{number}]".encode()) == [value]


@pytest.mark.parametrize("shift", range(4))
def test_surrogates_are_decoded_wherever_they_stand(shift):
    text = "x" * shift + "\ud83d\ude00\u20ac" * 50_000
    assert (
        decode_json(b"\xef\xbb\xbf" + json.dumps(text, ensure_ascii=False).encode(errors="surrogatepass"))
        == text
    )


@pytest.mark.parametrize(
    "body", [b"\xed\xa0\xbd\xed\xb8\x80" * 1_300_000, b"\xed\xa0\xbd" * 2_600_000], ids=["pairs", "halves"]
)
def test_surrogates_do_not_block_other_threads_for_long(body):
    assert min(longest_pause(b'["' + body + b'"]') for _ in range(5)) < 0.1
