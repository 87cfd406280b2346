// Reads the task instances of the run and their XComs, and again for as long as they may change.
//
// What was read          | the next time
// -----------------------|------------------------------------------------------------------------
// the run has not ended  | in ten seconds, also while none of its tasks runs yet
// one has not ended      | likewise; the run's state is for those who may read it, and ends a moment earlier
// all have ended         | none
// one cannot be read     | the others are; this one later and later, up to five minutes
// the run cannot be read | later and later, up to five minutes; none where the user may not read it
//
// There is one timer, whoever wants to read, and readings follow each other.

import { ApiError, getManifest, getProgress, getRenderedFields, getRunState, getXCom, listTaskInstances, scope } from "./airflow.js";
import { isSame, isUnfinished, isUnfinishedRun, kindOf, namesManifest, xcomKeys } from "./clips.js";

const AT_ONCE = 6;
const MAPPED = 200; // task instances of each mapped task that are read before somebody wants more
const REFRESH_SECONDS = 10;
const MAX_SECONDS = 300;

export const entries = new Map(); // what is known of each task instance that is listed, by its key
export let unread = 0;

let limit = MAPPED;
let failures = 0;
let timer;
let isDue = false; // but nobody looks
let reading = Promise.resolve();
let reports = {};

/**
 * Say who is told.
 *
 * @param onProgress with how many task instances were read, and of how many.
 * @param onRead with the error, or null.
 */
export function report(onProgress, onRead) {
  reports = { onProgress, onRead };
}

/** Read what may have changed, once that is done which is being read. */
export function read() {
  reading = reading.then(readOnce);
  return reading;
}

export function readMore() {
  limit += MAPPED;
  return read();
}

export function readAgain() {
  for (const entry of entries.values()) entry.retryAt = 0;
  return read();
}

export const unreadable = () => [...entries.values()].filter((entry) => entry.error);

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && isDue) read();
});

async function readOnce() {
  clearTimeout(timer);
  isDue = false;
  let error = null;
  let seconds;
  try {
    const runState = await getRunState(); // first, so that what is read of a run that has ended is final
    const instances = await interesting();
    forgetOthers(instances);
    await readAll(instances);
    failures = 0;
    seconds = isUnfinishedRun(runState) || instances.some(isUnfinished) ? REFRESH_SECONDS : untilRetry();
  } catch (caught) {
    error = caught;
    failures += 1;
    if (!isFinal(error)) seconds = delayAfter(failures);
  }
  reports.onRead(error);
  if (seconds !== undefined) timer = setTimeout(whenShown, seconds * 1000);
}

function whenShown() {
  if (document.hidden) isDue = true;
  else read();
}

const delayAfter = (count) => Math.min(REFRESH_SECONDS * 2 ** (count - 1), MAX_SECONDS);
const isFinal = (error) => error instanceof ApiError && [401, 403, 404].includes(error.status);

function untilRetry() {
  const waits = unreadable().map((entry) => (entry.retryAt - Date.now()) / 1000);
  return waits.length ? Math.max(Math.min(...waits), REFRESH_SECONDS) : undefined;
}

/** Find the task instances that may know of clips: those of this provider, and the one that the page is about. */
async function interesting() {
  const found = [];
  for await (const page of listTaskInstances()) {
    found.push(...page.filter((instance) => kindOf(instance) !== "other" || isAbout(instance)));
  }
  const isLater = (instance) => instance.map_index >= 0 && !isAbout(instance);
  const later = found.filter(isLater).sort((one, other) => one.map_index - other.map_index);
  const counts = new Map();
  const wanted = later.filter(({ task_id: task }) => {
    counts.set(task, (counts.get(task) ?? 0) + 1);
    return counts.get(task) <= limit;
  });
  unread = later.length - wanted.length;
  // The others say most of what there is to say, with far fewer requests.
  return [...found.filter((instance) => !isLater(instance)), ...wanted];
}

const isAbout = (instance) =>
  scope.taskId !== null && isSame({ taskId: instance.task_id, mapIndex: instance.map_index }, scope);

/** The key of a task instance; its id is another with each try. */
const keyOf = (instance) => `${instance.task_id} ${instance.map_index}`;

function forgetOthers(instances) {
  const listed = new Set(instances.map(keyOf));
  for (const key of entries.keys()) if (!listed.has(key)) entries.delete(key);
}

async function readAll(instances) {
  const waiting = instances.filter((instance) => needsReading(instance));
  let done = 0;
  const work = async () => {
    for (let instance = waiting.shift(); instance; instance = waiting.shift()) {
      entries.set(keyOf(instance), await readInstance(instance, entries.get(keyOf(instance))));
      done += 1;
      reports.onProgress(done, done + waiting.length);
    }
  };
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  } finally {
    waiting.length = 0; // where one has failed, the others stop
  }
}

/** One that has ended does not change, unless it is tried again. */
function needsReading(instance) {
  const known = entries.get(keyOf(instance));
  if (!known || isUnfinished(instance)) return true;
  if (known.instance.state !== instance.state || known.instance.try_number !== instance.try_number) return true;
  return Boolean(known.error) && known.retryAt <= Date.now();
}

/** Read one task instance, whose failure is its own unless the session, or the line, is gone. */
async function readInstance(instance, known) {
  try {
    return { instance: await withFields(instance), values: await valuesOf(instance) };
  } catch (error) {
    if (error instanceof TypeError || [401, 403].includes(error.status)) throw error;
    const count = (known?.failures ?? 0) + 1;
    const retryAt = Date.now() + delayAfter(count) * 1000;
    return { instance, values: known?.values ?? {}, error, failures: count, retryAt };
  }
}

async function withFields(instance) {
  const isComplete = Object.keys(instance.rendered_fields ?? {}).length > 0;
  const hasPrompts = ["batch", "generate", "sensor"].includes(kindOf(instance)) && xcomKeys(instance).length > 0;
  return isComplete || !hasPrompts ? instance : { ...instance, rendered_fields: await getRenderedFields(instance) };
}

async function valuesOf(instance) {
  const values = {};
  for (const key of xcomKeys(instance)) values[key] = await getXCom(instance, key);
  if (namesManifest(values.return_value)) values.records = await getManifest(instance);
  if (isUnfinished(instance) && ["sensor", "batch"].includes(kindOf(instance))) {
    values.progress = await getProgress(instance);
  }
  return values;
}
