import { html, useMemo, useState } from "../lib/view.js";
import { get, path, post } from "../lib/api.js";
import { ageSeconds, count, duration, groupName, rate, short, since } from "../lib/format.js";
import { ageTone, OLD_S } from "../lib/health.js";
import { useData } from "../lib/live.js";
import { go, href, requery } from "../lib/router.js";
import {
  Action, Ago, Badge, Card, Choice, Dialog, DialogFooter, Empty, Field, Loaded, Oldest, OldestStat, Page, Pager, Search, Stat, Stats, TabPanel, Table, Tabs, toast, Unread,
} from "../lib/components.js";
import { Chart, DURATION_STEPS, ended } from "../lib/chart.js";
import { OPTION_GROUPS } from "../lib/options.js";
import { MESSAGE_COLUMNS } from "./message_table.js";
import { QueueForm } from "./queue_form.js";
import { GroupState } from "./groups.js";
import { ClearQueue, DeleteQueue } from "./queue_actions.js";

const LIMIT = 50;
const TABS = [["partitions", "Partitions"], ["groups", "Groups"], ["tail", "Live tail"], ["history", "History"], ["options", "Options"]];
const about = (name) => (event, data) => data?.queue === name;

export function Queue({ name, query }) {
  const [dialog, setDialog] = useState(null);
  const tab = query.get("tab") ?? "partitions";
  const source = useData(async (signal) => {
    const { queues } = await get("/api/v1/dashboard/queues", { queue: name }, signal);
    if (!queues.length) throw Object.assign(new Error(`There is no queue ${name}`), { status: 404 });
    return queues[0];
  }, [name], { every: 3000, wanted: about(name) });
  const row = source.data;
  const close = () => setDialog(null);
  const done = () => {
    close();
    source.reload();
  };
  return html`
    <${Page} title=${name} back=${{ href: "#/queues", label: "Queues" }}
      about=${row && html`${row.namespace && `Namespace ${row.namespace}${row.task && `, task ${row.task}`} · `}made <${Ago} at=${row.createdAt} />`}
      actions=${html`
        <${Action} kind="primary" access="write-only" use="push" queue=${name} onClick=${() => setDialog("push")}>Push a message<//>
        <${Action} access="read-write" use="administer" queue=${name} onClick=${() => setDialog("configure")}>Configure<//>
        <${Action} kind="danger" access="admin" use="administer" queue=${name} onClick=${() => setDialog("clear")}>Delete messages<//>
        <${Action} kind="danger" access="admin" use="administer" queue=${name} onClick=${() => setDialog("delete")}>Delete queue<//>`}>
      <${Loaded} of=${source} lines=${2}>${() => html`
        <${Stats}>
          <${Stat} label="Unread" value=${short(row.depth)} unit="msg" note=${[row.scheduled > 0 && `${short(row.scheduled)} scheduled`, row.maxSize ? `${short(row.limited)} of at most ${short(row.maxSize)}` : `${short(row.total)} stored`].filter(Boolean).join(", ")} />
          <${OldestStat} at=${row.depth ? row.oldestDueAt : null} tone=${ageTone(row)} />
          <${Stat} label="In" value=${rate(row.pushedPerSecond)} unit="msg/s" note=${html`last <${Ago} at=${row.lastPushAt} />`} />
          <${Stat} label="Out" value=${rate(row.ackedPerSecond)} unit="msg/s" note=${row.consumedAt ? html`last <${Ago} at=${row.consumedAt} />` : "never read"} />
          <${SlowestReader} row=${row} />
          <${Stat} label="In work" value=${short(row.processing)} unit="msg" />
          <${Stat} label="Dead letters" value=${short(row.deadLetters)} tone=${row.deadLetters ? "warn" : ""} href=${href(["dead-letters"], { queue: name })} />
        <//>`}<//>
      ${(row || !source.error) && html`
        <${Card}>
          <${Tabs} label="Parts of the queue" tabs=${TABS} current=${tab} onChange=${(key) => requery({ tab: key, offset: "", search: "" })} />
          <${TabPanel} key=${tab} name=${tab}>
            ${tab === "partitions" && html`<${Partitions} name=${name} query=${query} />`}
            ${tab === "groups" && html`<${GroupsOf} name=${name} />`}
            ${tab === "tail" && html`<${Tail} key=${query.get("partition")} name=${name} partition=${query.get("partition") ?? ""} />`}
            ${tab === "history" && html`<${History} name=${name} />`}
            ${tab === "options" && html`<${Options} name=${name} version=${row} />`}
          <//>
        <//>`}
      ${dialog === "push" && html`<${Push} name=${name} onClose=${close} onDone=${done} />`}
      ${dialog === "configure" && html`<${QueueForm} name=${name} onClose=${close} onDone=${done} />`}
      ${dialog === "clear" && html`<${ClearQueue} name=${name} onClose=${close} onDone=${source.reload} />`}
      ${dialog === "delete" && html`<${DeleteQueue} name=${name} onClose=${close} onDone=${() => go(["queues"])} />`}
    <//>`;
}

