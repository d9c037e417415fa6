import { html, useState } from "../lib/view.js";
import { get, path, post, remove } from "../lib/api.js";
import { age, count, groupName, plural, short } from "../lib/format.js";
import { useData } from "../lib/live.js";
import { href, requery } from "../lib/router.js";
import { Action, Ago, Card, Dialog, DialogFooter, Empty, Field, Loaded, Page, Pager, Payload, Search, Table, toast } from "../lib/components.js";

const LIMIT = 50;
const NO_REASON = "no reason given";
// One request does so many: about a second's worth, so that the bar moves and a click can stop it.
const AT_ONCE_MIN = 500;
const AT_ONCE_MAX = 10_000;

// Which dead letters: of a queue, with exactly this reason, with this in their reason. Null is any, as an
// empty reason is one, too; so it stands quoted in the address of the page.
function read(query) {
  let reason = null;
  try {
    reason = JSON.parse(query.get("reason"));
  } catch {
    // Somebody wrote it by hand.
  }
  return {
    queue: query.get("queue") ?? "", part: query.get("part") ?? "",
    reason: typeof reason === "string" ? reason : null,
  };
}

/** The route and the query that mean *set*. */
function asked({ queue, reason, part }, more) {
  return [reason === null ? "/api/v1/dlq" : path`/api/v1/dlq?error=${reason}`, { queue, errorContains: part, ...more }];
}

function named({ reason, part }) {
  if (reason !== null) return reason ? html` whose reason is “${reason}”` : " without a reason";
  return part && html` whose reason contains “${part}”`;
}

function titled({ queue, reason, part }) {
  if (reason !== null) return reason ? `“${reason}”` : "No reason given";
  if (part) return `Reasons with “${part}”`;
  return queue ? `In ${queue}` : "Newest";
}

