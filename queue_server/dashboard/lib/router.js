// Pages are named by the part of the address behind `#`: #/queues/orders?tab=groups.
import { Store } from "./view.js";

/** What stands for the parts of an address that cannot be read, such as #/queues/100%. */
const UNREADABLE = ["unreadable address"];

function read() {
  const [route, query = ""] = location.hash.replace(/^#/, "").split("?");
  let parts = UNREADABLE;
  try {
    parts = route.split("/").filter(Boolean).map(decodeURIComponent);
  } catch (error) {
    if (!(error instanceof URIError)) throw error;
  }
  return { parts, query: new URLSearchParams(query) };
}

export const route = new Store(read());
addEventListener("hashchange", () => route.set(read()));

export function href(parts, query = {}) {
  const known = Object.entries(query).filter(([, value]) => value != null && value !== "");
  const search = known.length ? `?${new URLSearchParams(known)}` : "";
  return `#/${parts.map(encodeURIComponent).join("/")}${search}`;
}

export function go(parts, query) {
  location.hash = href(parts, query);
}

/** Change the query of this page, without a new entry in the history. */
export function requery(changes) {
  const { parts, query } = route.value;
  const merged = Object.fromEntries(query);
  Object.assign(merged, changes);
  history.replaceState(null, "", href(parts, merged));
  route.set(read());
}
