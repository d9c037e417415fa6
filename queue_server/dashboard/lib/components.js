// What pages are made of.
import { html, Store, useEffect, useLayoutEffect, useRef, useState, useStore } from "./view.js";
import { refusal } from "./api.js";
import { absoluteTime, age, ageSeconds, briefly, bytes, count, dueIn, isDue, NONE, short } from "./format.js";
import { useClock } from "./live.js";

// -- the frame of a page --

export function Page({ title, about, back, actions, children }) {
  useEffect(() => {
    document.title = `${title} · Queue server`;
  }, [title]);
  return html`
    ${back && html`<a class="back" href=${back.href}>← ${back.label}</a>`}
    <header class="page-head">
      <div>
        <h1 tabindex="-1">${title}</h1>
        ${about && html`<p class="muted">${about}</p>`}
      </div>
      ${actions && html`<div class="actions">${actions}</div>`}
    </header>
    ${children}`;
}

export function Card({ title, about, actions, children, flush = false }) {
  return html`
    <section class=${`card ${flush ? "flush" : ""}`} aria-label=${title}>
      ${(title || actions) && html`
        <header class="card-head">
          <div><h2>${title}</h2>${about && html`<p class="muted small">${about}</p>`}</div>
          ${actions && html`<div class="actions">${actions}</div>`}
        </header>`}
      ${children}
    </section>`;
}

export function Stat({ label, value, unit, note, tone = "", href }) {
  return html`
    <div class=${`stat ${tone}`}>
      <dt>${label}</dt>
      <dd><span class="figure">${href ? html`<a href=${href}>${value}</a>` : value}</span>${unit && html`<span class="unit">${unit}</span>`}</dd>
      ${note && html`<p class="muted small">${note}</p>`}
    </div>`;
}

export const Stats = ({ children }) => html`<dl class="stats">${children}</dl>`;

export function Badge({ tone = "", children }) {
  return html`<span class=${`badge ${tone}`}>${children}</span>`;
}

/** How long ago, with the time itself on hover. */
export function Ago({ at, suffix = " ago" }) {
  useClock();
  if (at == null) return html`<span class="muted">${NONE}</span>`;
  return html`<time datetime=${at} title=${absoluteTime(at)}>${age(ageSeconds(at))}${suffix}</time>`;
}

/** How long the oldest message has been due, or when it will be. */
export function Oldest({ at, tone }) {
  useClock();
  if (at == null) return html`<span class="muted">${NONE}</span>`;
  if (isDue(at)) return html`<${Badge} tone=${tone}><${Ago} at=${at} suffix="" /><//>`;
  return html`<time class="muted" datetime=${at} title=${absoluteTime(at)}>${dueIn(at)}</time>`;
}

/** How many messages are unread, and how many of them are not due yet. */
export function Unread({ depth, scheduled }) {
  return html`<span title=${count(depth)}>${short(depth)}</span>${scheduled > 0 && html` <span class="muted small">${short(scheduled)} scheduled</span>`}`;
}

/** The age of the oldest message that is due, as a figure. */
export function OldestStat({ at, tone }) {
  const due = at != null && isDue(at);
  return html`<${Stat} label="Oldest unread" tone=${tone} value=${due ? briefly(ageSeconds(at)) : "none"} note=${at != null && !due && `next ${dueIn(at)}`} />`;
}

// -- waiting, failing, nothing there --

export function Skeleton({ lines = 4 }) {
  return html`
    <div class="skeleton" role="status" aria-label="Loading">
      ${Array.from({ length: lines }, (_, index) => html`<span key=${index}></span>`)}
    </div>`;
}

const ADVICE = {
  0: "The dashboard keeps trying. Look at the server's log if it does not come back.",
  403: "Ask whoever manages the keys for more rights, or log in with another credential.",
  404: "It may have been deleted meanwhile.",
  429: "The rate limit of this server was reached; the next try follows by itself.",
  503: "The database cannot be reached. The server keeps trying and answers again once it can.",
};

export function ErrorBox({ error, retry }) {
  return html`
    <div class="notice bad" role="alert">
      <strong>${error.status === 403 ? "Not allowed" : "This did not work"}</strong>
      <p>${error.message}</p>
      ${ADVICE[error.status] && html`<p class="muted">${ADVICE[error.status]}</p>`}
      ${retry && html`<button onClick=${retry}>Try again</button>`}
    </div>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><strong>${title}</strong><p class="muted">${children}</p></div>`;
}

