// The server's routes. A credential is kept for this browser tab alone.
import { Store } from "./view.js";

const HOME = new URL(".", document.baseURI);
const KEY = "queue-server-credential";

/** Who the server says we are; null before it was asked, `{login: reason}` when it wants to know. */
export const session = new Store(null);

/** When the server answered last, in ms, and how often it has not since. */
export const contact = new Store({ at: null, missed: 0 });

export class ApiError extends Error {
  constructor(status, message, body) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

/** A path whose parts are names: path`/api/v1/queues/${name}`. */
export function path(texts, ...names) {
  return String.raw({ raw: texts }, ...names.map(encodeURIComponent));
}

export function url(route, query = {}) {
  const found = new URL(route.replace(/^\//, ""), HOME);
  for (const [name, value] of Object.entries(query)) {
    if (value != null && value !== "") found.searchParams.set(name, value);
  }
  return found;
}

export function credential() {
  return sessionStorage.getItem(KEY);
}

/** Numbers that JavaScript would round stay as they were written: payloads are shown as they are. */
function exact(_, value, { source } = {}) {
  const digits = typeof value === "number" && source && source.replace(/^-?0?\.?0*|[.]|e.*$/gi, "");
  return digits && digits.length > 15 && JSON.rawJSON ? JSON.rawJSON(source) : value;
}

export async function request(method, route, { query, body, signal } = {}) {
  // A part named ".." would lead to another route, also when percent-encoded.
  if (/\/\.\.?(\/|$)/.test(route)) {
    throw new ApiError(400, "What is named . or .. cannot be reached by a browser. Use a client.");
  }
  const headers = { Accept: "application/json" };
  if (credential()) headers.Authorization = `Bearer ${credential()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(url(route, query), {
      method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    contact.set({ ...contact.value, missed: contact.value.missed + 1 });
    throw new ApiError(0, "The server does not answer. Is it running?");
  }
  contact.value = { at: Date.now(), missed: 0 };
  const text = await response.text();
  let answer = null;
  try {
    answer = text ? JSON.parse(text, exact) : null;
  } catch {
    answer = { error: text.slice(0, 200) };
  }
  if (response.ok) return answer;
  const message = answer?.error ?? answer?.message ?? `The server answered ${response.status}`;
  if (response.status === 401) session.set({ login: credential() ? message : "" });
  throw new ApiError(response.status, message, answer);
}

export const get = (route, query, signal) => request("GET", route, { query, signal });
export const post = (route, body, query) => request("POST", route, { body, query });
export const remove = (route, query) => request("DELETE", route, { query });

/** Ask who we are, with the credential at hand. */
export async function identify() {
  try {
    session.set(await get("/api/v1/dashboard/identity"));
  } catch (error) {
    if (error.status !== 401) session.set({ failed: error });
  }
}

export async function login(text) {
  sessionStorage.setItem(KEY, text.trim().replace(/^Bearer\s+/i, ""));
  await identify();
}

export function logout() {
  sessionStorage.removeItem(KEY);
  session.set({ login: "" });
}

function matches(patterns, queue) {
  return patterns.some((pattern) => {
    const source = pattern.replace(/[.+^${}()|\\]/g, "\\$&").replace(/\?/g, ".").replace(/\[!/g, "[^");
    // What a star passes over is looked for once and not reconsidered: many stars would otherwise
    // try every way to share out a name among them.
    const [start, ...rest] = source.split("*");
    const end = rest.length ? `.*${rest.pop()}` : "";
    const between = rest.map((part, n) => `(?=(?<s${n}>.*?${part}))\\k<s${n}>`).join("");
    return new RegExp(`^${start}${between}${end}$`, "s").test(queue);
  });
}

/** Why the caller may not do what needs *access* (and *use* of a queue); "" when they may.
 *  It only greys buttons out: the server decides. */
export function refusal(access, use, queue) {
  const who = session.value;
  if (!who?.access) return "Not logged in";
  if (!who.access.includes(access)) return `This needs the role ${access}`;
  if (who.grants && use && queue && !matches(who.grants[use] ?? [], queue)) {
    return "Your credential is not for this queue";
  }
  if (who.grants && !queue) return "Your credential is for some queues only";
  return "";
}
