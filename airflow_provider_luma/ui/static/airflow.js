// Reads Airflow's REST API with the session of the user, and knows where things are.

export const root = document.documentElement.dataset.root;

const PAGE = 100;

/** The page's path says what it shows: /luma/clips/{dag}/{run}[/{task}/{map index}]. */
export const scope = (() => {
  const path = location.pathname.slice(`${root}/luma/clips/`.length);
  const [dagId, runId, taskId, mapIndex] = path.split("/").map(unquote);
  // Airflow leaves {MAP_INDEX} as it is where a task is not mapped.
  const index = /^\d+$/.test(mapIndex ?? "") ? Number(mapIndex) : -1;
  return { dagId, runId, taskId: taskId || null, mapIndex: index };
})();

/** Some paths are quoted by hand, and not well. */
function unquote(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export const isFramed = window.parent !== window;

export class ApiError extends Error {
  constructor(status) {
    super(`Airflow's API responded with ${status}`);
    this.status = status;
  }
}

const quote = encodeURIComponent;
const runPath = `/api/v2/dags/${quote(scope.dagId)}/dagRuns/${quote(scope.runId ?? "")}`;

async function get(path, parameters = {}) {
  const response = await fetch(`${root}${path}?${new URLSearchParams(parameters)}`, {
    headers: { Accept: "application/json" },
    credentials: "same-origin",
  });
  if (!response.ok) throw new ApiError(response.status);
  return response.json();
}

/** Return the state of the run; undefined where the user may read its task instances, but not the run. */
export async function getRunState() {
  try {
    return (await get(runPath)).state;
  } catch (error) {
    if (error.status === 403) return undefined;
    throw error;
  }
}

/** Yield the task instances of the run, a page at a time. */
export async function* listTaskInstances() {
  for (let offset = 0; ; offset += PAGE) {
    const parameters = { limit: PAGE, offset, order_by: "id" };
    const page = await get(`${runPath}/taskInstances`, parameters);
    yield page.task_instances;
    if (page.task_instances.length === 0 || offset + PAGE >= page.total_entries) return;
  }
}

/** Return the rendered fields of a task instance, which lists of Airflow 3.1 and 3.2 leave out. */
export async function getRenderedFields(instance) {
  const mapped = instance.map_index >= 0 ? `/${instance.map_index}` : "";
  return (await getOrNothing(`${runPath}/taskInstances/${quote(instance.task_id)}${mapped}`))?.rendered_fields;
}

/** Return the value of an XCom, undefined where there is none. */
export async function getXCom(instance, key) {
  const path = `${runPath}/taskInstances/${quote(instance.task_id)}/xcomEntries/${quote(key)}`;
  return parsed((await getOrNothing(path, { map_index: instance.map_index }))?.value);
}

/** Return what a waiting task last said of its progress; from Airflow 3.3 on. */
export async function getProgress(instance) {
  const path = `${runPath}/taskInstances/${quote(instance.task_id)}/state-store/luma_progress`;
  return (await getOrNothing(path, { map_index: instance.map_index }))?.value;
}

/** Return the records that a task instance keeps in a manifest. */
export async function getManifest(instance) {
  const query = { run_id: scope.runId, task_id: instance.task_id, map_index: instance.map_index };
  return (await getOrNothing(`/luma/records/${quote(scope.dagId)}`, query))?.records;
}

async function getOrNothing(path, parameters) {
  try {
    return await get(path, parameters);
  } catch (error) {
    if (error.status === 404) return undefined;
    throw error;
  }
}

function parsed(value) {
  if (typeof value !== "string") return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

export function mediaUrl(owner, clipId, file, parameters = {}) {
  const query = new URLSearchParams({
    run_id: scope.runId,
    task_id: owner.taskId,
    map_index: owner.mapIndex,
    clip_id: clipId,
    file,
    ...parameters,
  });
  return `${root}/luma/media/${quote(scope.dagId)}?${query}`;
}

/** Return why a file is not served: "ok", "closed", "gone" or "broken". */
export async function checkMedia(url) {
  try {
    const response = await fetch(url, { method: "HEAD", redirect: "manual", credentials: "same-origin" });
    if (response.ok || response.type === "opaqueredirect") return "ok";
    return { 403: "closed", 404: "gone" }[response.status] ?? "broken";
  } catch {
    return "broken";
  }
}

export function pageOf(taskId, mapIndex) {
  const run = `${root}/dags/${quote(scope.dagId)}/runs/${quote(scope.runId)}`;
  if (taskId === undefined) return run;
  return `${run}/tasks/${quote(taskId)}${mapIndex >= 0 ? `/mapped/${mapIndex}` : ""}`;
}

// Airflow 3.1 passes it on without quoting it again, which makes a space of a plus.
export const loginUrl = () => `${root}/api/v2/auth/login?next=${quote(location.pathname.replaceAll("+", "%2B"))}`;
