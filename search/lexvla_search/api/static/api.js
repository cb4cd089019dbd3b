// The server's answers: JSON, pictures, or problems (RFC 9457) that say what is wrong.

const KEY = "lexvla-key";
const KEPT_PICTURES = 400;
const PICTURE_TRIES = 4;

export class Problem extends Error {
  constructor({ type = "", status = 0, title = "", detail = "", requestId = "", retryAfter = null }) {
    super(detail || title);
    Object.assign(this, { type, status, title, detail, requestId, retryAfter });
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

export async function getJson(path, signal) {
  return (await call(path, { signal })).json();
}

export async function getBlob(path) {
  return (await call(path)).blob();
}

// One search; the image, if any, goes beside the JSON as a file.
export async function search(request, image, signal) {
  const json = JSON.stringify(request);
  if (!image) {
    const headers = { "Content-Type": "application/json" };
    return (await call("v1/search", { method: "POST", headers, body: json, signal })).json();
  }
  const body = new FormData();
  body.append("query", json);
  body.append("image", image, image.name || "image");
  return (await call("v1/search", { method: "POST", body, signal })).json();
}

// An address that the server gave, for a page that a proxy may serve under a path.
export const relative = (address) => address.slice(1);

export const documentPath = (id, rest) => `v1/documents/${encodeURIComponent(id)}/${rest}`;

const pictures = new Map(); // path -> promise of an object URL, oldest first

// An object URL of the picture; null where the server has none. The path goes through fetch, not
// through <img>, because only fetch sends the key.
export function picture(path) {
  const known = pictures.get(path);
  pictures.delete(path);
  const promise = known ?? loadPicture(path);
  pictures.set(path, promise);
  promise.catch(() => pictures.delete(path));
  if (pictures.size > KEPT_PICTURES) {
    const [oldest, made] = pictures.entries().next().value;
    pictures.delete(oldest);
    made.then((url) => url && URL.revokeObjectURL(url), () => {});
  }
  return promise;
}

async function loadPicture(path) {
  for (let left = PICTURE_TRIES; ; left -= 1) {
    try {
      return URL.createObjectURL(await getBlob(path));
    } catch (problem) {
      if (problem.status === 404) return null;
      if (problem.status !== 429 || left <= 1) throw problem;
      await new Promise((resolve) => setTimeout(resolve, 1000 * (problem.retryAfter ?? 1)));
    }
  }
}

export function forgetPictures() {
  for (const made of pictures.values()) {
    made.then((url) => url && URL.revokeObjectURL(url), () => {});
  }
  pictures.clear();
}

async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem(KEY);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers, redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "The server cannot be reached", detail: "Is it still running?" });
  }
  if (!response.ok) throw await readProblem(response);
  return response;
}

async function readProblem(response) {
  const body = await response.json().catch(() => ({}));
  const text = (value) => (typeof value === "string" ? value : "");
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  return new Problem({
    type: text(body?.type),
    status: response.status,
    title: text(body?.title) || `The server answered ${response.status}`,
    detail: text(body?.detail),
    requestId: text(body?.request_id) || response.headers.get("X-Request-ID") || "",
    retryAfter: Number.isFinite(seconds) && seconds >= 0 ? Math.min(seconds, 60) : null,
  });
}
