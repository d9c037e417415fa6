// The view layer in one place: Preact and htm. Text that is put between tags becomes a text node,
// so names and payloads are never read as markup.
import { useEffect, useState } from "../vendor/htm-preact.module.js";

export {
  Component, html, render, useEffect, useLayoutEffect, useMemo, useRef, useState,
} from "../vendor/htm-preact.module.js";

/** A value that several components watch. */
export class Store {
  constructor(value) {
    this.value = value;
    this.watchers = new Set();
  }

  set(value) {
    this.value = value;
    for (const watch of [...this.watchers]) watch();
  }
}

export function useStore(store) {
  const [, redraw] = useState(0);
  useEffect(() => {
    const watch = () => redraw((count) => count + 1);
    store.watchers.add(watch);
    // It may have changed between the drawing and now.
    watch();
    return () => store.watchers.delete(watch);
  }, [store]);
  return store.value;
}
