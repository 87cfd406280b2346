"""What the gallery makes of task instances and their XComs: its pure module, run by Node.js."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import airflow_provider_luma
from tests.stores import tool

MODULE = Path(airflow_provider_luma.__file__).parent / "ui/static/clips.js"
SCRIPT = f"""
import {{ readFileSync }} from "node:fs";
import {{ buildClips }} from {json.dumps(MODULE.as_uri())};
console.log(JSON.stringify(buildClips(JSON.parse(readFileSync(0)))));
"""


def instance(operator: str, task_id: str = "task", **fields: Any) -> dict[str, Any]:
    return {
        "operator_name": f"Luma{operator}",
        "task_id": task_id,
        "map_index": -1,
        "state": "success",
        "start_date": "2026-01-01T00:00:00Z",
        "rendered_fields": {},
    } | fields


def build(*entries: tuple[dict[str, Any], Any]) -> dict[str, Any]:
    told = json.dumps([{"instance": one, "values": values} for one, values in entries])
    command = [tool("node"), "--input-type=module", "--eval", SCRIPT]
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built: dict[str, Any] = json.loads(done.stdout)
    return built


def states(built: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    return {clip["key"]: (clip["state"], clip.get("reason")) for clip in built["clips"]}


GENERATE = (
    instance("GenerateOperator", "generate", rendered_fields={"prompt": "cat dance"}),
    {"return_value": "1", "luma_task": {"id": "1", "page": "https://relay.example.com/1"}},
)
RECORD = {
    "id": "1",
    "state": "completed",
    "prompt": "cat dance!",
    "duration": 5,
    "video": {"uri": "s3://b/1.mp4", "size": 7},
    "status": "downloaded",
}


def test_later_tasks_have_the_last_word_in_any_order() -> None:
    download = (instance("DownloadOperator", "download"), {"return_value": [RECORD]})
    sensor = (instance("TaskSensor", "wait"), {"return_value": ["1"], "luma_summary": {"completed": 1}})
    for entries in ((GENERATE, sensor, download), (download, sensor, GENERATE)):
        (clip,) = build(*entries)["clips"]
        assert (clip["prompt"], clip["state"], clip["page"]) == (
            "cat dance!",
            "completed",
            "https://relay.example.com/1",
        )
        assert [owner["taskId"] for owner in clip["owners"]] == ["generate", "wait", "download"]
        assert clip["owner"] == {"taskId": "download", "mapIndex": -1}


def test_a_summary_says_which_clips_failed_are_missing_or_run() -> None:
    waiting = instance("TaskSensor", state="failed", rendered_fields={"luma_task_ids": ["1", "2", "3", "4"]})
    summary = {"completed": 1, "failed": {"2": "moderated"}, "missing": ["3"], "running": ["4"]}
    assert states(build((waiting, {"luma_summary": summary}))) == {
        "1": ("completed", None),
        "2": ("failed", "moderated"),
        "3": ("missing", "The relay does not know this id"),
        "4": ("running", None),
    }


@pytest.mark.parametrize("ids", [["1", "2"], "['1', '2']", '["1", "2"]'])
def test_a_sensor_that_waits_names_its_clips(ids: Any) -> None:
    waiting = instance("TaskSensor", state="deferred", rendered_fields={"luma_task_ids": ids})
    assert states(build((waiting, {}))) == {"1": ("running", None), "2": ("running", None)}


def test_submitted_clips_run_while_a_sensor_waits_that_does_not_name_them() -> None:
    assert states(build(GENERATE)) == {"1": ("submitted", None)}
    waiting = instance("TaskSensor", state="running")
    assert states(build(GENERATE, (waiting, {}))) == {"1": ("running", None)}


def test_a_generate_task_without_a_luma_task() -> None:
    failed = (instance("GenerateOperator", map_index=0, state="failed"), {})
    queued = (instance("GenerateOperator", map_index=1, state="queued"), {})
    skipped = (instance("GenerateOperator", map_index=2, state="skipped"), {})
    found = build(failed, queued, skipped)["clips"]
    assert [(clip["state"], clip["id"]) for clip in found] == [("failed", None), ("waiting", None)]


def test_a_generate_task_that_waited_has_the_record() -> None:
    record = {"id": "1", "state": "completed", "prompt": "cat", "width": 640, "height": 360}
    (clip,) = build((GENERATE[0], {"return_value": record}))["clips"]
    assert (clip["state"], clip["width"]) == ("completed", 640)


def test_a_batch_has_clips_rejections_and_unknown_outcomes() -> None:
    prompts = ["one", {"prompt": "two"}, "three", "four"]
    batch = instance("GenerateBatchOperator", rendered_fields={"prompts": prompts})
    submits = {"created": 2, "rejected": {"1": "moderated"}, "unknown": [2], "not_submitted": 0}
    found = build((batch, {"return_value": ["a", "b"], "luma_submits": submits}))["clips"]
    assert [(clip["prompt"], clip["id"], clip["state"]) for clip in found] == [
        ("one", "a", "submitted"),
        ("four", "b", "submitted"),
        ("two", None, "rejected"),
        ("three", None, "unknown"),
    ]


def test_a_batch_whose_prompts_cannot_be_told_apart_names_none() -> None:
    batch = instance("GenerateBatchOperator", rendered_fields={"prompts": ["one", "two"]})
    submits = {"created": 1, "rejected": {}, "unknown": [], "not_submitted": 1}
    (clip,) = build((batch, {"return_value": ["a"], "luma_submits": submits}))["clips"]
    assert "prompt" not in clip


def test_a_manifest_is_named_with_its_counts() -> None:
    manifest = {"manifest": "s3://b/m.jsonl", "completed": 5, "failed": 1}
    built = build((instance("DownloadOperator"), {"return_value": manifest}))
    assert built["clips"] == []
    assert built["manifests"] == [{"taskId": "task", "uri": "s3://b/m.jsonl", "counts": manifest}]


def test_the_records_of_a_manifest_are_clips() -> None:
    manifest = {"manifest": "s3://b/m.jsonl", "completed": 5, "failed": 1}
    rows = [
        RECORD,
        {"id": "2", "state": "failed", "status": "failed", "error": "moderated"},
        {"id": "3", "state": None, "status": "missing", "error": "the relay does not know this id"},
        {"id": "4", "state": "completed", "status": "error", "error": "404"},
    ]
    built = build((instance("DownloadOperator"), {"return_value": manifest, "records": rows}))
    assert built["manifests"] == []
    assert states(built) == {
        "1": ("completed", None),
        "2": ("failed", "moderated"),
        "3": ("missing", "the relay does not know this id"),
        "4": ("error", "404"),
    }


def test_of_records_with_the_same_id_the_first_counts() -> None:
    """As for the server, which serves the files of the first, and knows ids that are texts."""
    second = RECORD | {"prompt": "another", "video": {"uri": "s3://b/2.mp4", "size": 8}}
    failed = {"id": "1", "state": "failed", "status": "failed", "error": "moderated"}
    records = [RECORD | {"id": 1, "prompt": "a number"}, RECORD, second, failed]
    manifest = {"manifest": "s3://b/m.jsonl", "completed": 1}
    for values in ({"return_value": records}, {"return_value": manifest, "records": records}):
        (clip,) = build((instance("DownloadOperator"), values))["clips"]
        assert (clip["prompt"], clip["state"]) == ("cat dance!", "completed")
        assert clip["files"]["video"] == RECORD["video"]
        assert clip["record"] == RECORD


def test_a_partial_record_has_its_reason() -> None:
    partial = RECORD | {"status": "partial", "error": "thumbnail: 404", "thumbnail": None}
    assert states(build((instance("DownloadOperator"), {"return_value": [partial]}))) == {
        "1": ("partial", "thumbnail: 404")
    }


def test_another_operator_counts_when_it_returns_records() -> None:
    mine = instance("", operator_name="MyDownload")
    assert len(build((mine, {"return_value": [RECORD]}))["clips"]) == 1
    assert build((mine, {"return_value": [{"id": 1, "rows": 3}]}))["clips"] == []


def test_nonsense_in_xcom_hurts_nothing() -> None:
    ids = [None, 1, "x", [], {}, {"id": {}}, {"id": []}, {"id": "__proto__", "video": {"uri": "x"}}]
    values = [None, 1, "text", [], {}, ids, {"manifest": 3}, {"failed": 7, "missing": {}, "running": "x"}]
    keys = ("return_value", "luma_task", "luma_summary", "luma_submits")
    fields = ("prompts", "prompt", "luma_task_ids")
    odd = [
        (instance(f"{kind}", rendered_fields=rendered, state=state), dict.fromkeys(keys, value))
        for kind in ("GenerateOperator", "GenerateBatchOperator", "TaskSensor", "DownloadOperator", "Other")
        for value in values
        for rendered in (None, dict.fromkeys(fields, value))
        for state in ("success", "running", "failed")
    ]
    good = (instance("DownloadOperator", "download"), {"return_value": [RECORD]})
    (clip,) = [clip for clip in build(*odd, good)["clips"] if clip["id"] == "1"]
    assert clip["record"] == RECORD


def test_a_page_that_is_no_web_address_is_no_link() -> None:
    for page in ("javascript:alert(1)", "data:text/html,x", "https:///x", "http:x", "http:/x", 7):
        (clip,) = build((GENERATE[0], {"return_value": "1", "luma_task": {"id": "1", "page": page}}))["clips"]
        assert "page" not in clip


ODD = [
    {"toString": 1},
    {"toString": 1, "valueOf": 1},
    ["x"],
    "constructor",
    "__proto__",
    "toString",
    7,
    1e308,
    None,
    True,
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_bad_record_hurts_no_other(odd: Any) -> None:
    names = ("state", "status", "error", "prompt", "duration", "width", "video", "thumbnail", "created_at")
    bad = [RECORD | {"id": f"bad-{name}", name: odd} for name in names]
    bad += [RECORD | {"id": "bad-uri", "video": {"uri": odd}}, RECORD | {"id": odd}]
    built = build((instance("DownloadOperator"), {"return_value": [*bad, RECORD]}))
    assert built["clips"][-1]["key"] == "1"
    assert len(built["clips"]) >= len(names)
    assert {clip["state"] for clip in built["clips"]} <= {"completed"}
    for clip in built["clips"]:
        assert all(isinstance(file["uri"], str) for file in clip["files"].values())


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_bad_xcom_of_one_task_hurts_no_other(odd: Any) -> None:
    summary = {"failed_not_listed": odd, "failed": odd, "missing": odd, "running": [odd]}
    submits = {
        "unknown": [odd],
        "rejected": odd,
        "rejected_not_listed": odd,
        "not_submitted": odd,
        "page": odd,
    }
    sensor = (instance("TaskSensor", rendered_fields={"luma_task_ids": odd}), {"luma_summary": summary})
    batch = (instance("GenerateBatchOperator"), {"return_value": ["a"], "luma_submits": submits})
    download = (instance("DownloadOperator", "download"), {"return_value": [RECORD]})
    built = build(sensor, batch, download)
    assert {"1", "a"} <= {clip["key"] for clip in built["clips"]}
    assert isinstance(built["truncated"], int)


def test_each_clip_of_a_batch_has_its_page_at_the_relay() -> None:
    submits = {"created": 2, "rejected": {}, "unknown": [], "not_submitted": 0}
    for template, page in (
        ("https://relay.example.com/{id}?all", "https://relay.example.com/a%2Fb?all"),
        ("javascript:alert('{id}')", None),
    ):
        values = {"return_value": ["a/b"], "luma_submits": submits | {"page_template": template}}
        (clip,) = build((instance("GenerateBatchOperator"), values))["clips"]
        assert clip.get("page") == page