/** The group that is furthest behind; the queue's unread messages are the sum of its partitions' slowest. */
function SlowestReader({ row }) {
  const [worst] = row.readers;
  if (!worst) return html`<${Stat} label="Slowest group" value="none" note="no group has read it" />`;
  const link = html`<a href=${href(["groups", worst.name, row.name])}>${groupName(worst.name)}</a>`;
  return html`<${Stat} label="Slowest group" value=${short(worst.lag)} unit="msg behind"
    note=${html`${link}, active <${Ago} at=${worst.lastActiveAt} />${row.idleGroups > 0 && html`; ${count(row.idleGroups)} idle not counted`}`} />`;
}

function Partitions({ name, query }) {
  const search = query.get("search") ?? "";
  const sort = query.get("sort") ?? "depth";
  const offset = Number(query.get("offset") ?? 0);
  const source = useData((signal) => get(path`/api/v1/dashboard/queues/${name}/partitions`,
    { search, sort, offset, limit: LIMIT }, signal), [name, search, sort, offset], { every: 3000, wanted: about(name) });
  return html`
    <div class="toolbar">
      <${Search} label="Search partitions" placeholder="Search partitions" value=${search} onInput=${(text) => requery({ search: text, offset: "" })} />
      <${Choice} label="Order" value=${sort} options=${[["depth", "Most unread first"], ["name", "By name"]]} onChange=${(key) => requery({ sort: key, offset: "" })} />
    </div>
    <${Loaded} of=${source}>${({ partitions, total }) => (partitions.length ? html`
      <${Table} caption="Partitions" id=${(row) => row.id} rows=${partitions} columns=${[
        { key: "name", label: "Partition", render: (row) => html`<a href=${href(["queues", name], { tab: "tail", partition: row.name })}>${row.name}</a>` },
        { key: "depth", label: "Unread", number: true, render: (row) => html`<${Unread} depth=${row.depth} scheduled=${row.scheduled} />` },
        { key: "age", label: "Oldest", number: true, render: (row) => html`<${Oldest} at=${row.depth ? row.oldestDueAt : null} tone=${ageTone(row)} />` },
        { key: "processing", label: "In work", number: true, render: (row) => short(row.processing) },
        { key: "total", label: "Stored", number: true, render: (row) => short(row.total) },
        { key: "dead", label: "Dead letters", number: true, render: (row) => short(row.deadLetters) },
        { key: "last", label: "Last push", number: true, render: (row) => html`<${Ago} at=${row.lastPushAt} />` },
        { key: "read", label: "Last read", number: true, render: (row) => html`<${Ago} at=${row.consumedAt} />` },
      ]} />
      <${Pager} offset=${offset} limit=${LIMIT} total=${total} noun=${total === 1 ? "partition" : "partitions"} onOffset=${(next) => requery({ offset: next || "" })} />`
      : html`<${Empty} title=${search ? "No partition matches" : "No partition yet"}>${search ? `None has “${search}” in its name.` : "Push a message: its partition is made with it."}<//>`)}<//>`;
}

