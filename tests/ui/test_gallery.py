"""The gallery in a real browser, on a real api-server: ``make test-ui``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.airflow.harness import AIRFLOW
from tests.ui.conftest import MANY, RELAY_PAGES, Airflow, log_in_here, watched
from tests.ui.seeds import HTML, PROMPTS
from tests.ui.server import ApiServer

pytestmark = pytest.mark.ui

IMAGES = Path(__file__).resolve().parents[2] / "docs/images"
NEWEST = (3, 3)

PLAYING = "video => !video.paused && video.currentTime > 0.2"
SEEK = """video => new Promise((resolve) => {
    video.pause();
    video.onseeked = () => resolve([video.currentTime, video.seekable.end(0)]);
    video.currentTime = 1.5;
})"""


def open_gallery(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator(".card").first).to_be_visible()
    expect(page.locator("#status")).to_contain_text("clips")


def card(page: Any, prompt: str) -> Any:
    return page.locator(".card").filter(has_text=prompt)


def play(page: Any, prompt: str) -> Any:
    """Open the player of a clip on a page or in a frame, see that it plays; return its video."""
    card(page, prompt).get_by_role("button", name="Play").click()
    video = page.locator("dialog video")
    page.wait_for_function(PLAYING, arg=video.element_handle())
    return video


@pytest.mark.parametrize("user", ["admin", "viewer"])
def test_a_video_plays_and_seeks(
    logged_in: Callable[..., BrowserContext], airflow: Airflow, problems: list[str], user: str
) -> None:
    context = logged_in(user)
    page = watched(context, airflow, problems)
    ranges: list[int] = []
    page.on(
        "response", lambda response: ranges.append(response.status) if "file=video" in response.url else None
    )
    open_gallery(page, airflow.page_of(airflow.clips))
    at, end = play(page, PROMPTS[0]).evaluate(SEEK)
    assert at == pytest.approx(1.5)
    assert end == pytest.approx(2, abs=0.1)
    assert 206 in ranges
    assert problems == []
    context.close()


def test_a_video_plays_from_an_object_store(page: Page, airflow: Airflow) -> None:
    open_gallery(page, airflow.page_of(airflow.s3))
    at, _ = play(page, PROMPTS[1]).evaluate(SEEK)
    assert at == pytest.approx(1.5)
    page.keyboard.press("Escape")
    # Without a thumbnail the first frame is the poster.
    expect(page.locator(".card video.frame").first).to_be_attached()


def test_a_batch_and_its_manifest_show_their_clips(page: Page, airflow: Airflow) -> None:
    open_gallery(page, airflow.page_of(airflow.batch))
    expect(page.locator(".card")).to_have_count(len(PROMPTS))
    expect(card(page, PROMPTS[3])).to_contain_text("blacklisted")
    play(page, PROMPTS[0])


def test_a_batch_has_the_tab_and_the_link(page: Page, airflow: Airflow) -> None:
    run = airflow.batch
    page.goto(f"{airflow.server.url}/dags/{run.dag_id}/runs/{run.run_id}/tasks/generate")
    page.get_by_role("link", name="Clips", exact=True).last.click()
    expect(page.frame_locator("iframe[title=Clips]").locator(".card")).to_have_count(len(PROMPTS))
    page.goto(f"{airflow.server.url}/dags/{run.dag_id}/runs/{run.run_id}/tasks/generate/details")
    expect(page.locator(f"a[href*='/luma/clips/{run.dag_id}/']")).to_have_text("Clips")


def test_it_works_below_a_path(
    browser: Browser, airflow: Airflow, prefixed: ApiServer, problems: list[str]
) -> None:
    context = browser.new_context()
    page = watched(context, airflow, problems)
    run = airflow.clips
    page.goto(f"{prefixed.url}/luma/clips/{run.dag_id}/{run.run_id}")
    log_in_here(page, "viewer")
    expect(page.locator(".card").first).to_be_visible()
    page.goto(f"{prefixed.url}/dags/{run.dag_id}/runs/{run.run_id}/tasks/download")
    page.get_by_role("link", name="Clips", exact=True).last.click()
    expect(page.frame_locator("iframe[title=Clips]").locator(".card").first).to_be_visible()
    play(page.frame(url=lambda url: "/air/flow/luma/clips/" in url), PROMPTS[0])
    page.goto(f"{prefixed.url}/dags/{run.dag_id}/runs/{run.run_id}/tasks/download/details")
    link = page.locator(f"a[href*='/luma/clips/{run.dag_id}/']").get_attribute("href")
    assert str(link).startswith("/air/flow/luma/clips/")
    context.close()
    assert problems == []


def test_each_clip_of_a_batch_leads_to_its_page_at_the_relay(page: Page, airflow: Airflow) -> None:
    run = airflow.batch
    page.context.route(f"{RELAY_PAGES}/**", lambda route: route.fulfill(body="the relay's page"))
    clip = run.xcom("generate")[0]
    tab = f"{airflow.server.url}/dags/{run.dag_id}/runs/{run.run_id}/plugin/luma-run-clips"
    for url in (airflow.page_of(run), tab):
        page.goto(url)
        shown: Any = page.frame_locator("iframe[title=Clips]") if url == tab else page
        card(shown, PROMPTS[0]).locator(".poster").click()
        with page.context.expect_page() as opened:
            shown.get_by_role("button", name="Open at the relay").click()
        expect(opened.value).to_have_url(f"{RELAY_PAGES}/{clip}")
        opened.value.close()


def test_a_failed_clip_shows_its_reason(page: Page, airflow: Airflow) -> None:
    open_gallery(page, airflow.page_of(airflow.clips))
    failed = card(page, "blacklisted words")
    expect(failed.locator(".badge")).to_have_text("Failed")
    expect(failed.locator(".reason")).to_have_text("Prompt contains blacklisted words")
    failed.get_by_role("button", name="Show").click()
    expect(page.locator("dialog .reason")).to_have_text("Prompt contains blacklisted words")


def test_a_clip_says_what_is_known_of_it(page: Page, airflow: Airflow) -> None:
    open_gallery(page, airflow.page_of(airflow.clips))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    record = airflow.clips.xcom("download")[0]
    ours = card(page, record["prompt"])
    expect(ours.locator(".facts")).to_contain_text("640 \N{MULTIPLICATION SIGN} 360")
    expect(ours.locator(".length")).to_have_text("2.0 s")
    ours.get_by_role("button", name="Copy URI").click()
    expect(page.locator("#said")).to_have_text("Copied the URI")
    assert page.evaluate("navigator.clipboard.readText()") == record["video"]["uri"]
    with page.expect_download() as download:
        ours.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == f"{record['id']}.mp4"
    assert Path(download.value.path()).stat().st_size == record["video"]["size"]
    ours.get_by_role("button", name="Play").click()
    page.locator("summary").click()
    assert json.loads(page.locator("dialog pre").inner_text()) == record


def test_search_by_prompt_and_id_and_filter_by_state(page: Page, airflow: Airflow) -> None:
    open_gallery(page, airflow.page_of(airflow.clips))
    expect(page.locator(".card")).to_have_count(len(PROMPTS))
    search = page.get_by_role("searchbox")
    search.fill("FOXES snow")
    expect(page.locator(".card")).to_have_count(1)
    search.fill(airflow.clips.xcom("download")[0]["id"][:13])
    expect(page.locator(".card")).to_have_count(1)
    search.fill("nothing of this kind")
    expect(page.get_by_text("No clip matches")).to_be_visible()
    page.get_by_role("button", name="Clear the search").click()
    page.locator("#state").select_option("failed")
    expect(page.locator(".card")).to_have_count(1)


def test_it_works_by_keyboard_alone(page: Page, airflow: Airflow) -> None:
    open_gallery(page, airflow.page_of(airflow.clips))
    page.get_by_role("searchbox").focus()
    for _ in range(2):
        page.keyboard.press("Tab")
    first = page.locator(".poster").first
    expect(first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    title = page.locator("#player-title")
    before = title.inner_text()
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    expect(title).not_to_have_text(before)
    page.keyboard.press("ArrowLeft")
    expect(title).to_have_text(before)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(first).to_be_focused()
    assert page.locator("dialog video").count() == 0


def test_screen_readers_get_names(page: Page, airflow: Airflow) -> None:
    open_gallery(page, airflow.page_of(airflow.clips))
    names = page.evaluate(
        "[...document.querySelectorAll('button:not([hidden]), input, select')]"
        ".map(e => e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim())"
    )
    assert all(names)
    expect(page.get_by_role("list", name="Clips")).to_be_visible()
    expect(page.get_by_role("status").first).to_contain_text("6 clips")


def test_running_clips_show_that_they_run(page: Page, airflow: Airflow) -> None:
    open_gallery(page, f"{airflow.server.url}/luma/clips/waiting_clips/{airflow.running_id}")
    expect(page.locator(".badge.running")).to_have_count(3)
    expect(page.get_by_role("progressbar", name="Generating")).to_have_count(3)
    expect(page.locator(".waiting").first).to_contain_text("Generating for")
    if AIRFLOW >= (3, 3):
        expect(page.locator("#notes")).to_contain_text("wait: 0 of 3 completed, 3 running")


def test_videos_that_are_not_served_say_which_setting_helps(page: Page, airflow: Airflow) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/luma/media/" in request.url else None)
    open_gallery(page, airflow.page_of(airflow.closed))
    expect(page.locator("#notes")).to_contain_text("[luma] gallery_paths")
    expect(page.locator(".card").filter(has_text="paper boat")).to_contain_text("65 KB")
    assert len(asked) == 1  # for the folder, not for each file of it
    card(page, "paper boat").get_by_role("button", name="Play").click()
    expect(page.locator("dialog")).to_contain_text("This video is not served")


def test_empty_loading_and_error(page: Page, airflow: Airflow) -> None:
    url = airflow.page_of(airflow.by_hand, "/elsewhere/-1")
    page.goto(url)
    expect(page.get_by_text("No clips yet")).to_be_visible()
    page.route("**/taskInstances?*", lambda route: None)  # no response yet
    page.goto(url)
    expect(page.locator(".skeleton").first).to_be_visible()
    page.unroute("**/taskInstances?*")
    page.route("**/taskInstances?*", lambda route: route.fulfill(status=500, body="{}"))
    page.goto(url)
    expect(page.get_by_role("alert")).to_contain_text("responded with 500")
    page.unroute("**/taskInstances?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("No clips yet")).to_be_visible()


def test_without_a_session_the_page_leads_to_the_login_and_back(
    browser: Any, airflow: Airflow, problems: list[str]
) -> None:
    context = browser.new_context()
    page = watched(context, airflow, problems)
    page.goto(airflow.page_of(airflow.clips))
    log_in_here(page, "viewer")
    expect(page.locator(".card").first).to_be_visible()
    context.close()


def test_a_user_without_access_sees_nothing(
    logged_in: Callable[..., BrowserContext], airflow: Airflow, problems: list[str]
) -> None:
    context = logged_in("outsider")
    page = watched(context, airflow, problems)
    response = page.goto(airflow.page_of(airflow.clips))
    assert response is not None
    assert response.status == 403
    expect(page.get_by_role("heading", name="No access")).to_be_visible()
    context.close()


@pytest.mark.parametrize(("user", "status"), [(None, 401), ("outsider", 403)])
def test_media_need_the_right_to_read(airflow: Airflow, user: str | None, status: int) -> None:
    clip = airflow.clips.xcom("download")[0]["id"]
    session = airflow.server.session(user)
    url = f"{airflow.server.url}/luma/media/{airflow.clips.dag_id}"
    assert session.get(url, params=airflow.media_of(airflow.clips, clip), timeout=30).status_code == status


@pytest.mark.parametrize(
    ("clip", "status"),
    [
        ("passwd", 403),
        ("outside", 403),
        ("dots", 404),
        ("other-bucket", 403),
        ("other-key", 403),
        ("web", 404),
        ("script", 404),
    ],
)
def test_an_author_who_writes_a_uri_by_hand_reads_nothing(airflow: Airflow, clip: str, status: int) -> None:
    for user in ("viewer", "admin"):
        response = airflow.server.session(user).get(
            f"{airflow.server.url}/luma/media/{airflow.by_hand.dag_id}",
            params=airflow.media_of(airflow.by_hand, clip),
            timeout=30,
            allow_redirects=False,
        )
        assert response.status_code == status


def test_nothing_of_a_record_is_html(page: Page, airflow: Airflow) -> None:
    elsewhere: list[str] = []
    page.on(
        "request",
        lambda request: elsewhere.append(request.url) if airflow.server.url not in request.url else None,
    )
    open_gallery(page, airflow.page_of(airflow.by_hand, "/download/-1"))
    card(page, "<script>").get_by_role("button").first.click()
    expect(page.locator("#player-title")).to_have_text(HTML)
    page.locator("summary").click()
    assert page.locator("img[src=x], main script, dialog script").count() == 0
    assert page.evaluate("document.scripts.length") == 1
    assert elsewhere == []


def test_a_thousand_clips_scroll(page: Page, airflow: Airflow) -> None:
    media: list[str] = []
    page.on("request", lambda request: media.append(request.url) if "/luma/media/" in request.url else None)
    started = time.monotonic()
    open_gallery(page, airflow.page_of(airflow.many))
    first = time.monotonic() - started
    expect(page.locator("#status")).to_have_text(f"{MANY} clips")
    page.wait_for_load_state("networkidle")
    in_view = len(media)
    assert in_view <= 60  # a HEAD and the posters in view, and none of the others
    assert not any("file=video" in url for url in media)
    frames = page.evaluate(_SCROLL)
    expect(page.locator(".card")).to_have_count(MANY)
    heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
    assert page.locator("video[src]").count() == 0
    started = time.monotonic()
    page.get_by_role("searchbox").fill(airflow.many.xcom("download")[MANY // 2]["id"])
    expect(page.locator(".card")).to_have_count(1)
    search = time.monotonic() - started
    print(
        f"\n{MANY} clips: first cards after {first:.2f} s; {in_view} requests of media at first, "
        f"{len(media)} after the last; frames while scrolling: median {frames['median']:.0f} ms, 95% "
        f"{frames['p95']:.0f} ms, longest {frames['longest']:.0f} ms; {heap:.0f} MB of JavaScript; "
        f"a search takes {search * 1000:.0f} ms"
    )


_SCROLL = """async () => {
    const frames = [];
    let last = performance.now();
    const cards = () => document.querySelectorAll(".card").length;
    const more = document.getElementById("more");
    while (!more.hidden || scrollY + innerHeight < document.documentElement.scrollHeight - 2) {
        scrollBy(0, 400);
        const now = await new Promise(requestAnimationFrame);
        frames.push(now - last);
        last = now;
    }
    frames.sort((one, other) => one - other);
    const at = (share) => frames[Math.floor((frames.length - 1) * share)];
    return { median: at(0.5), p95: at(0.95), longest: at(1) };
}"""


@pytest.mark.parametrize("rest", ["", "/tasks/download"])
def test_airflow_has_a_tab(page: Page, airflow: Airflow, rest: str) -> None:
    page.goto(f"{airflow.server.url}/dags/{airflow.clips.dag_id}/runs/{airflow.clips.run_id}{rest}")
    page.get_by_role("link", name="Clips", exact=True).last.click()
    frame = page.frame_locator("iframe[title=Clips]")
    expect(frame.locator(".card")).to_have_count(len(PROMPTS) - (1 if rest else 0))
    play(page.frame(url=lambda url: "/luma/clips/" in url), PROMPTS[0])
    frame.get_by_role("button", name="Close", exact=True).click()
    with page.expect_download() as download:
        card(frame, PROMPTS[0]).get_by_role("button", name="Download").click()
    assert download.value.suggested_filename.endswith(".mp4")


def test_a_mapped_task_instance_has_its_tab(page: Page, airflow: Airflow) -> None:
    run = airflow.clips
    page.goto(f"{airflow.server.url}/dags/{run.dag_id}/runs/{run.run_id}/tasks/generate/mapped/3")
    page.get_by_role("link", name="Clips", exact=True).last.click()
    frame = page.frame_locator("iframe[title=Clips]")
    expect(frame.locator(".card")).to_have_count(1)
    expect(frame.locator(".card")).to_contain_text("Prompt contains blacklisted words")


def test_the_tab_follows_airflows_theme(page: Page, airflow: Airflow) -> None:
    page.goto(airflow.page_of(airflow.clips))
    page.evaluate("localStorage.setItem('theme', 'dark')")
    run = airflow.clips
    page.goto(f"{airflow.server.url}/dags/{run.dag_id}/runs/{run.run_id}/tasks/download/plugin/luma-clips")
    frame = page.frame_locator("iframe[title=Clips]")
    expect(frame.locator(".card").first).to_be_visible()
    expect(frame.locator("html")).to_have_attribute("data-theme", "dark")
    page.evaluate("document.documentElement.classList.replace('dark', 'light')")
    expect(frame.locator("html")).to_have_attribute("data-theme", "light")


@pytest.mark.parametrize(
    ("task", "map_index"), [("generate", 0), ("generate", 3), ("wait", -1), ("download", -1)]
)
def test_each_task_instance_has_the_link(page: Page, airflow: Airflow, task: str, map_index: int) -> None:
    run = airflow.clips
    mapped = f"/mapped/{map_index}" if map_index >= 0 else ""
    page.goto(f"{airflow.server.url}/dags/{run.dag_id}/runs/{run.run_id}/tasks/{task}{mapped}/details")
    link = page.locator(f"a[href*='/luma/clips/{run.dag_id}/']")
    expect(link).to_have_text("Clips")
    url = link.get_attribute("href")
    page.goto(f"{airflow.server.url}{url}")
    expect(page.locator(".card").first).to_be_visible()


def test_a_running_task_has_the_link_already(airflow: Airflow) -> None:
    answer = airflow.server.session("viewer").get(
        f"{airflow.server.url}/api/v2/dags/waiting_clips/dagRuns/{airflow.running_id}/taskInstances/wait/links",
        timeout=30,
    )
    assert answer.json()["extra_links"]["Clips"].startswith("/luma/clips/waiting_clips/")


@pytest.mark.skipif(AIRFLOW != NEWEST, reason="the pictures of the documentation show the newest Airflow")
@pytest.mark.parametrize(
    ("name", "theme", "width"), [("light", "light", 1280), ("dark", "dark", 1280), ("phone", "light", 390)]
)
def test_pictures(page: Page, airflow: Airflow, name: str, theme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(airflow.page_of(airflow.clips))
    page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
    if name == "phone":
        open_gallery(page, airflow.page_of(airflow.clips))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown: Any = page
    else:
        page.goto(
            f"{airflow.server.url}/dags/{airflow.clips.dag_id}/runs/{airflow.clips.run_id}/plugin/luma-run-clips"
        )
        shown = page.frame_locator("iframe[title=Clips]")
    expect(shown.locator(".card img").nth(4 if name != "phone" else 1)).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=IMAGES / f"gallery-{name}.png")