export function DeadLetters({ query }) {
  const [dialog, setDialog] = useState(null);
  const [chosen, setChosen] = useState(new Set());
  const set = read(query);
  const { queue, reason, part } = set;
  const offset = Number(query.get("offset") ?? 0);
  const wanted = (event) => event === "message.failed";
  const errors = useData((signal) => get("/api/v1/dashboard/dead-letter-errors", { queue }, signal), [queue], { every: 5000, wanted });
  const letters = useData((signal) => get(...asked(set, { limit: LIMIT, offset }), signal),
    [queue, reason, part, offset], { every: 5000, wanted });
  const renew = () => {
    setChosen(new Set());
    errors.reload();
    letters.reload();
  };
  const close = () => setDialog(null);
  const choose = (id, on) => {
    const next = new Set(chosen);
    if (on) next.add(id);
    else next.delete(id);
    setChosen(next);
  };
  const page = letters.data?.messages ?? [];
  const shown = page.filter((one) => chosen.has(one.id));

  return html`
    <${Page} title="Dead letters" about="Messages whose attempts ran out. They stay until they are moved back or deleted.">
      <${Card} title="By reason" about=${errors.data?.ageSeconds >= 2 ? `As counted ${age(errors.data.ageSeconds)} ago.` : ""} actions=${queue && html`<span class="muted small">of ${queue}</span> <button type="button" class="small" onClick=${() => requery({ queue: "", part: "", reason: "", offset: "" })}>All queues</button>`}>
        <${Loaded} of=${errors}>${({ errors: rows }) => (rows.length ? html`
          <${Table} caption="Dead letters by reason" id=${(row) => `${row.queue}\n${row.error}`} rows=${rows} columns=${[
            { key: "error", label: "Reason", render: (row) => html`<button type="button" class="link" onClick=${() => {
              setChosen(new Set());
              requery({ queue: row.queue, part: "", reason: JSON.stringify(row.error), offset: "" });
            }}>${row.error || NO_REASON}</button>` },
            { key: "queue", label: "Queue", kind: "wide", render: (row) => html`<a href=${href(["queues", row.queue])}>${row.queue}</a>` },
            { key: "count", label: "Messages", number: true, render: (row) => short(row.count) },
            { key: "groups", label: "Groups", number: true, render: (row) => short(row.groups) },
            { key: "first", label: "First", number: true, render: (row) => html`<${Ago} at=${row.firstFailedAt} />` },
            { key: "last", label: "Last", number: true, render: (row) => html`<${Ago} at=${row.lastFailedAt} />` },
            { key: "actions", label: "", kind: "right", render: (row) => html`<${Action} kind="small" access="read-write" use="administer" queue=${row.queue}
              label=${`Redrive ${row.error || NO_REASON} of ${row.queue}`} onClick=${() => setDialog({ redrive: { queue: row.queue, reason: row.error, part: "" } })}>Redrive<//>` },
          ]} />` : html`<${Empty} title="No dead letters">Every message was read, or is still to be.<//>`)}<//>
      <//>
      ${(letters.error || letters.data?.total > 0 || queue || part || reason !== null) && html`
        <${Card} title=${titled(set)} actions=${html`
          <${Action} access="read-write" use="administer" queue=${queue || "*"} disabled=${!shown.length} onClick=${() => setDialog("selected")}>Redrive ${shown.length || ""} selected<//>
          <${Action} access="read-write" use="administer" queue=${queue} disabled=${!queue} onClick=${() => setDialog({ redrive: set })}>Redrive all<//>
          <${Action} kind="danger" access="admin" use="administer" queue=${queue} disabled=${!queue} onClick=${() => setDialog({ purge: set })}>Purge all<//>`}
          about=${queue ? "" : "Choose a reason above to move or delete all of its messages."}>
          <div class="toolbar">${reason === null
            ? html`<${Search} key=${queue} label="Search reasons" placeholder="Part of the reason" value=${part} onInput=${(text) => requery({ part: text, offset: "" })} />`
            : html`<button type="button" class="small" onClick=${() => requery({ reason: "", offset: "" })}>Any reason</button>`}</div>
          <${Loaded} of=${letters}>${({ messages, total, truncated }) => (messages.length ? html`
            <${Table} caption="Dead letters" id=${(row) => row.id} rows=${messages} columns=${[
              { key: "choose", kind: "choose", label: html`<input type="checkbox" aria-label="Select all on this page" checked=${shown.length === messages.length}
                onChange=${(event) => setChosen(event.currentTarget.checked ? new Set(messages.map((one) => one.id)) : new Set())} />`,
                render: (row) => html`<label class="hit"><input type="checkbox" aria-label=${`Select ${row.transactionId}`} checked=${chosen.has(row.id)} onChange=${(event) => choose(row.id, event.currentTarget.checked)} /></label>` },
              { key: "id", label: "Transaction id", kind: "mono", render: (row) => html`<button type="button" class="link" onClick=${() => setDialog({ inspect: row })}>${row.transactionId}</button>` },
              { key: "queue", label: "Queue / partition", kind: "wide", render: (row) => `${row.queue} / ${row.partition}` },
              { key: "group", label: "Group", render: (row) => groupName(row.consumerGroup) },
              { key: "error", label: "Reason", kind: "wide", render: (row) => row.errorMessage || html`<span class="muted">${NO_REASON}</span>` },
              { key: "retries", label: "Retries", number: true, render: (row) => count(row.retryCount) },
              { key: "at", label: "Given up", number: true, render: (row) => html`<${Ago} at=${row.failedAt} />` },
            ]} />
            <${Pager} offset=${offset} limit=${truncated ? messages.length : LIMIT} total=${total} noun=${total === 1 ? "dead letter" : "dead letters"} onOffset=${(next) => requery({ offset: next || "" })} />`
            : html`<${Empty} title="None here">None matches; they may have been moved back meanwhile.<//>`)}<//>
        <//>`}
      ${dialog?.inspect && html`<${Inspect} letter=${dialog.inspect} onClose=${close} onDone=${renew} />`}
      ${dialog?.redrive && html`<${RedriveAll} of=${dialog.redrive} onClose=${() => {
        close();
        renew();
      }} />`}
      ${dialog === "selected" && html`<${RedriveSelected} letters=${shown} onClose=${() => {
        close();
        renew();
      }} />`}
      ${dialog?.purge && html`<${PurgeAll} of=${dialog.purge} onClose=${() => {
        close();
        renew();
      }} />`}
    <//>`;
}

function Inspect({ letter, onClose, onDone }) {
  const [failure, setFailure] = useState(null);
  const retry = async () => {
    try {
      const answer = await post(path`/api/v1/dlq/${letter.id}/replay`, {});
      toast(answer.retried ? `Moved back to ${answer.queue} / ${answer.partition}` : "It was moved before; nothing was done");
      onDone();
      onClose();
    } catch (error) {
      setFailure(error);
    }
  };
  return html`
    <${Dialog} wide title=${letter.transactionId} onClose=${onClose}>
      <div class="body">
        <dl class="facts">
          <dt>Reason</dt><dd>${letter.errorMessage || NO_REASON}</dd>
          <dt>Where</dt><dd><a href=${href(["queues", letter.queue])}>${letter.queue}</a> / ${letter.partition}</dd>
          <dt>Group</dt><dd>${groupName(letter.consumerGroup)}</dd>
          <dt>Retries</dt><dd>${count(letter.retryCount)}</dd>
          <dt>Pushed</dt><dd><${Ago} at=${letter.createdAt} /></dd>
          <dt>Given up</dt><dd><${Ago} at=${letter.failedAt} /></dd>
        </dl>
        <${Payload} value=${letter.data} />
      </div>
      <${DialogFooter} error=${failure}>
        <a href=${href(["messages", letter.partitionId, letter.transactionId])}>Message and trace</a>
        <button type="button" onClick=${onClose}>Close</button>
        <${Action} kind="primary" access="read-write" use="administer" queue=${letter.queue} onClick=${retry}>Redrive<//>
      <//>
    <//>`;
}

/** Runs *step(atOnce, done)* until it says that all is done; a click stops it between two steps. A step
 *  tells how many it has *done*, what else there is to say of all so far (*note*), and whether there is
 *  *more*. With *word* it begins only after that was typed. */
function Progress({ title, verb, kind = "primary", did, word, total, explain, step, onClose }) {
  const [state, setState] = useState({ done: 0, note: "", running: false, ended: false, error: null });
  const [typed, setTyped] = useState("");
  const [stop] = useState({ asked: false });
  const run = async () => {
    let [done, note, atOnce] = [0, "", AT_ONCE_MIN];
    const show = (more) => setState({ done, note, running: false, ended: false, error: null, ...more });
    show({ running: true });
    try {
      for (let more = true; more && !stop.asked;) {
        const began = performance.now();
        const answer = await step(atOnce, done);
        const took = performance.now() - began;
        done += answer.done;
        ({ note, more } = answer);
        if (took < 1000) atOnce = Math.min(atOnce * 2, AT_ONCE_MAX);
        else if (took > 4000) atOnce = Math.max(Math.floor(atOnce / 2), AT_ONCE_MIN);
        show({ running: true });
      }
      show({ ended: true });
    } catch (error) {
      show({ ended: true, error });
    }
  };
  const leave = () => {
    stop.asked = true;
    onClose();
  };
  const most = Math.max(total, 1);
  return html`
    <${Dialog} title=${title} onClose=${leave}>
      <div class="body">
        ${explain}
        ${word && !state.running && !state.ended && html`
          <${Field} label=${html`Type <code>${word}</code> to confirm`}>
            <input type="text" autocomplete="off" spellcheck="false" value=${typed} onInput=${(event) => setTyped(event.currentTarget.value)} />
          <//>`}
        ${(state.running || state.ended) && html`
          <progress max=${most} value=${state.ended && !state.error ? most : state.done}></progress>
          <p role="status">${count(state.done)} of ${count(total)} ${did}${state.note}${state.ended && !state.error && "."}</p>`}
      </div>
      <${DialogFooter} error=${state.error}>
        ${state.ended ? html`<button type="button" class="primary" onClick=${leave}>Done</button>`
          : state.running ? html`<button type="button" onClick=${leave}>Stop</button>`
          : html`<button type="button" onClick=${leave}>Cancel</button><button type="button" class=${kind} disabled=${!total || (word && typed !== word)} onClick=${run}>${verb}</button>`}
      <//>
    <//>`;
}

const REDRIVE = "A message that several groups gave up is pushed once, to the end of the partition it came from, where every group reads it. The copy has an id of its own, and the first one in originalTransactionId. The dead letters are removed.";

function stayed(duplicates) {
  return duplicates ? `, ${count(duplicates)} were there already and stay` : "";
}

/** How many *set* has, once, and a sentence that says so. */
function useTotal(set) {
  const source = useData((signal) => get(...asked(set, { limit: 1 }), signal), [], { every: 0 });
  const total = source.data?.total ?? 0;
  return [total, html`<${Loaded} of=${source} lines=${1}>${() => html`<p><b>${plural(total, "dead letter")}</b> of <b>${set.queue}</b>${named(set)}.</p>`}<//>`];
}

// Both end with as many as were there in the beginning: what comes meanwhile is not meant.

/** What a redrive of *set* would do, as the server says. */
function useRedrivePreview(set) {
  const source = useData(() => post("/api/v1/dlq/redrive", {
    queue: set.queue, error: set.reason, errorContains: set.part || null, dryRun: true,
  }), [], { every: 0 });
  const total = source.data?.remaining ?? 0;
  return [total, html`<${Loaded} of=${source} lines=${1}>${({ messages, deliveries }) => html`
    <p><b>${plural(total, "dead letter")}</b> of <b>${plural(messages, "message")}</b> in <b>${set.queue}</b>${named(set)};
      <b>${plural(deliveries, "delivery", "deliveries")}</b> to groups will follow.</p>`}<//>`];
}

function RedriveAll({ of: set, onClose }) {
  const [total, sentence] = useRedrivePreview(set);
  const step = async (atOnce, done) => {
    const { moved, duplicates, remaining } = await post("/api/v1/dlq/redrive", {
      queue: set.queue, error: set.reason, errorContains: set.part || null, limit: Math.min(atOnce, total - done),
    });
    return { done: moved, note: stayed(duplicates), more: moved > 0 && remaining > 0 && done + moved < total };
  };
  return html`<${Progress} title="Redrive dead letters" verb="Redrive" did="moved" total=${total} step=${step} onClose=${onClose}
    explain=${html`${sentence}<p class="muted">${REDRIVE}</p>`} />`;
}

function PurgeAll({ of: set, onClose }) {
  const [total, sentence] = useTotal(set);
  const step = async (atOnce, done) => {
    const { deleted, remaining } = await remove(...asked(set, { limit: Math.min(atOnce, total - done) }));
    return { done: deleted, note: "", more: deleted > 0 && remaining > 0 && done + deleted < total };
  };
  return html`<${Progress} title="Delete dead letters" verb="Delete them" kind="danger" did="deleted" word=${set.queue} total=${total} step=${step} onClose=${onClose}
    explain=${html`${sentence}<p class="muted">They go for good, with their payloads.</p>`} />`;
}

const BY_ID = 100;

function RedriveSelected({ letters, onClose }) {
  const [left] = useState([...letters]);
  const [total] = useState(letters.length);
  const [passed] = useState({ duplicates: 0, gone: 0 });
  const step = async () => {
    // Those of one queue together, so that the letters of one message are moved as one.
    const { queue } = left[0];
    const run = left.filter((one) => one.queue === queue).slice(0, BY_ID);
    for (const one of run) left.splice(left.indexOf(one), 1);
    const { moved, duplicates } = await post("/api/v1/dlq/redrive", { queue, ids: run.map((one) => one.id) });
    passed.duplicates += duplicates;
    passed.gone += Math.max(run.length - moved - duplicates, 0); // another operator was faster
    const note = `${stayed(passed.duplicates)}${passed.gone ? `, ${count(passed.gone)} gone already` : ""}`;
    return { done: moved, note, more: left.length > 0 };
  };
  return html`<${Progress} title="Redrive selected dead letters" verb="Redrive" did="moved" total=${total} step=${step} onClose=${onClose}
    explain=${html`<p><b>${plural(total, "dead letter")}</b>.</p><p class="muted">${REDRIVE}</p>`} />`;
}
