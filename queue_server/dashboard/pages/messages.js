import { html, useState } from "../lib/view.js";
import { get, path, post, remove } from "../lib/api.js";
import { absoluteTime, count, groupName, plural, since } from "../lib/format.js";
import { useData } from "../lib/live.js";
import { go, href, requery } from "../lib/router.js";
import { Action, Ago, Badge, Card, Choice, Confirm, Empty, Loaded, Page, Pager, Payload, Table, toast } from "../lib/components.js";
import { MESSAGE_COLUMNS, Status } from "./message_table.js";

const LIMIT = 50;
const STATUSES = [["", "Any status"], ["pending", "Pending"], ["processing", "Processing"], ["completed", "Completed"], ["dead_letter", "Dead letter"]];
const AGES = [["1", "Last hour"], ["24", "Last day"], ["168", "Last week"], ["", "Any time"]];
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** The messages with this transaction id; else the one with this message id, looked for on the queue if one is named. */
async function findById(id, queue, signal) {
  try {
    return [await get(path`/api/v1/messages/${id}`, {}, signal)];
  } catch (error) {
    if (error.status === 409) {
      return Promise.all(error.body.messages.map(
        (one) => get(path`/api/v1/messages/${one.partitionId}/${one.transactionId}`, {}, signal)));
    }
    if (error.status !== 404) throw error;
  }
  if (!UUID.test(id)) return [];
  return (await get("/api/v1/messages", { id, queue }, signal)).messages;
}

export function Messages({ query }) {
  const value = (name) => query.get(name) ?? "";
  const hours = query.get("hours") ?? "24";
  const offset = Number(query.get("offset") ?? 0);
  const id = value("id");
  const [form, setForm] = useState({ id, queue: value("queue"), partition: value("partition") });
  const source = useData((signal) => {
    if (id) return findById(id, value("queue"), signal).then((messages) => ({ messages }));
    const from = hours ? since(Number(hours)) : "1970-01-01T00:00:00Z";
    return get("/api/v1/messages", {
      queue: value("queue"), partition: value("partition"), status: value("status"), from, limit: LIMIT, offset,
    }, signal);
  }, [id, value("queue"), value("partition"), value("status"), hours, offset], { every: id ? 0 : 5000 });
  const input = (name, label) => html`
    <input type="text" class="search" aria-label=${label} placeholder=${label} value=${form[name]} onInput=${(event) => setForm({ ...form, [name]: event.currentTarget.value.trim() })} />`;
  return html`
    <${Page} title="Messages" about="Looking does not take a message from its consumers.">
      <${Card}>
        <form class="toolbar dense" role="search" onSubmit=${(event) => {
          event.preventDefault();
          requery({ ...form, offset: "" });
        }}>
          ${input("id", "Transaction or message id")}
          ${input("queue", "Queue")}
          ${input("partition", "Partition")}
          <${Choice} label="Status" value=${value("status")} options=${STATUSES} onChange=${(status) => requery({ ...form, status, offset: "" })} />
          <${Choice} label="Age" value=${hours} options=${AGES} onChange=${(key) => requery({ ...form, hours: key, offset: "" })} />
          <button type="submit" class="primary">Search</button>
          ${[...query.keys()].length > 0 && html`<button type="button" class="quiet" onClick=${() => {
            setForm({ id: "", queue: "", partition: "" });
            go(["messages"]);
          }}>Clear</button>`}
        </form>
        <${Loaded} of=${source} lines=${8}>${({ messages, truncated }) => (messages.length ? html`
          <${Table} caption="Messages, newest first" id=${(row) => row.id} rows=${messages} columns=${[
            MESSAGE_COLUMNS[0], MESSAGE_COLUMNS[1],
            { key: "queue", label: "Queue", kind: "one-line", render: (row) => html`<a href=${href(["queues", row.queue])}>${row.queue}</a>` },
            ...MESSAGE_COLUMNS.slice(2),
          ]} />
          ${!id && html`<${Pager} offset=${offset} limit=${truncated ? messages.length : LIMIT} total=${offset + messages.length + (truncated || messages.length === LIMIT ? 1 : 0)} noun="or more"
            onOffset=${(next) => requery({ offset: next || "" })} />`}`
          : html`<${Empty} title="No message found">${id ? `No stored message and no dead letter${value("queue") && ` of queue ${value("queue")}`} has this id. It may have been deleted by retention.` : "None matches. Try a longer time or fewer conditions."}<//>`)}<//>
      <//>
    <//>`;
}

