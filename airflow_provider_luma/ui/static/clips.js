// From task instances and their XComs to clips. Pure: no page, no network.
//
// A clip is what all tasks of a run say of one Luma task. Tasks are read from the first to the last of a
// pipeline, so that a later one has the last word: a generate task knows the prompt, a sensor the outcome,
// a download task the files.

const UNFINISHED = new Set(["running", "deferred", "up_for_reschedule", "up_for_retry", "queued", "scheduled", "restarting"]);
const WITHOUT_XCOMS = new Set([null, undefined, "queued", "scheduled", "skipped", "upstream_failed", "removed"]);
const ORDER = ["batch", "generate", "sensor", "download", "other"];
const FILES = ["video", "thumbnail", "last_frame"];
// What rows of a manifest say of ids without a record.
const WITHOUT_FILES = new Map(["failed", "missing", "running", "error"].map((status) => [status, status]));
const FIELDS = ["prompt", "aspect_ratio", "created_at", "duration", "width", "height"];

export const isUnfinishedRun = (state) => ["queued", "running"].includes(state);

export const isUnfinished = (instance) => UNFINISHED.has(instance.state);

export function kindOf(instance) {
  const operator = String(instance.operator_name ?? instance.operator ?? "");
  if (!operator.includes("Luma")) return "other";
  if (operator.includes("Batch")) return "batch";
  if (operator.includes("Generate")) return "generate";
  return operator.includes("Sensor") ? "sensor" : "download";
}

/** Name the XComs that a task instance may have. */
export function xcomKeys(instance) {
  if (WITHOUT_XCOMS.has(instance.state)) return [];
  switch (kindOf(instance)) {
    case "batch":
      return ["return_value", "luma_submits"];
    case "generate":
      return instance.state === "success" ? ["return_value", "luma_task"] : ["luma_task", "luma_summary"];
    case "sensor":
      return ["return_value", "luma_summary"];
    default:
      return ["return_value"];
  }
}

/**
 * Return the clips and what else there is to say.
 *
 * @param entries of {instance, values}, values by the key of the XCom.
 */
export function buildClips(entries) {
  const board = new Board();
  const ordered = [...entries].sort((one, other) => rank(one) - rank(other));
  for (const entry of ordered) guarded(() => READERS[kindOf(entry.instance)](entry, board));
  if (board.isWaiting) for (const clip of board.clips.values()) if (clip.state === "submitted") clip.state = "running";
  return { clips: [...board.clips.values()], manifests: board.manifests, truncated: board.truncated };
}

/** Keep what one value does to itself: XComs may hold anything. */
export function guarded(make) {
  try {
    return make();
  } catch (error) {
    console.warn(error);
    return undefined;
  }
}

const rank = ({ instance }) => ORDER.indexOf(kindOf(instance)) * 1e9 + instance.map_index;

class Board {
  clips = new Map();
  manifests = [];
  truncated = 0;
  isWaiting = false; // whether a sensor waits that does not say for which ids

  /** Add what a task says of a clip. */
  add(id, instance, facts) {
    const owner = { taskId: instance.task_id, mapIndex: instance.map_index };
    const clip = this.clips.get(id) ?? { key: id, id, state: "submitted", files: {}, owners: [] };
    if (!clip.owners.some((known) => isSame(known, owner))) clip.owners.push(owner);
    for (const [name, value] of Object.entries(facts)) {
      if (value !== undefined && value !== null) clip[name] = value;
    }
    this.clips.set(id, clip);
    return clip;
  }
}

export const isSame = (one, other) => one.taskId === other.taskId && one.mapIndex === other.mapIndex;

const READERS = { generate: readGenerate, batch: readBatch, sensor: readSensor, download: readRecords, other: readOther };

function readGenerate({ instance, values }, board) {
  const { luma_task: task, luma_summary: summary, return_value: returned } = values;
  const id = text(returned?.id ?? returned ?? task?.id);
  const fields = instance.rendered_fields ?? {};
  const facts = { prompt: text(fields.prompt), aspect_ratio: text(fields.aspect_ratio) };
  const since = instance.start_date;
  if (id === undefined) {
    const unfinished = isUnfinished(instance);
    if (!unfinished && instance.state !== "failed") return;
    const key = `${instance.task_id} ${instance.map_index}`;
    const clip = board.add(key, instance, {
      ...facts,
      since,
      state: unfinished ? "waiting" : "failed",
      reason: unfinished ? null : "The generate task failed without a Luma task; its log says why",
    });
    clip.id = null;
    return;
  }
  board.add(id, instance, { ...facts, since, page: webPage(task?.page), state: isUnfinished(instance) ? "running" : null });
  if (isObject(returned)) board.add(id, instance, { ...described(returned), state: "completed" });
  readSummary(instance, summary, board, []);
}

