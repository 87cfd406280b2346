// The page: filters and draws what was read.

import { ApiError, isFramed, loginUrl, pageOf, scope } from "./airflow.js";
import { STATES, makeCard, updateAges } from "./card.js";
import { buildClips, guarded, isSame } from "./clips.js";
import { forget, onFolder } from "./media.js";
import { button, copy, element, link } from "./page.js";
import { openPlayer } from "./player.js";
import { entries, read, readAgain, readMore, report, unread, unreadable } from "./reader.js";
import { followTheme } from "./theme.js";

const CARDS = 60; // that one page of the grid adds

const [grid, blank, more, notes, status, search, filter] = ["grid", "blank", "more", "notes", "status", "search", "state"].map(
  (id) => document.getElementById(id),
);

const cards = new Map(); // by the key of their clip
const closed = new Set();
let clips = [];
let listed = [];
let visible = CARDS;
let built = { manifests: [], truncated: 0 };
let phase = "loading"; // then "ready" or "error"
let problem = null;
let drawing = false;

followTheme();
describeScope();
onFolder((folder, isClosed) => {
  if (closed.has(folder) === isClosed) return;
  if (isClosed) closed.add(folder);
  else closed.delete(folder);
  draw();
});
search.addEventListener("input", restart);
filter.addEventListener("change", restart);
document.getElementById("tools").addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", showMore);
new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && listed.length > visible && showMore(), {
  root: document,
  rootMargin: "400px",
}).observe(more);
setInterval(updateAges, 1000);
report(
  (done, total) => {
    status.textContent = done < total ? `Reading task instances: ${done} of ${total}` : "";
    scheduleDraw();
  },
  (error) => {
    if (error instanceof ApiError && error.status === 401 && !isFramed) location.assign(loginUrl());
    problem = error;
    phase = error ? "error" : "ready";
    draw();
  },
);
draw();
read();

function scheduleDraw() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => {
    drawing = false;
    draw();
  }, 200);
}

function restart() {
  visible = CARDS;
  draw();
}

async function showMore() {
  if (listed.length > visible) {
    visible += CARDS;
    draw();
  } else if (unread) {
    more.disabled = true;
    await readMore();
    more.disabled = false;
  }
}

function draw() {
  built = buildClips(entries.values());
  clips = built.clips.filter((clip) => scope.taskId === null || clip.owners.some((owner) => isSame(owner, scope)));
  drawFilter();
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  listed = clips.filter(
    (clip) =>
      (filter.value === "" || clip.state === filter.value) &&
      words.every((word) => `${clip.prompt ?? ""} ${clip.id ?? ""}`.toLowerCase().includes(word)),
  );
  drawGrid(listed.slice(0, visible));
  drawNotes();
  drawBlank();
  const isCut = listed.length > visible;
  more.hidden = !(isCut || (unread && phase === "ready"));
  more.textContent = isCut ? `Show more (${listed.length - visible} left)` : `Read ${unread} more task instances`;
  if (phase !== "loading") {
    const found = listed.length === clips.length ? `${clips.length} clips` : `${listed.length} of ${clips.length} clips`;
    if (status.textContent !== found) status.textContent = found;
  }
}

function drawFilter() {
  const counts = new Map();
  for (const { state } of clips) counts.set(state, (counts.get(state) ?? 0) + 1);
  const options = [["", "All states"], ...Object.entries(STATES)].filter(
    ([state]) => state === "" || counts.has(state) || state === filter.value,
  );
  const labels = options.map(([state, label]) => [state, `${label} (${state ? (counts.get(state) ?? 0) : clips.length})`]);
  const drawn = JSON.stringify(labels);
  if (filter.dataset.drawn === drawn) return;
  filter.dataset.drawn = drawn;
  const chosen = filter.value;
  filter.replaceChildren(...labels.map(([value, label]) => element("option", { value }, label)));
  filter.value = chosen;
}

function drawGrid(shown) {
  const wanted = shown.flatMap((clip) => guarded(() => [cardOf(clip)]) ?? []);
  const isSameOrder = wanted.length === grid.children.length && wanted.every((card, at) => card === grid.children[at]);
  if (isSameOrder) return;
  const isLonger = [...grid.children].every((card, at) => card === wanted[at]);
  if (isLonger) grid.append(...wanted.slice(grid.children.length));
  else grid.replaceChildren(...wanted);
}

