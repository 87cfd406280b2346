"""Hypothesis strategies: any JSON, and responses of relays with some values replaced."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from airflow_provider_luma.exceptions import LumaError

CORPUS = [json.loads(file.read_text()) for file in sorted((Path(__file__).parent / "corpus").glob("*.json"))]
WORDS = (
    *(
        "id",
        "task_id",
        "data",
        "code",
        "message",
        "state",
        "status",
        "fail_reason",
        "failure_reason",
        "error",
    ),
    *("video", "video_raw", "url", "download_url", "request", "prompt", "created_at", "duration", "detail"),
    *("assets", "artifact", "success", "completed", "failed", "SUCCESS", "FAILURE", "task_not_exist", "200"),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(WORDS)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=25,
)


@st.composite
def changed_responses(draw: st.DrawFn) -> Any:
    """Take a known response of a relay, and replace a few of its values by anything."""
    response = [copy.deepcopy(draw(st.sampled_from(CORPUS)))]
    for _ in range(draw(st.integers(0, 4))):
        holder: Any = response
        while True:
            key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
            if not isinstance(holder[key], dict | list) or not holder[key] or draw(st.booleans()):
                break
            holder = holder[key]
        holder[key] = draw(JSON)
    return response[0]


RESPONSES = changed_responses() | JSON


def rejection(call: Callable[..., object], *arguments: Any, **named: Any) -> LumaError | None:
    """Call this; give the error that refuses the arguments, if there is one."""
    try:
        call(*arguments, **named)
    except LumaError as error:
        return error
    return None