export function Message({ partitionId, transactionId }) {
  const [dialog, setDialog] = useState(null);
  const address = path`/api/v1/messages/${partitionId}/${transactionId}`;
  const source = useData((signal) => get(address, {}, signal), [address], { every: 5000 });
  const traces = useData((signal) => get(path`/api/v1/traces/${partitionId}/${transactionId}`, {}, signal), [address], { every: 5000 });
  const one = source.data;
  const close = () => setDialog(null);
  const act = async (work, done) => {
    const answer = await work();
    toast(done(answer));
    source.reload();
  };
  const action = (kind, access, label, key, disabled) => html`
    <${Action} kind=${kind} access=${access} use="administer" queue=${one?.queue ?? "*"} disabled=${!one || disabled} onClick=${() => setDialog(key)}>${label}<//>`;
  return html`
    <${Page} title=${transactionId} back=${{ href: "#/messages", label: "Messages" }}
      about=${one && html`<a href=${href(["queues", one.queue])}>${one.queue}</a> / <a href=${href(["queues", one.queue], { tab: "tail", partition: one.partition })}>${one.partition}</a>`}
      actions=${html`
        ${one?.status === "dead_letter" && action("primary", "read-write", "Retry", "retry")}
        ${one && one.status !== "dead_letter" && action("", "read-write", "Give up", "bury", one.status === "completed")}
        ${action("danger", "read-write", "Delete", "delete")}`}>
      <${Loaded} of=${source} lines=${8}>${() => html`
        <div class="grid-2">
          <${Card} title="Message">
            <dl class="facts">
              <dt>Status</dt><dd><${Status} status=${one.status} /></dd>
              <dt>Stored</dt><dd><${Ago} at=${one.createdAt} /> <span class="muted small">${absoluteTime(one.createdAt)}</span></dd>
              <dt>Offset</dt><dd>${count(one.offset)}</dd>
              <dt>Message id</dt><dd><code>${one.id}</code></dd>
              ${one.producerSub && html`<dt>Pushed by</dt><dd>${one.producerSub}</dd>`}
              ${one.traceId && html`<dt>Trace id</dt><dd><code>${one.traceId}</code></dd>`}
              ${one.isEncrypted && html`<dt>At rest</dt><dd>encrypted</dd>`}
              ${one.leaseExpiresAt && html`<dt>Held until</dt><dd>${absoluteTime(one.leaseExpiresAt)}</dd>`}
              ${one.errorMessage != null && html`<dt>Failed with</dt><dd>${one.errorMessage || html`<span class="muted">no reason given</span>`}</dd>
                <dt>Retries</dt><dd>${count(one.retryCount)}</dd><dt>Given up</dt><dd><${Ago} at=${one.failedAt} /></dd>`}
            </dl>
          <//>
          <${Card} title="Groups">
            ${one.consumerGroups.length ? html`<${Table} caption="Groups of the partition" id=${(row) => row.name} rows=${one.consumerGroups} columns=${[
              { key: "name", label: "Group", render: (row) => html`<a href=${href(["groups", row.name, one.queue])}>${groupName(row.name)}</a>` },
              { key: "read", label: "Outcome", render: (row) => (row.gaveUp
                ? html`<${Badge} tone="bad">gave up<//> ${row.errorMessage || html`<span class="muted">no reason given</span>`}`
                : row.consumed ? html`<${Badge} tone="good">acknowledged<//>` : html`<${Badge}>not yet<//>`) },
              { key: "lease", label: "Holds the partition", render: (row) => (row.leaseExpiresAt ? html`until ${absoluteTime(row.leaseExpiresAt)}` : "no") },
            ]} />` : html`<${Empty} title="Nobody yet">No group has read in this partition.<//>`}
          <//>
        </div>
        <${Card} title="Payload">${one.payloadAvailable ? html`<${Payload} value=${one.payload} />` : html`<${Empty} title="Encrypted">The server does not have its key, or it was damaged: see its log.<//>`}<//>`}<//>
      <${Card} title="Trace" about="What its consumers reported about it.">
        <${Loaded} of=${traces} lines=${2}>${({ traces: events }) => (events.length ? html`
          <ol class="timeline">${events.map((event) => html`
            <li key=${event.id}>
              <${Badge} tone=${event.event_type === "error" ? "bad" : "accent"}>${event.event_type}<//>
              ${" "}<span class="muted small"><${Ago} at=${event.created_at} /> · ${groupName(event.consumer_group)}${event.trace_names.length > 0 && ` · ${event.trace_names.join(", ")}`}</span>
              <pre>${typeof event.data?.text === "string" && Object.keys(event.data).length === 1 ? event.data.text : JSON.stringify(event.data)}</pre>
            </li>`)}</ol>` : html`<${Empty} title="No event">Consumers report events with <code>POST /api/v1/traces</code>.<//>`)}<//>
      <//>
      ${dialog === "retry" && html`<${Confirm} kind="primary" title="Retry this message?" verb="Retry" onClose=${close}
        act=${() => act(() => post(`${address}/retry`), (answer) => (answer.retried ? "Moved to the end of its partition" : "It was moved before; nothing was done"))}>
        <p>A copy is pushed to the end of partition <b>${one.partition}</b>, where every group gets it, and the dead letter goes.</p><//>`}
      ${dialog === "bury" && html`<${Confirm} title="Give this message up?" verb="Move to dead letters" onClose=${close}
        act=${() => act(() => post(`${address}/dlq`), (answer) => `Given up for ${plural(answer.consumerGroups?.length ?? 1, "group")}`)}>
        <p>It becomes a dead letter of every group that has not read it, and is not delivered any more.</p><//>`}
      ${dialog === "delete" && html`<${Confirm} title="Delete this message?" verb="Delete" onClose=${close} act=${async () => {
        await remove(address);
        toast(`Deleted ${transactionId}`);
        go(["messages"], { queue: one.queue });
      }}><p>The message and its dead letters go for good${one.status === "completed" ? "" : "; groups that have not read it never will"}.</p><//>`}
    <//>`;
}
