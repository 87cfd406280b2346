// Makes elements. Text only ever becomes a text node: nothing here parses HTML, and the page's policy forbids it.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "role") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return made;
}

export const button = (label, onclick, properties = {}) =>
  element("button", { type: "button", className: "button", onclick, ...properties }, label);

export const link = (label, href, properties = {}) => element("a", { className: "link", href, ...properties }, label);

/** Say something to screen readers. */
export function say(message) {
  document.getElementById("said").textContent = message;
}

export async function copy(value, what) {
  try {
    await navigator.clipboard.writeText(value);
  } catch {
    copyBySelection(value); // the clipboard needs https or loopback
  }
  say(`Copied ${what}`);
}

function copyBySelection(value) {
  const area = element("textarea", { value, className: "hidden" });
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export const download = (url) => follow("allow-downloads", { href: new URL(url, location.href).href, download: "" });

export const openPage = (href) => follow("allow-popups", { href, target: "_blank", rel: "noopener noreferrer" });

/** Follow a link, by the page around us where our frame may not: Airflow sandboxes it. */
function follow(permission, properties) {
  const frame = window.frameElement;
  const isBarred = frame?.sandbox.length > 0 && !frame.sandbox.contains(permission);
  const place = isBarred ? parent.document : document;
  const anchor = Object.assign(place.createElement("a"), properties);
  place.body.append(anchor);
  anchor.click();
  anchor.remove();
}

export function formatBytes(bytes) {
  if (typeof bytes !== "number") return undefined;
  const units = ["B", "KB", "MB", "GB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) {
    bytes /= 1000;
    unit += 1;
  }
  return `${bytes.toFixed(bytes < 10 && unit > 0 ? 1 : 0)} ${units[unit]}`;
}

export const formatSeconds = (seconds) => (typeof seconds === "number" ? `${seconds.toFixed(1)} s` : undefined);

export const formatSize = ({ width, height }) => (width && height ? `${width} × ${height}` : undefined);

export function formatAge(since) {
  const seconds = Math.max((Date.now() - Date.parse(since)) / 1000, 0);
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  return seconds < 3600 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}