function GroupsOf({ name }) {
  const source = useData((signal) => get(path`/api/v1/dashboard/queues/${name}/groups`, {}, signal), [name], { every: 3000, wanted: about(name) });
  return html`<${Loaded} of=${source}>${({ groups }) => (groups.length ? html`
    <${Table} caption="Consumer groups" id=${(row) => row.name} rows=${groups} columns=${[
      { key: "name", label: "Group", render: (row) => html`<a href=${href(["groups", row.name, name])}>${groupName(row.name)}</a>${row.conflation && html` <${Badge}>newest only<//>`}` },
      { key: "lag", label: "Unread", number: true, render: (row) => html`<${Unread} depth=${row.lag} scheduled=${row.scheduled} />` },
      { key: "state", label: "State", render: (row) => html`<${GroupState} state=${row.state} counted=${row.counted} at=${row.lastActiveAt} />` },
      { key: "age", label: "Oldest", number: true, render: (row) => html`<${Oldest} at=${row.lag ? row.oldestDueAt : null} tone=${row.counted && ageSeconds(row.oldestDueAt) > OLD_S ? "warn" : ""} />` },
      { key: "behind", label: "Partitions behind", number: true, render: (row) => `${short(row.laggingPartitions)} of ${short(row.partitions)}` },
      { key: "leased", label: "Held now", number: true, render: (row) => short(row.leasedPartitions) },
      { key: "active", label: "Last active", number: true, render: (row) => html`<${Ago} at=${row.lastActiveAt} />` },
    ]} />` : html`<${Empty} title="Nobody reads this queue">A group appears with its first pop.<//>`)}<//>`;
}

const TAIL = 50;

function Tail({ name, partition }) {
  const [paused, setPaused] = useState(false);
  const [wanted, setWanted] = useState(partition);
  const source = useData((signal) => get("/api/v1/messages", {
    queue: name, partition, limit: TAIL, from: "1970-01-01T00:00:00Z",
  }, signal), [name, partition, paused], { every: paused ? 0 : 1000, wanted: paused ? null : about(name) });
  return html`
    <form class="toolbar" onSubmit=${(event) => {
      event.preventDefault();
      requery({ partition: wanted });
    }}>
      <input type="text" class="search" aria-label="Partition" placeholder="All partitions" value=${wanted} onInput=${(event) => setWanted(event.currentTarget.value)} />
      <button type="submit">Show</button>
      ${partition && html`<button type="button" class="quiet" onClick=${() => requery({ partition: "" })}>All partitions</button>`}
      <span class="grow"></span>
      <span class="muted small">The newest ${TAIL} messages. Looking does not take them.</span>
      <button type="button" aria-pressed=${paused} onClick=${() => setPaused(!paused)}>${paused ? "▶ Go on" : "❚❚ Pause"}</button>
    </form>
    <${Loaded} of=${source}>${({ messages }) => (messages.length ? html`
      <${Table} caption="The newest messages" id=${(row) => row.id} rows=${messages} columns=${MESSAGE_COLUMNS} />`
      : html`<${Empty} title="No message here">${partition ? `Partition ${partition} holds none.` : "Push one to see it arrive."}<//>`)}<//>`;
}

function Options({ name, version }) {
  const source = useData((signal) => get(path`/api/v1/dashboard/queues/${name}/options`, {}, signal), [name, version?.maxSize], { every: 15_000 });
  return html`<${Loaded} of=${source} lines=${8}>${(options) => html`
    ${OPTION_GROUPS.map(([title, fields]) => html`
      <section key=${title}><h3>${title}</h3>
        <dl class="facts options">${fields.map(([key, label, kind]) => html`
          <dt key=${key}>${label}</dt><dd>${shownOption(options[key], kind, key)}</dd>`)}</dl></section>`)}`}<//>`;
}

const RANGES = [["1", "Last hour"], ["24", "Last day"], ["168", "Last week"]];

function History({ name }) {
  const [hours, setHours] = useState("1");
  const source = useData((signal) => get("/api/v1/analytics/queue-ops", {
    queue: name, from: since(Number(hours)),
  }, signal), [name, hours], { every: 15_000 });
  return html`
    <div class="toolbar"><${Choice} label="Range" value=${hours} options=${RANGES} onChange=${setHours} /></div>
    <${Loaded} of=${source}>${({ series, bucketMinutes }) => (ended(inOrder(series), "bucket", bucketMinutes).length > 1 ? html`<${Charts} series=${series} bucketMinutes=${bucketMinutes} />`
      : html`<${Empty} title="No history yet">Figures are kept by the minute; come back in a few minutes.<//>`)}<//>`;
}

function inOrder(series) {
  return [...series].sort((a, b) => (a.bucket < b.bucket ? -1 : 1));
}

function Charts({ series, bucketMinutes }) {
  const points = useMemo(() => ended(inOrder(series), "bucket", bucketMinutes), [series]);
  const lines = (...names) => [
    points.map((one) => new Date(one.bucket).getTime() / 1000), ...names.map((key) => points.map((one) => one[key])),
  ];
  const rates = useMemo(() => lines("pushPerSecond", "ackPerSecond"), [points]);
  const depths = useMemo(() => lines("depth"), [points]);
  const ages = useMemo(() => lines("oldestUnreadSeconds"), [points]);
  return html`
    <${Chart} label="Throughput" data=${rates} unit="msg/s" height=${160} series=${[{ label: "In", colour: "--in", fill: true }, { label: "Out", colour: "--out" }]} />
    <div class="grid-2">
      <${Chart} label="Unread" data=${depths} format=${short} height=${140} series=${[{ label: "Unread", colour: "--in", fill: true }]} />
      <${Chart} label="Oldest unread" data=${ages} format=${duration} steps=${DURATION_STEPS} height=${140} series=${[{ label: "Oldest unread", colour: "--warn-line", fill: true }]} />
    </div>`;
}

// Of these a 0 is a value like any other; of all others it switches the option off.
const ZERO_COUNTS = new Set(["leaseTime", "retryLimit", "retryDelay", "priority", "ttl", "dedupWindowSeconds"]);

function shownOption(value, kind, key) {
  if (kind === "bool") return value ? "yes" : "no";
  if (value == null) return html`<span class="muted">not set</span>`;
  if (value === 0 && !ZERO_COUNTS.has(key)) return html`<span class="muted">off</span>`;
  if (kind === "s") return `${count(value)} s${value >= 60 ? ` (${duration(value)})` : ""}`;
  return `${count(value)}${kind ? ` ${kind}` : ""}`;
}

function Push({ name, onClose, onDone }) {
  const [partition, setPartition] = useState("Default");
  const [id, setId] = useState("");
  const [text, setText] = useState('{\n  "hello": "world"\n}');
  const [error, setError] = useState(null);
  const submit = async (event) => {
    event.preventDefault();
    let payload;
    try {
      payload = JSON.parse(text);
    } catch (failure) {
      setError(new Error(`The payload is not valid JSON: ${failure.message}`));
      return;
    }
    try {
      const [result] = await post("/api/v1/push", { items: [{ queue: name, partition, payload, ...(id && { transactionId: id }) }] });
      toast(result.status === "duplicate"
        ? `${result.transaction_id} was stored before: nothing was pushed` : `Pushed at offset ${result.offset} of ${partition}`,
        result.status === "duplicate" ? "bad" : "good");
      onDone();
    } catch (failure) {
      setError(failure);
    }
  };
  return html`
    <${Dialog} title=${`Push to ${name}`} onClose=${onClose}>
      <form onSubmit=${submit}>
        <div class="body">
          <p class="muted">A real message: consumers get it as any other.</p>
          <${Field} label="Partition"><input type="text" required value=${partition} onInput=${(event) => setPartition(event.currentTarget.value)} /><//>
          <${Field} label="Transaction id" hint="Empty: one is made. An id is stored once in its partition."><input type="text" value=${id} onInput=${(event) => setId(event.currentTarget.value)} /><//>
          <${Field} label="Payload (JSON)"><textarea spellcheck="false" value=${text} onInput=${(event) => setText(event.currentTarget.value)}></textarea><//>
        </div>
        <${DialogFooter} error=${error}><button type="button" onClick=${onClose}>Cancel</button><button type="submit" class="primary">Push</button><//>
      </form>
    <//>`;
}