/** Shows *children(data)* once there is some; until then a skeleton, or why there is none. */
export function Loaded({ of: source, lines, children }) {
  if (source.data == null) {
    return source.error
      ? html`<${ErrorBox} error=${source.error} retry=${source.reload} />`
      : html`<${Skeleton} lines=${lines} />`;
  }
  return html`
    ${source.error && html`<${ErrorBox} error=${source.error} retry=${source.reload} />`}
    ${children(source.data)}`;
}

// -- buttons and forms --

/** A button that is greyed out, with the reason, when the credential does not allow what it does. */
export function Action({ access, use, queue, kind = "", onClick, children, disabled, label }) {
  const reason = access ? refusal(access, use, queue) : "";
  return html`
    <button class=${kind} type="button" aria-label=${label} disabled=${Boolean(reason) || disabled}
      title=${reason || undefined} onClick=${onClick}>${children}</button>`;
}

export function Field({ label, hint, children, wide = false }) {
  return html`
    <label class=${`field ${wide ? "wide" : ""}`}>
      <span class="label">${label}</span>
      ${children}
      ${hint && html`<span class="muted small">${hint}</span>`}
    </label>`;
}

/** A search box that tells its text a moment after the last key. */
export function Search({ value, onInput, label, placeholder = "Search" }) {
  const timer = useRef(null);
  return html`
    <input type="search" class="search" aria-label=${label} placeholder=${placeholder}
      defaultValue=${value} onInput=${(event) => {
        const text = event.currentTarget.value;
        clearTimeout(timer.current);
        timer.current = setTimeout(() => onInput(text), 250);
      }} />`;
}

export function Choice({ label, value, options, onChange }) {
  return html`
    <select aria-label=${label} value=${value} onChange=${(event) => onChange(event.currentTarget.value)}>
      ${options.map(([key, text]) => html`<option key=${key} value=${key} selected=${key === value}>${text}</option>`)}
    </select>`;
}

export function Tabs({ tabs, current, onChange, label }) {
  const list = useRef(null);
  // Where the tabs are wider than the screen.
  useEffect(() => list.current.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest", inline: "center" }), [current]);
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const index = tabs.findIndex(([key]) => key === current);
    const next = tabs[(index + step + tabs.length) % tabs.length][0];
    onChange(next);
    event.currentTarget.querySelector(`[data-tab="${next}"]`).focus();
  };
  return html`
    <div ref=${list} class="tabs" role="tablist" aria-label=${label} onKeyDown=${move}>
      ${tabs.map(([key, text]) => html`
        <button key=${key} id=${`tab-${key}`} data-tab=${key} role="tab" type="button" aria-selected=${key === current}
          aria-controls=${key === current ? `panel-${key}` : undefined} tabindex=${key === current ? 0 : -1} onClick=${() => onChange(key)}>${text}</button>`)}
    </div>`;
}

/** What the tab *name* shows. */
export function TabPanel({ name, children }) {
  return html`<div role="tabpanel" id=${`panel-${name}`} aria-labelledby=${`tab-${name}`} class="panel">${children}</div>`;
}

// -- tables --

/** columns: [{key, label, number, render(row), sort: true}]; *sort* {key, down} with *onSort*. */
export function Table({ columns, rows, id, sort, onSort, caption }) {
  return html`
    <div class="table-wrap">
      <table>
        <caption class="sr-only">${caption}</caption>
        <thead><tr>
          ${columns.map((column) => html`
            <th key=${column.key} scope="col" class=${column.number ? "number" : ""}
              aria-sort=${sort?.key === column.key ? (sort.down ? "descending" : "ascending") : undefined}>
              ${column.sort && onSort ? html`
                <button type="button" class="sort" onClick=${() => onSort({
                  key: column.key,
                  down: sort?.key === column.key ? !sort.down : Boolean(column.number),
                })}>${column.label}<span aria-hidden="true">${sort?.key === column.key ? (sort.down ? " ↓" : " ↑") : ""}</span></button>`
                : column.label}
            </th>`)}
        </tr></thead>
        <tbody>
          ${rows.map((row) => html`
            <tr key=${id(row)}>
              ${columns.map((column) => html`
                <td key=${column.key} data-label=${typeof column.label === "string" ? column.label : ""}
                  class=${`${column.number ? "number" : ""} ${column.kind ?? ""}`}><span class="cell">${column.render(row)}</span></td>`)}
            </tr>`)}
        </tbody>
      </table>
    </div>`;
}

