// The dialog with one clip: its player, its facts, its record.

import { isFramed, pageOf } from "./airflow.js";
import { badge, nameOf } from "./card.js";
import { check, urlOf } from "./media.js";
import { button, copy, download, element, formatBytes, formatSeconds, formatSize, link, openPage } from "./page.js";

const WHY_NOT = {
  closed: "This video is not served: its folder is not in [luma] gallery_paths, which an administrator sets.",
  gone: "The file is not there any more.",
  broken: "The video cannot be read. The api-server's log may say why.",
};

const dialog = document.getElementById("player");
let clips = [];
let shown = null;

dialog.addEventListener("close", () => {
  dialog.replaceChildren(); // ends the download of the video
  shown = null;
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.target.closest("video, pre, summary")) return;
  if (event.key === "ArrowRight") step(1);
  if (event.key === "ArrowLeft") step(-1);
});

/** Show a clip; the list is what next and previous go through. */
export function openPlayer(clip, list) {
  clips = list;
  show(clip);
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const next = clips[clips.findIndex((clip) => clip.key === shown) + by];
  if (next) show(next);
}

function show(clip) {
  shown = clip.key;
  const at = clips.findIndex((other) => other.key === clip.key);
  const focused = document.activeElement?.dataset.step;
  dialog.replaceChildren(
    element(
      "header",
      {},
      element("h2", { id: "player-title", dir: "auto" }, nameOf(clip)),
      button("Close", () => dialog.close(), { className: "button close" }),
    ),
    stage(clip),
    element(
      "div",
      { className: "actions" },
      stepButton("Previous", -1, at <= 0),
      stepButton("Next", 1, at >= clips.length - 1),
      element("span", { className: "space" }),
      clip.files.video && button("Download", () => download(urlOf(clip, "video", { download: "true" }))),
      clip.files.video && button("Copy URI", () => copy(clip.files.video.uri, "the URI")),
      clip.page && button("Open at the relay", () => openPage(clip.page)),
    ),
    facts(clip),
    record(clip),
  );
  if (focused) dialog.querySelector(`[data-step="${focused}"]:enabled`)?.focus();
}

function stepButton(label, by, disabled) {
  const made = button(label, () => step(by), { disabled });
  made.dataset.step = String(by);
  return made;
}

function stage(clip) {
  const place = element("div", { className: "stage" });
  if (!clip.files.video) {
    place.append(badge(clip), element("p", { className: "reason", dir: "auto" }, clip.reason ?? "There is no video yet."));
    return place;
  }
  check(clip, "video").then((state) => {
    place.append(state === "ok" ? player(clip, place) : message(state));
  });
  return place;
}

function player(clip, place) {
  const video = element("video", { controls: true, preload: "none", playsInline: true, autoplay: true });
  if (clip.files.thumbnail) video.poster = urlOf(clip, "thumbnail");
  let failedAt = -1;
  video.addEventListener("error", async () => {
    const at = video.currentTime;
    if (at > failedAt && at > 0) {
      failedAt = at; // a presigned URL has expired while the video was paused: get another
      video.src = `${urlOf(clip, "video")}#t=${at}`;
      video.play();
      return;
    }
    const state = await check(clip, "video");
    video.remove();
    place.append(message(state === "ok" ? "broken" : state));
  });
  video.src = urlOf(clip, "video");
  return video;
}

const message = (state) => element("p", { className: "reason", role: "alert" }, WHY_NOT[state]);

function facts(clip) {
  const rows = [
    ["State", badge(clip)],
    ["Reason", clip.files.video && clip.reason],
    ["Id", clip.id],
    ["Created", clip.created_at],
    ["Duration", formatSeconds(clip.duration)],
    ["Size", [formatSize(clip), clip.aspect_ratio, formatBytes(clip.files.video?.size)].filter(Boolean).join(" · ")],
    ["URI", clip.files.video?.uri],
    ["Tasks", tasks(clip)],
  ];
  const known = rows.filter(([, value]) => value);
  return element("dl", {}, known.flatMap(([name, value]) => [element("dt", {}, name), element("dd", { dir: "auto" }, value)]));
}

function tasks(clip) {
  return element(
    "span",
    { className: "tasks" },
    clip.owners.map(({ taskId, mapIndex }) => {
      const name = mapIndex >= 0 ? `${taskId} [${mapIndex}]` : taskId;
      return isFramed ? element("span", {}, name) : link(name, pageOf(taskId, mapIndex));
    }),
  );
}

function record(clip) {
  if (!clip.record) return undefined;
  const json = JSON.stringify(clip.record, null, 2);
  return element(
    "details",
    {},
    element("summary", {}, "Record as JSON"),
    button("Copy", () => copy(json, "the record")),
    element("pre", { tabIndex: 0 }, json),
  );
}
