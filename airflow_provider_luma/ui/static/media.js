// Loads posters of what is in view, and of nothing else; asks first, once for each folder, whether it is served.

import { checkMedia, mediaUrl } from "./airflow.js";
import { element } from "./page.js";

const MARGIN = "200px";
const OF_A_FOLDER = ["ok", "closed"]; // the other states are those of a file

const folders = new Map();
const loaders = new WeakMap();
let reportFolder = () => {};

const viewer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) loaders.get(target)?.();
      else target.querySelector("video.frame")?.removeAttribute("src");
    }
  },
  { root: document, rootMargin: MARGIN },
);

/** Say who is told of a folder, and whether it is closed. */
export function onFolder(report) {
  reportFolder = report;
}

const folderOf = (clip, file) => clip.files[file].uri.replace(/[^/]*$/, "");

/** Return whether a file is served, by what is known of its folder; where that was of one file, ask for this one. */
async function serving(clip, file) {
  const known = folders.get(folderOf(clip, file));
  const state = known && (await known);
  return OF_A_FOLDER.includes(state) ? state : check(clip, file);
}

/** Ask whether a file is served, and remember it for its folder. */
export function check(clip, file) {
  const folder = folderOf(clip, file);
  const asked = checkMedia(urlOf(clip, file));
  folders.set(folder, asked);
  asked.then((state) => OF_A_FOLDER.includes(state) && reportFolder(folder, state === "closed"));
  return asked;
}

export const urlOf = (clip, file, parameters) => mediaUrl(clip.owner, clip.id, file, parameters);

/** Put a clip's poster into a place, once that is in view: its thumbnail, or the first frame of its video. */
export function showPoster(place, clip) {
  const file = ["thumbnail", "last_frame", "video"].find((kind) => clip.files[kind]);
  if (file === undefined) return;
  loaders.set(place, async () => {
    const shown = place.querySelector("img, video.frame");
    if (shown?.tagName === "VIDEO" && !shown.hasAttribute("src")) shown.src = shown.dataset.src;
    if (shown || place.dataset.asked) return;
    place.dataset.asked = "yes";
    if ((await serving(clip, file)) === "ok") place.prepend(file === "video" ? frame(clip) : image(clip, file));
  });
  viewer.observe(place);
}

export const forget = (place) => viewer.unobserve(place);

function image(clip, file) {
  const made = element("img", { alt: "", decoding: "async" });
  made.addEventListener("error", () => made.remove());
  made.src = urlOf(clip, file);
  return made;
}

function frame(clip) {
  const src = `${urlOf(clip, "video")}#t=0.1`;
  const made = element("video", { className: "frame", preload: "metadata", muted: true, playsInline: true, tabIndex: -1 });
  made.setAttribute("aria-hidden", "true");
  made.dataset.src = src;
  made.src = src;
  return made;
}