export function Pager({ offset, limit, total, onOffset, noun }) {
  if (total <= limit && offset === 0) return html`<p class="muted small pager">${count(total)} ${noun}</p>`;
  return html`
    <nav class="pager" aria-label="Pages">
      <button type="button" disabled=${offset === 0} onClick=${() => onOffset(Math.max(0, offset - limit))}>← Previous</button>
      <span class="muted small">${count(Math.min(offset + 1, total))}–${count(Math.min(offset + limit, total))} of ${count(total)} ${noun}</span>
      <button type="button" disabled=${offset + limit >= total} onClick=${() => onOffset(offset + limit)}>Next →</button>
    </nav>`;
}

// -- dialogs: the browser's own, which keeps the focus inside and closes by Escape --

export function Dialog({ title, onClose, children, wide = false }) {
  const dialog = useRef(null);
  useLayoutEffect(() => {
    const before = document.activeElement;
    dialog.current.showModal();
    return () => before?.isConnected && before.focus();
  }, []);
  return html`
    <dialog ref=${dialog} class=${wide ? "wide" : ""} aria-labelledby="dialog-title"
      onClose=${onClose}
      onMouseDown=${(event) => event.target === dialog.current && dialog.current.close()}>
      <div class="dialog">
        <header><h2 id="dialog-title">${title}</h2>
          <button type="button" class="quiet" aria-label="Close" onClick=${() => dialog.current.close()}>✕</button></header>
        ${children}
      </div>
    </dialog>`;
}

/** The buttons of a dialog, which stay in view, below what went wrong; that gets the focus, so that it is
 *  seen and read out wherever the form was scrolled to. */
export function DialogFooter({ error, children }) {
  const box = useRef(null);
  useEffect(() => {
    if (error) box.current.focus();
  }, [error]);
  return html`
    <footer>
      ${error && html`<div ref=${box} class="failure" tabindex="-1"><${ErrorBox} error=${error} /></div>`}
      <div class="actions">${children}</div>
    </footer>`;
}

/** Asks before *act()*; with *word* only after that was typed. What happens is in *children*. */
export function Confirm({ title, verb, word, act, onClose, children, kind = "danger", ready = true }) {
  const [typed, setTyped] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await act();
      onClose();
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };
  return html`
    <${Dialog} title=${title} onClose=${onClose}>
      <form onSubmit=${submit}>
        <div class="body">
          ${children}
          ${word && html`
            <${Field} label=${html`Type <code>${word}</code> to confirm`}>
              <input type="text" autocomplete="off" spellcheck="false" value=${typed}
                onInput=${(event) => setTyped(event.currentTarget.value)} />
            <//>`}
        </div>
        <${DialogFooter} error=${error}>
          <button type="button" onClick=${onClose}>Cancel</button>
          <button type="submit" class=${kind} disabled=${busy || !ready || (word && typed !== word)}>
            ${busy ? "Working…" : verb}</button>
        <//>
      </form>
    <//>`;
}

// -- short words at the bottom: what was done --

const toasts = new Store([]);
let toastCount = 0;

export function toast(text, tone = "good") {
  const one = { id: (toastCount += 1), text, tone };
  toasts.set([...toasts.value, one]);
  setTimeout(() => toasts.set(toasts.value.filter((other) => other !== one)), 6000);
}

export function Toasts() {
  const shown = useStore(toasts);
  return html`
    <div class="toasts" role="status" aria-live="polite">
      ${shown.map((one) => html`<div key=${one.id} class=${`toast ${one.tone}`}>${one.text}</div>`)}
    </div>`;
}

// -- payloads --

const SHOWN_CHARS = 20_000;

export function Payload({ value }) {
  const [all, setAll] = useState(false);
  const text = JSON.stringify(value, null, 2) ?? "null";
  const size = new TextEncoder().encode(JSON.stringify(value) ?? "null").length;
  const cut = !all && text.length > SHOWN_CHARS;
  return html`
    <div class="payload">
      <div class="payload-head">
        <span class="muted small">${bytes(size)} of JSON${cut ? `, the first ${count(SHOWN_CHARS)} characters` : ""}</span>
        <span class="actions">
          ${text.length > SHOWN_CHARS && html`<button type="button" class="small" onClick=${() => setAll(!all)}>${all ? "Show less" : "Show all"}</button>`}
          ${navigator.clipboard && html`<button type="button" class="small" onClick=${async () => {
            await navigator.clipboard.writeText(text);
            toast("Copied");
          }}>Copy</button>`}
        </span>
      </div>
      <pre tabindex="0" aria-label="Payload"><code>${cut ? text.slice(0, SHOWN_CHARS) : text}</code></pre>
    </div>`;
}

/** The beginning of a payload, in one line. */
export function preview(value, chars = 120) {
  const text = JSON.stringify(value) ?? "null";
  return text.length > chars ? `${text.slice(0, chars)}…` : text;
}
