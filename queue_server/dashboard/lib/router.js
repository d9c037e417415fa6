// Pages are named by the part of the address behind `#`: #/queues/orders?tab=groups.
import { Store } from "./view.js";

function read() {
  const [route, query = ""] = location.hash.replace(/^#/, "").split("?");
  const parts = route.split("/").filter(Boolean).map(decodeURIComponent);
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
