// Loads posters of what is in view, and of nothing else; asks first, once for each folder, whether it is served.

import { checkMedia, mediaUrl } from "./airflow.js";
import { element } from "./page.js";

const MARGIN = "200px";

const folders = new Map();
const loaders = new WeakMap();
let reportClosed = () => {};

const viewer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) loaders.get(target)?.();
      else target.querySelector("video.frame")?.removeAttribute("src");
    }
  },
  { root: document, rootMargin: MARGIN },
);

export function onClosedFolder(report) {
  reportClosed = report;
}

/** Return whether files of a clip are served, by the first that was asked for in its folder. */
export function serving(clip, file) {
  const folder = clip.files[file].uri.replace(/[^/]*$/, "");
  if (!folders.has(folder)) folders.set(folder, checkMedia(urlOf(clip, file)));
  const answer = folders.get(folder);
  answer.then((state) => {
    if (state === "closed") reportClosed(folder);
    if (state === "broken" || state === "gone") folders.delete(folder); // of this file, perhaps only now
  });
  return answer;
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
