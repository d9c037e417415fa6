import { html, useState } from "../lib/view.js";
import { get } from "../lib/api.js";
import { count, groupName, rate, short } from "../lib/format.js";
import { ageTone } from "../lib/health.js";
import { useData } from "../lib/live.js";
import { go, href, requery } from "../lib/router.js";
import { Action, Card, Empty, Loaded, Oldest, Page, Pager, Search, Table, Unread } from "../lib/components.js";
import { QueueForm } from "./queue_form.js";
import { DeleteQueue } from "./queue_actions.js";

const LIMIT = 50;

const VALUES = {
  name: (row) => row.name.toLowerCase(),
  depth: (row) => row.depth,
  in: (row) => row.pushedPerSecond,
  out: (row) => row.ackedPerSecond,
  // The older, the more.
  age: (row) => (row.depth > 0 && row.oldestDueAt ? -new Date(row.oldestDueAt).getTime() : -Infinity),
  reader: (row) => row.readers[0]?.lag ?? -1,
  processing: (row) => row.processing,
  dead: (row) => row.deadLetters,
  partitions: (row) => row.partitions,
};

export function Queues({ query }) {
  const [dialog, setDialog] = useState(null);
  const search = query.get("search") ?? "";
  const sort = { key: query.get("sort") ?? "depth", down: query.get("order") !== "up" };
  const offset = Number(query.get("offset") ?? 0);
  const source = useData((signal) => get("/api/v1/dashboard/queues", { search }, signal), [search], { every: 3000, wanted: (event) => event === "queue.depth" || event === "queue.created" });
  const close = () => setDialog(null);

  const columns = [
    { key: "name", label: "Queue", sort: true, render: (row) => html`<a href=${href(["queues", row.name])}>${row.name}</a>
      ${row.namespace && row.namespace !== row.name && html` <span class="muted small">${row.namespace}${row.task && ` / ${row.task}`}</span>`}` },
    { key: "depth", label: "Unread", number: true, sort: true, render: (row) => html`<${Unread} depth=${row.depth} scheduled=${row.scheduled} />` },
    { key: "in", label: "In /s", number: true, sort: true, render: (row) => rate(row.pushedPerSecond) },
    { key: "out", label: "Out /s", number: true, sort: true, render: (row) => rate(row.ackedPerSecond) },
    { key: "age", label: "Oldest", number: true, sort: true, render: (row) => html`<${Oldest} at=${row.depth > 0 ? row.oldestDueAt : null} tone=${ageTone(row)} />` },
    { key: "reader", label: "Slowest group", sort: true, render: (row) => (row.readers[0]?.lag > row.readers[0]?.scheduled
      ? html`<a href=${href(["groups", row.readers[0].name, row.name])}>${groupName(row.readers[0].name)}</a> <span class="muted small">${short(row.readers[0].lag)} behind</span>`
      : html`<span class="muted">${row.readerCount ? "all keep up" : "no group yet"}</span>`) },
    { key: "processing", label: "In work", number: true, sort: true, render: (row) => short(row.processing) },
    { key: "dead", label: "Dead letters", number: true, sort: true, render: (row) => (row.deadLetters
      ? html`<a href=${href(["dead-letters"], { queue: row.name })}>${short(row.deadLetters)}</a>` : "0") },
    { key: "partitions", label: "Partitions", number: true, sort: true, render: (row) => short(row.partitions) },
    { key: "actions", label: "", kind: "right", render: (row) => html`<span class="actions">
      <${Action} kind="small" access="read-write" use="administer" queue=${row.name} label=${`Configure ${row.name}`}
        onClick=${() => setDialog({ configure: row.name })}>Configure<//>
      <${Action} kind="small danger" access="admin" use="administer" queue=${row.name} label=${`Delete ${row.name}`}
        onClick=${() => setDialog({ remove: row.name })}>Delete<//></span>` },
  ];

  return html`
    <${Page} title="Queues" about="What waits, how fast it comes and goes, and how long the oldest has waited."
      actions=${html`<${Action} kind="primary" access="read-write" queue="*" onClick=${() => setDialog({ create: true })}>Create queue<//>`}>
      <${Card}>
        <div class="toolbar">
          <${Search} label="Search queues" placeholder="Search by name" value=${search} onInput=${(text) => requery({ search: text, offset: "" })} />
        </div>
        <${Loaded} of=${source} lines=${8}>${({ queues, total }) => {
          if (!queues.length) {
            return search ? html`<${Empty} title="No queue matches">None has “${search}” in its name, namespace or task.<//>`
              : html`<${Empty} title="No queue yet">Create one, or push a message: its queue is made with it.<//>`;
          }
          const value = VALUES[sort.key] ?? VALUES.depth;
          const sorted = [...queues].sort((a, b) => {
            const [x, y] = [value(a), value(b)];
            return (x < y ? -1 : x > y ? 1 : 0) * (sort.down ? -1 : 1) || (a.name < b.name ? -1 : 1);
          });
          return html`
            ${total > queues.length && html`<p class="notice warn">${count(queues.length)} of ${count(total)} queues are shown: those with the most unread messages, the oldest ones, or nearly full.</p>`}
            <${Table} caption="Queues" columns=${columns} rows=${sorted.slice(offset, offset + LIMIT)} id=${(row) => row.name}
              sort=${sort} onSort=${({ key, down }) => requery({ sort: key, order: down ? "down" : "up", offset: "" })} />
            <${Pager} offset=${offset} limit=${LIMIT} total=${sorted.length} noun=${sorted.length === 1 ? "queue" : "queues"} onOffset=${(next) => requery({ offset: next || "" })} />`;
        }}<//>
      <//>
      ${dialog?.create && html`<${QueueForm} onClose=${close} onDone=${(name) => go(["queues", name])} />`}
      ${dialog?.configure && html`<${QueueForm} name=${dialog.configure} onClose=${close} onDone=${() => {
        close();
        source.reload();
      }} />`}
      ${dialog?.remove && html`<${DeleteQueue} name=${dialog.remove} onClose=${close} onDone=${source.reload} />`}
    <//>`;
}
