// One clip in the grid.

import { copy, download, element, formatAge, formatBytes, formatSeconds, formatSize, button } from "./page.js";
import { showPoster, urlOf } from "./media.js";

export const STATES = {
  completed: "Completed",
  partial: "Partial",
  running: "Running",
  submitted: "Submitted",
  waiting: "Not submitted yet",
  failed: "Failed",
  error: "Not downloaded",
  missing: "Missing",
  rejected: "Rejected",
  unknown: "Outcome unknown",
};

export const nameOf = (clip) => clip.prompt ?? clip.id ?? "Clip without a prompt";

export function makeCard(clip, open) {
  const isPlayable = Boolean(clip.files.video);
  const poster = element(
    "button",
    { type: "button", className: "poster", onclick: () => open(clip), "aria-label": `${isPlayable ? "Play" : "Show"}: ${nameOf(clip)}` },
    element("span", { className: `glyph ${isPlayable ? "play" : clip.state}`, "aria-hidden": "true" }),
    badge(clip),
    clip.duration && element("span", { className: "length" }, formatSeconds(clip.duration)),
  );
  showPoster(poster, clip);
  return element("li", { className: "card" }, poster, element("div", { className: "text" }, body(clip), actions(clip)));
}

export const badge = (clip) =>
  element("span", { className: `badge ${clip.state}` }, STATES[clip.state] ?? clip.state);

function body(clip) {
  return [
    element("p", { className: clip.prompt ? "prompt" : "prompt quiet", title: clip.prompt ?? "", dir: "auto" }, nameOf(clip)),
    clip.reason && element("p", { className: "reason", dir: "auto", title: clip.reason }, clip.reason),
    ["running", "waiting"].includes(clip.state) && waiting(clip),
    element("p", { className: "facts" }, facts(clip)),
  ];
}

function facts(clip) {
  const known = [formatBytes(clip.files.video?.size), formatSize(clip), clip.id?.slice(0, 8)];
  return known.filter(Boolean).join(" · ");
}

function waiting(clip) {
  const label = clip.state === "running" ? "Generating" : "Waiting";
  const age = element("span", {}, withAge(label, clip.since));
  Object.assign(age.dataset, { label, since: clip.since ?? "" });
  return element(
    "div",
    { className: "waiting" },
    element("div", { className: "progress", role: "progressbar", "aria-label": label }),
    age,
  );
}

/** Say for how long the clips on the page have been waited for, by now. */
export function updateAges() {
  for (const age of document.querySelectorAll("[data-since]")) {
    const text = withAge(age.dataset.label, age.dataset.since);
    if (age.textContent !== text) age.textContent = text;
  }
}

function withAge(label, since) {
  const age = formatAge(since);
  return age ? `${label} for ${age}` : label;
}

function actions(clip) {
  if (!clip.files.video) return undefined;
  return element(
    "div",
    { className: "actions" },
    button("Download", () => download(urlOf(clip, "video", { download: "true" })), { "aria-label": `Download: ${nameOf(clip)}` }),
    button("Copy URI", () => copy(clip.files.video.uri, "the URI"), { "aria-label": `Copy URI: ${nameOf(clip)}` }),
  );
}
