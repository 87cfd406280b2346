"""What the gallery reads, and when it reads again, on runs that the tests make up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from airflow_provider_luma import sandbox
from tests.ui.conftest import Airflow
from tests.ui.seeds import record

pytestmark = pytest.mark.ui

Answer = Callable[[str, int], Any]

THUMBNAIL = (Path(sandbox.__file__).parent / "media_files/thumbnail.jpg").read_bytes()

# Lets a test see which refreshes are due, and run one now.
TIMERS = """
    const [set, clear] = [setTimeout, clearTimeout];
    window.due = new Map();
    window.setTimeout = (run, ms = 0, ...rest) => {
        const id = set(() => { due.delete(id); run(); }, ms, ...rest);
        if (ms >= 5000) due.set(id, { ms, run });
        return id;
    };
    window.clearTimeout = (id) => { due.delete(id); clear(id); };
    window.refresh = () => { const [[id, { run }]] = due; clearTimeout(id); run(); };
"""
DUE = "[...due.values()].map(({ ms }) => ms)"


def instance(task_id: str, map_index: int = -1, state: str | None = "success") -> dict[str, Any]:
    return {
        "id": f"{task_id} {map_index}",
        "task_id": task_id,
        "map_index": map_index,
        "state": state,
        "operator_name": f"Luma{task_id.title()}Operator",
        "try_number": 1,
        "start_date": "2026-01-01T00:00:00Z",
        "rendered_fields": {"prompt": f"{task_id} {map_index}"},
    }


def make_up(
    page: Page, instances: list[dict[str, Any]], answer: Answer, run: dict[str, Any] | None = None
) -> list[str]:
    """
    Let Airflow's API tell of these task instances; return the list of XComs as they are requested.

    :param run: a Dag run, or the status of an error in its place, under ``status``; the real one by default.
    """
    requested: list[str] = []

    def list_instances(route: Route) -> None:
        offset = int(parse_qs(urlsplit(route.request.url).query)["offset"][0])
        listed = instances[offset : offset + 100]
        route.fulfill(json={"task_instances": listed, "total_entries": len(instances)})

    def xcom(route: Route) -> None:
        parts = urlsplit(route.request.url)
        _, _, rest = parts.path.partition("/taskInstances/")
        task_id, _, key = rest.split("/")
        requested.append(task_id)
        value = answer(task_id, int(parse_qs(parts.query)["map_index"][0])) if key == "return_value" else None
        if isinstance(value, int):
            route.fulfill(status=value, json={})
        else:
            # In ASCII, as half an emoji has no UTF-8.
            route.fulfill(body=json.dumps({"value": value}), content_type="application/json")

    if run is not None:
        page.route(
            re.compile(r"/dagRuns/[^/?]+\?"),
            lambda route: route.fulfill(status=run.get("status", 200), json=run),
        )
    page.route("**/taskInstances?*", list_instances)
    page.route("**/xcomEntries/**", xcom)
    return requested


def clip(task_id: str, map_index: int) -> Any:
    if task_id == "sensor":
        return None
    if task_id == "generate":
        return f"id-{map_index}"
    return [record(f"id-{map_index}", f"file:///nowhere/{map_index}.mp4")]


def show_all(page: Page) -> None:
    """Show all that was read. In one step, as the page shows more by itself too, and would then read more."""
    page.evaluate(
        """() => {
            const more = document.getElementById("more");
            while (!more.hidden && more.textContent.startsWith("Show more")) more.click();
        }"""
    )


def test_mapped_tasks_are_read_in_steps_with_one_refresh(page: Page, airflow: Airflow) -> None:
    page.add_init_script(TIMERS)
    instances = [instance("sensor", state="deferred"), *(instance("generate", at) for at in range(300))]
    requested = make_up(page, [*instances, *(instance("download", at) for at in range(500))], clip)
    page.goto(airflow.page_of(airflow.clips))
    expect(page.locator("#status")).to_have_text("200 clips")
    assert requested.count("download") == 200
    for left, clips in ((400, 200), (100, 400), (0, 500)):
        expect(page.locator("#status")).to_have_text(f"{clips} clips")
        show_all(page)
        page.wait_for_function("() => due.size === 1")
        if left:
            page.get_by_role("button", name=f"Read {left} more task instances").click()
    assert requested.count("download") == 500
    expect(page.locator("#more")).to_be_hidden()


def test_a_refresh_that_fails_is_tried_again_later_and_later(page: Page, airflow: Airflow) -> None:
    page.add_init_script(TIMERS)
    make_up(page, [instance("generate", state="deferred")], clip)
    page.goto(airflow.page_of(airflow.clips))
    page.wait_for_function(f"() => {DUE}[0] === 10000")
    page.route("**/taskInstances?*", lambda route: route.fulfill(status=503, json={}))
    for seconds in (10, 20, 40, 80, 160, 300, 300):
        page.evaluate("refresh()")
        page.wait_for_function(f"() => {DUE}[0] === {seconds * 1000} && due.size === 1")
        expect(page.get_by_role("alert")).to_contain_text("responded with 503")
    page.unroute("**/taskInstances?*")
    make_up(page, [instance("generate", state="deferred")], clip)
    page.evaluate("refresh()")
    page.wait_for_function(f"() => {DUE}[0] === 10000")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_page_is_refreshed_until_the_run_has_ended(page: Page, airflow: Airflow) -> None:
    page.add_init_script(TIMERS)
    run = {"state": "queued"}
    generate = instance("generate", state=None)
    instances = [generate, instance("download", state=None) | {"operator_name": "_PythonDecoratedOperator"}]
    make_up(page, instances, clip, run)
    page.goto(airflow.page_of(airflow.clips))
    # None is scheduled yet; then one of ours has ended, and one of another operator has not.
    for run_state, state in (("running", None), ("running", "running"), ("running", "success")):
        page.wait_for_function(f"() => {DUE}[0] === 10000 && due.size === 1")
        run["state"], generate["state"] = run_state, state
        page.evaluate("refresh()")
    expect(page.locator(".card")).to_have_count(1)
    page.wait_for_function(f"() => {DUE}[0] === 10000 && due.size === 1")
    run["state"] = "success"
    page.evaluate("refresh()")
    page.wait_for_function("() => due.size === 0")
    expect(page.locator("#status")).to_have_text("1 clips")


def test_a_user_who_may_not_read_the_run_sees_its_clips(page: Page, airflow: Airflow) -> None:
    page.add_init_script(TIMERS)
    generate = instance("generate", state="deferred")
    make_up(page, [generate], clip, {"status": 403})
    page.goto(airflow.page_of(airflow.clips))
    expect(page.locator(".card")).to_have_count(1)
    page.wait_for_function(f"() => {DUE}[0] === 10000 && due.size === 1")
    generate["state"] = "success"
    page.evaluate("refresh()")
    page.wait_for_function("() => due.size === 0")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_task_instance_that_is_cleared_leaves_no_clips(page: Page, airflow: Airflow) -> None:
    page.add_init_script(TIMERS)
    instances = [instance("download", 0), instance("download", 1)]
    make_up(page, instances, clip, {"state": "running"})
    page.goto(airflow.page_of(airflow.clips))
    expect(page.locator(".card")).to_have_count(2)
    # A cleared one gets another id; of a mapped task there may be fewer in the next try.
    instances[0] |= {"id": "another", "state": None}
    page.wait_for_function("() => due.size === 1")
    page.evaluate("refresh()")
    expect(page.locator(".card")).to_have_count(1)
    instances[0] |= {"state": "success", "try_number": 2}
    instances.pop()
    page.wait_for_function("() => due.size === 1")
    page.evaluate("refresh()")
    expect(page.locator(".card .facts")).to_contain_text("id-0")
    expect(page.locator(".card")).to_have_count(1)


def _respond_with_prompt(prompt: str, route: Route) -> None:
    route.fulfill(json={"rendered_fields": {"prompt": prompt}})


def test_prompts_are_read_where_the_list_of_task_instances_leaves_them_out(
    page: Page, airflow: Airflow
) -> None:
    listed = [
        instance("generate") | {"rendered_fields": {}},
        instance("generate", 0) | {"rendered_fields": {}},
    ]
    make_up(page, listed, clip)
    for path, prompt in (("generate", "cat dance"), ("generate/0", "dog dance")):
        page.route(re.compile(rf"/taskInstances/{path}(\?|$)"), partial(_respond_with_prompt, prompt))
    page.goto(airflow.page_of(airflow.clips))
    for prompt in ("cat dance", "dog dance"):
        expect(page.locator(".card").filter(has_text=prompt)).to_have_count(1)


def test_a_file_that_is_gone_hides_no_other_of_its_folder(page: Page, airflow: Airflow) -> None:
    records = [
        record(f"id-{at}", f"file:///clips/{at}.mp4", thumbnail=f"file:///clips/{at}.jpg") for at in range(3)
    ]
    make_up(page, [instance("download")], lambda *_: records)

    def serve(route: Route) -> None:
        gone = parse_qs(urlsplit(route.request.url).query)["clip_id"] == ["id-0"]
        route.fulfill(status=404 if gone else 200, body=THUMBNAIL, content_type="image/jpeg")

    page.route("**/luma/media/**", serve)
    page.goto(airflow.page_of(airflow.clips))
    expect(page.locator(".card img")).to_have_count(2)


def test_a_folder_that_was_closed_for_one_file_is_asked_again_for_the_next(
    page: Page, airflow: Airflow
) -> None:
    records = [record(f"id-{at}", f"file:///clips/{at}.mp4") for at in range(2)]
    make_up(page, [instance("download")], lambda *_: records)

    def serve(route: Route) -> None:
        closed = parse_qs(urlsplit(route.request.url).query)["clip_id"] == ["id-0"]
        route.fulfill(status=403 if closed else 200, body=b"")

    page.route("**/luma/media/**", serve)
    page.goto(airflow.page_of(airflow.clips))
    expect(page.locator("#notes")).to_contain_text("[luma] gallery_paths")
    page.locator(".card").filter(has_text="id-1").get_by_role("button", name="Play").click()
    expect(page.locator("#notes")).to_be_empty()


def test_a_user_who_may_not_read_is_not_asked_again(page: Page, airflow: Airflow) -> None:
    page.add_init_script(TIMERS)
    page.route("**/taskInstances?*", lambda route: route.fulfill(status=403, json={}))
    page.goto(airflow.page_of(airflow.clips))
    expect(page.get_by_role("alert")).to_contain_text("You may not read")
    assert page.evaluate(DUE) == []


def test_a_task_instance_that_cannot_be_read_hurts_no_other(page: Page, airflow: Airflow) -> None:
    page.add_init_script(TIMERS)
    answers = {"download": clip("download", 1), "downloads": 500}
    make_up(page, [instance("downloads"), instance("download")], lambda task_id, _: answers[task_id])
    page.goto(airflow.page_of(airflow.clips))
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator("#notes")).to_contain_text(
        "downloads cannot be read: Airflow's API responded with 500"
    )
    page.wait_for_function("() => due.size === 1")
    answers["downloads"] = clip("download", 2)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".card")).to_have_count(2)
    page.wait_for_function("() => due.size === 0")


def test_a_bad_record_hurts_no_other(page: Page, airflow: Airflow) -> None:
    good, odd = clip("download", 1)[0], {"toString": 1}
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    bad = [
        good | {"id": f"bad-{name}", name: odd} for name in ("status", "width", "duration", "error", "video")
    ]
    bad += [good | {"id": "half \ud83d"}, good | {"id": "deep", "rest": deep}]
    make_up(page, [instance("download")], lambda *_: [*bad, good])
    page.goto(airflow.page_of(airflow.clips))
    expect(page.locator(".card")).to_have_count(len(bad) + 1)


def test_a_path_that_is_badly_quoted_leads_to_no_run(page: Page, airflow: Airflow) -> None:
    page.goto(f"{airflow.server.url}/luma/clips/{airflow.clips.dag_id}/%zz")
    expect(page.get_by_role("alert")).to_contain_text("There is no such Dag run")


def test_the_age_of_a_running_clip_advances(page: Page, airflow: Airflow) -> None:
    page.clock.install()
    page.goto(f"{airflow.server.url}/luma/clips/waiting_clips/{airflow.running_id}")
    age = page.locator(".waiting").first
    expect(age).to_have_text(re.compile(r"Generating for \d"))
    before = age.inner_text()
    page.clock.run_for(120_000)
    expect(age).not_to_have_text(before)