/** Return the card of a clip, the same one as long as nothing of it changed. */
function cardOf(clip) {
  const signature = JSON.stringify(clip);
  const known = cards.get(clip.key);
  if (known?.signature === signature) return known.card;
  const card = makeCard(clip, (opened) => openPlayer(opened, listed));
  if (known) {
    const focused = known.card.contains(document.activeElement);
    forget(known.card.querySelector(".poster"));
    known.card.replaceWith(card);
    if (focused) card.querySelector(".poster").focus();
  }
  cards.set(clip.key, { signature, card });
  return card;
}

function drawNotes() {
  const waits = [...entries.values()].filter(({ values }) => typeof values.progress === "string");
  const made = [
    ...waits.map(({ instance, values }) => note("info", `${instance.task_id}: ${values.progress}`)),
    closed.size > 0 && closedNote(),
    built.truncated > 0 && note("warning", `${built.truncated} more failed clips are only in the log: XCom has no room for their reasons.`),
    ...built.manifests.map(manifestNote),
    ...unreadable().slice(0, 3).map(({ instance, error }) => note("warning", `${instance.task_id} cannot be read: ${error.message}. `, button("Try again", retry))),
    phase === "error" && clips.length > 0 && note("error", `${explain(problem)} What is shown may be incomplete.`, button("Try again", retry)),
  ].filter(Boolean);
  if (notes.textContent !== made.map((one) => one.textContent).join("")) notes.replaceChildren(...made);
}

const note = (kind, ...content) => element("div", { className: `note ${kind}`, role: kind === "error" ? "alert" : "note" }, ...content);

function closedNote() {
  const [folder] = closed;
  const others = closed.size > 1 ? ` and ${closed.size - 1} more` : "";
  return note(
    "warning",
    "Videos do not play here: ",
    element("code", {}, folder),
    `${others} is not served. An administrator can name it in `,
    element("code", {}, "[luma] gallery_paths"),
    ". Prompts, states and records are complete.",
  );
}

function manifestNote({ taskId, uri, counts }) {
  const numbers = ["completed", "errors", "failed", "missing", "running", "created"]
    .filter((name) => Number.isFinite(counts[name]))
    .map((name) => `${counts[name]} ${name}`);
  return note("info", `${taskId} keeps its records in a manifest (${numbers.join(", ")}): `, element("code", {}, uri), " ", button("Copy URI", () => copy(uri, "the URI")));
}

function drawBlank() {
  const isBlank = listed.length === 0;
  blank.hidden = !isBlank;
  grid.hidden = isBlank;
  if (!isBlank) return;
  blank.setAttribute("aria-busy", String(phase === "loading"));
  const made = blankContent();
  if (blank.textContent !== made.map((one) => one.textContent ?? one).join("")) blank.replaceChildren(...made);
}

function blankContent() {
  if (phase === "loading") {
    return [element("span", { className: "hidden" }, "Loading"), ...Array.from({ length: 8 }, () => element("div", { className: "skeleton" }))];
  }
  if (phase === "error") return [element("h2", {}, "The clips cannot be shown"), element("p", { role: "alert" }, explain(problem)), button("Try again", retry)];
  if (clips.length > 0) return [element("h2", {}, "No clip matches"), button("Clear the search", clear)];
  return [
    element("h2", {}, "No clips yet"),
    element("p", {}, "Clips show here once a generate, wait or download task of this provider has run."),
  ];
}

function explain(error) {
  if (!(error instanceof ApiError)) return "Airflow's API does not respond.";
  return (
    {
      401: "Your session has ended: reload the page to log in.",
      403: "You may not read the XComs of this Dag.",
      404: "There is no such Dag run.",
    }[error.status] ?? `${error.message}.`
  );
}

function retry() {
  phase = "loading";
  readAgain();
}

function clear() {
  search.value = "";
  filter.value = "";
  restart();
  search.focus();
}

function describeScope() {
  const task = scope.taskId && (scope.mapIndex >= 0 ? `${scope.taskId} [${scope.mapIndex}]` : scope.taskId);
  document.title = `Clips of ${task ? `${task}, ` : ""}${scope.dagId}`;
  if (isFramed) {
    document.documentElement.classList.add("framed");
    return;
  }
  const where = document.getElementById("where");
  where.append(link(scope.dagId, pageOf().replace(/\/runs\/.*/, "")), " / ", link(scope.runId, pageOf()));
  if (task) where.append(" / ", link(task, pageOf(scope.taskId, scope.mapIndex)));
}