function readBatch({ instance, values }, board) {
  const { return_value: returned } = values;
  const submits = isObject(values.luma_submits) ? values.luma_submits : {};
  const ids = listOf(returned);
  const rejected = isObject(submits.rejected) ? submits.rejected : {};
  const unknown = listOf(submits.unknown).filter(Number.isInteger);
  const prompts = listOf(instance.rendered_fields?.prompts);
  const promptAt = (position) => text(prompts[position]?.prompt ?? prompts[position]);
  // The ids are in the order of their prompts; which prompts have one is only known if every other is named.
  const isComplete = submits.not_submitted === 0 && !submits.rejected_not_listed;
  const others = new Set([...Object.keys(rejected), ...unknown].map(Number));
  const positions = prompts.map((_, position) => position).filter((position) => !others.has(position));
  ids.forEach((id, number) => {
    const prompt = isComplete ? promptAt(positions[number]) : undefined;
    if (text(id)) board.add(text(id), instance, { prompt, since: instance.start_date, page: pageIn(submits.page_template, text(id)) });
  });
  const withoutId = (position, facts) => {
    board.add(`${instance.task_id} ${instance.map_index} ${position}`, instance, { ...facts, prompt: promptAt(position) }).id = null;
  };
  for (const [position, reason] of Object.entries(rejected)) {
    withoutId(position, { state: "rejected", reason: text(reason) });
  }
  for (const position of unknown) {
    withoutId(position, { state: "unknown", reason: "The relay may have created and charged for this task" });
  }
  board.truncated += countOf(submits.rejected_not_listed);
  readManifest(instance, returned, board);
}

function readSensor({ instance, values }, board) {
  const { return_value: returned, luma_summary: summary } = values;
  const waited = listOf(asList(instance.rendered_fields?.luma_task_ids)).map(text).filter(Boolean);
  if (isUnfinished(instance) && !isObject(summary)) {
    for (const id of waited) board.add(id, instance, { state: "running", since: instance.start_date });
    board.isWaiting ||= waited.length === 0;
  }
  for (const id of listOf(returned)) if (text(id)) board.add(text(id), instance, { state: "completed" });
  readSummary(instance, summary, board, waited);
}

function readSummary(instance, summary, board, waited) {
  if (!isObject(summary)) return;
  const named = new Set();
  const add = (id, facts) => {
    named.add(id);
    board.add(id, instance, facts);
  };
  for (const [id, reason] of Object.entries(isObject(summary.failed) ? summary.failed : {})) {
    add(id, { state: "failed", reason: text(reason) });
  }
  for (const id of listOf(summary.missing).map(text).filter(Boolean)) {
    add(id, { state: "missing", reason: "The relay does not know this id" });
  }
  for (const id of listOf(summary.running).map(text).filter(Boolean)) {
    add(id, { state: "running", since: instance.start_date });
  }
  board.truncated += countOf(summary.failed_not_listed);
  if (summary.failed_not_listed) return;
  // What a summary does not name has completed.
  for (const id of waited) if (!named.has(id)) board.add(id, instance, { state: "completed" });
}

function readRecords({ instance, values }, board) {
  const ofManifest = listOf(values.records);
  const seen = new Set(); // of records with the same id the first counts, also for the server
  for (const record of [...listOf(values.return_value), ...ofManifest]) {
    if (!isRecord(record) || seen.has(record.id)) continue;
    seen.add(record.id);
    guarded(() => readRecord(record, instance, board));
  }
  if (ofManifest.length === 0) readManifest(instance, values.return_value, board);
}

function readRecord(record, instance, board) {
  const [id, reason] = [record.id, text(record.error)];
  const state = WITHOUT_FILES.get(record.status);
  if (state) {
    board.add(id, instance, { state, reason });
    return;
  }
  const files = {};
  for (const kind of FILES) if (typeof record[kind]?.uri === "string" && record[kind].uri) files[kind] = record[kind];
  board.add(id, instance, {
    ...described(record),
    state: record.status === "partial" ? "partial" : "completed",
    reason,
    files,
    record,
    owner: { taskId: instance.task_id, mapIndex: instance.map_index },
  });
}

/** A task of another operator counts if it returns records, as a subclass or a TaskFlow task may. */
function readOther({ instance, values }, board) {
  if (listOf(values.return_value).some((value) => isRecord(value) && FILES.some((kind) => isObject(value[kind])))) {
    readRecords({ instance, values }, board);
  } else if (isObject(values.luma_summary)) {
    readSensor({ instance, values }, board);
  }
}

export const namesManifest = (returned) => isObject(returned) && text(returned.manifest) !== undefined;

function readManifest(instance, returned, board) {
  if (!namesManifest(returned)) return;
  board.manifests.push({ taskId: instance.task_id, uri: text(returned.manifest), counts: returned });
}

function described(record) {
  return Object.fromEntries(
    FIELDS.map((name) => [name, typeof record[name] === "number" ? record[name] : text(record[name])]),
  );
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isRecord = (value) => isObject(value) && typeof value.id === "string" && value.id !== "";
const countOf = (value) => (Number.isSafeInteger(value) ? value : 0);
const listOf = (value) => (Array.isArray(value) ? value : []);

/** Rendered lists may be texts. */
function asList(value) {
  if (typeof value !== "string" || !value.trim().startsWith("[")) return value;
  return [...value.matchAll(/'([^']*)'|"([^"]*)"/g)].map((match) => match[1] ?? match[2]);
}

function text(value) {
  if (typeof value === "string") return value || undefined;
  return typeof value === "number" ? String(value) : undefined;
}

/** Return the page of an id by the template of the connection. */
function pageIn(template, id) {
  return typeof template === "string" ? webPage(template.replaceAll("{id}", () => encodeURIComponent(id))) : undefined;
}

/** Return the URL of a page that names its host, which the browser would otherwise take from the path. */
function webPage(value) {
  return typeof value === "string" && /^https?:\/\/[^/?#\\]/i.test(value) && URL.canParse(value) ? value : undefined;
}
