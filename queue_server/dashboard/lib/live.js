// Figures that keep themselves fresh: asked for again and again, sooner when the server's WebSocket
// has news. Without the WebSocket it is polling alone.
import { Store, useEffect, useRef, useState, useStore } from "./view.js";
import { credential, get, session, url } from "./api.js";

/** "live", "polling" or "offline", for the sign at the top. */
export const connection = new Store("polling");

const listeners = new Set();
const RETRY_MS = [500, 2000, 5000, 15_000];
let failures = 0;
let socket = null;
let again = null;

/** Begin to listen, and go on after every end. */
export function connect() {
  if (!sampling) {
    fill();
    sampling = setInterval(() => document.hidden || sample(), 1000);
  }
  if (socket || !session.value?.access) return;
  const address = url("/ws/dashboard");
  address.protocol = address.protocol.replace("http", "ws");
  // A browser cannot send a header with a WebSocket; the credential goes as a subprotocol.
  socket = credential()
    ? new WebSocket(address, ["queue-server", `bearer.${credential()}`])
    : new WebSocket(address);
  const alive = setInterval(() => socket?.readyState === WebSocket.OPEN && socket.send("ping"), 25_000);
  socket.onopen = () => {
    failures = 0;
    if (connection.value === "offline") fill();
    connection.set("live");
  };
  socket.onmessage = ({ data }) => {
    if (data === "pong") return;
    const { event, data: about } = JSON.parse(data);
    for (const listen of listeners) listen(event, about);
  };
  socket.onclose = ({ code }) => {
    clearInterval(alive);
    socket = null;
    // Each minute the server ends it, to look at the credential anew.
    if (code === 1000 && connection.value === "live") {
      connect();
      if (socket) return;
    }
    if (connection.value === "live") connection.set("polling");
    clearTimeout(again);
    again = setTimeout(connect, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
    failures += 1;
  };
}

// Who logged out hears no more.
session.watchers.add(() => session.value?.access || socket?.close());

/** Call *listen(event, data)* for what the WebSocket tells. */
export function useNews(listen) {
  const latest = useRef(listen);
  latest.current = listen;
  useEffect(() => {
    const call = (event, data) => latest.current(event, data);
    listeners.add(call);
    return () => listeners.delete(call);
  }, []);
}

/** The answer of *load(signal)*, asked for anew when *deps* change, every *every* ms, and after news
 *  for which *wanted(event, data)* holds. What takes long is asked for less often: the pause is at
 *  least ten times what the answer took.
 *
 *  Returns {data, error, loading, reload}; after a failure the data stays that there was. */
export function useData(load, deps = [], { every = 5000, wanted = null } = {}) {
  const [state, setState] = useState({ data: null, error: null, loading: true });
  const run = useRef(null);
  const newsDue = useRef(false);

  useEffect(() => {
    const aborter = new AbortController();
    let timer = null;
    let earliest = 0;
    let running = false;
    setState((old) => ({ ...old, error: null, loading: true }));

    async function tick() {
      clearTimeout(timer);
      if (running) return;
      if (document.hidden) {
        timer = setTimeout(tick, 1000);
        return;
      }
      running = true;
      newsDue.current = false;
      const began = performance.now();
      try {
        const data = await load(aborter.signal);
        if (aborter.signal.aborted) return;
        setState({ data, error: null, loading: false });
      } catch (error) {
        if (aborter.signal.aborted || error.name === "AbortError") return;
        setState((old) => ({ ...old, error, loading: false }));
      }
      running = false;
      const pause = 10 * (performance.now() - began);
      earliest = performance.now() + Math.max(1000, pause);
      if (newsDue.current) timer = setTimeout(tick, Math.max(1000, pause));
      else if (every) timer = setTimeout(tick, Math.max(every, pause));
    }
    run.current = (soon) => {
      if (!soon) return tick();
      newsDue.current = true;
      if (running) return undefined;
      clearTimeout(timer);
      timer = setTimeout(tick, Math.max(0, earliest - performance.now()));
      return undefined;
    };
    tick();
    return () => {
      aborter.abort();
      clearTimeout(timer);
    };
  }, deps);

  useNews((event, data) => {
    if (wanted && !newsDue.current && wanted(event, data)) run.current(true);
  });
  return { ...state, reload: () => run.current(false) };
}

// -- throughput: told each second by the WebSocket, and asked for without it --

const SAMPLES = 300;
/** [{at, pushed, popped, acked}] in messages a second, on all hosts, the newest last. */
export const throughput = new Store([]);
let sampling = null;

function sampleOf({ at = Date.now() / 1000, pushedPerSecond, poppedPerSecond, ackedPerSecond }) {
  return { at, pushed: pushedPerSecond, popped: poppedPerSecond, acked: ackedPerSecond };
}

function add(one) {
  throughput.set([...throughput.value, sampleOf(one)].slice(-SAMPLES));
}

/** Begin with the last minutes that the server has, and again after a time without it. */
async function fill() {
  try {
    const { samples } = await get("/api/v1/dashboard/throughput");
    // The server's clock may be another: what it saw last was just now.
    const shift = samples.length ? Date.now() / 1000 - samples.at(-1).at : 0;
    throughput.set(samples.map((one) => sampleOf({ ...one, at: one.at + shift })));
  } catch {
    // What comes from now on is shown.
  }
}

listeners.add((event, data) => event === "throughput" && add(data));

/** Whether the server answers; and without the WebSocket, how many messages go through. */
async function sample() {
  try {
    if (connection.value === "live") return;
    add((await get("/metrics")).throughput);
    if (connection.value === "offline") {
      connection.set("polling");
      fill();
    }
  } catch (error) {
    if (error.status === 0) connection.set("offline");
  }
}

export function useThroughput() {
  return useStore(throughput);
}

/** Redraws every *ms*: ages grow by themselves. */
export function useClock(ms = 5000) {
  const [, redraw] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => redraw((number) => number + 1), ms);
    return () => clearInterval(timer);
  }, [ms]);
}
