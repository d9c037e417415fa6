import { html, useMemo, useState } from "../lib/view.js";
import { get, refusal } from "../lib/api.js";
import { age, ageSeconds, briefly, bytes, count, duration, groupName, isDue, NONE, percent, plural, rate, short, since } from "../lib/format.js";
import { ageTone, holderName, isSilent, problems } from "../lib/health.js";
import { useData, useThroughput } from "../lib/live.js";
import { href } from "../lib/router.js";
import { Action, Ago, Badge, Card, Choice, Empty, Loaded, Oldest, Page, Skeleton, Stat, Stats, Table } from "../lib/components.js";
import { Chart, ended } from "../lib/chart.js";
import { DeleteGroup, Seek } from "./groups.js";

const SERIES = [
  { label: "In", colour: "--in", fill: true },
  { label: "Out", colour: "--out" },
];
const RANGES = [["live", "Last 5 minutes, live"], ["1", "Last hour"], ["24", "Last day"], ["168", "Last week"]];

export function Overview() {
  const samples = useThroughput();
  const queues = useData((signal) => get("/api/v1/dashboard/queues", {}, signal), [], { every: 3000, wanted: (event) => event === "queue.depth" || event === "system.stats" });
  const health = useData((signal) => get("/health", {}, signal), [], { every: 3000 });
  const postgres = useData((signal) => get("/api/v1/analytics/postgres-stats", {}, signal), [], { every: 10_000 });
  const workers = useData(loadWorkers, [], { every: 5000 });

  const maintenance = useData(
    (signal) => (refusal("admin") ? Promise.resolve(null) : get("/api/v1/system/maintenance", {}, signal)),
    [], { every: 10_000 });

  const rows = queues.data?.queues ?? [];
  const sum = (name) => rows.reduce((total, row) => total + row[name], 0);
  const behind = rows.filter((row) => row.depth > 0 && row.oldestDueAt && isDue(row.oldestDueAt));
  const oldest = behind.reduce(
    (worst, row) => (!worst || row.oldestDueAt < worst.oldestDueAt ? row : worst), null);
  const last = samples.at(-1);
  const readers = rows.flatMap((row) => (row.readerCount ? row.readers.map((one) => ({ ...one, queue: row.name, depth: one.lag }))
    : [{ name: null, queue: row.name, depth: row.depth, oldestDueAt: row.oldestDueAt }]))
    .filter((one) => one.depth > 0 && one.oldestDueAt && isDue(one.oldestDueAt)).sort((a, b) => (a.oldestDueAt < b.oldestDueAt ? -1 : 1));

  const [dialog, setDialog] = useState(null);
  const done = () => {
    setDialog(null);
    queues.reload();
  };
  return html`
    <${Page} title="Overview" about=${health.data && html`Version ${health.data.version}, up for ${duration(parseInt(health.data.uptime, 10))}`}>
      <${Verdict} ready=${Boolean(queues.data && (health.data || health.error))} found=${problems({
        healthError: health.error, queues: queues.data?.queues,
        postgres: postgres.data, workers: workers.data?.workers, maintenance: maintenance.data,
      })} onGroup=${setDialog} />
      ${dialog?.act === "move" && html`<${Seek} group=${dialog.name} queue=${dialog.queue} partition=${null} chosen="end" onClose=${() => setDialog(null)} onDone=${done} />`}
      ${dialog?.act === "delete" && html`<${DeleteGroup} group=${dialog.name} queue=${dialog.queue} onClose=${() => setDialog(null)} onDone=${done} />`}
      <${Stats}>
        <${Stat} label="In" value=${rate(last?.pushed)} unit="msg/s" />
        <${Stat} label="Out" value=${rate(last && Math.max(last.acked, 0))} unit="msg/s" note=${last && `${rate(last.popped)} delivered`} />
        <${Stat} label="Unread" value=${queues.data ? short(sum("depth")) : NONE} unit="msg"
          note=${queues.data && (sum("scheduled") > 0 ? `${short(sum("scheduled"))} scheduled, ${short(sum("processing"))} in work` : `${short(sum("processing"))} being worked on`)} />
        <${Stat} label="Oldest unread" value=${oldest ? briefly(ageSeconds(oldest.oldestDueAt)) : queues.data ? "none" : NONE}
          tone=${oldest ? ageTone(oldest) : ""} note=${oldest && html`<a href=${href(["queues", oldest.name])}>${oldest.name}</a>`} />
        <${Stat} label="Dead letters" value=${queues.data ? short(sum("deadLetters")) : NONE} href="#/dead-letters"
          tone=${sum("deadLetters") ? "warn" : ""} />
        <${Stat} label="Queues" value=${count(queues.data?.total)} href="#/queues" note=${queues.data && plural(sum("partitions"), "partition")} />
      <//>
      <${Throughput} samples=${samples} />
      <div class="grid-2">
        <${Card} title="Furthest behind" actions=${html`<a href="#/groups">All groups</a>`}>
          <${Loaded} of=${queues}>${() => readers.length
            ? html`<${Table} caption="Groups with the oldest unread messages" id=${(row) => `${row.name}\n${row.queue}`}
                rows=${readers.slice(0, 6)}
                columns=${[
                  // In one column: a phone has no room for two names side by side.
                  { key: "group", label: "Group", render: (row) => html`${row.name ? html`<a href=${href(["groups", row.name, row.queue])}>${groupName(row.name)}</a>` : html`<span class="muted">no group yet</span>`}
                    <div class="small"><a href=${href(["queues", row.queue])}>${row.queue}</a></div>` },
                  { key: "depth", label: "Unread", number: true, render: (row) => short(row.depth) },
                  { key: "age", label: "Oldest", number: true, render: (row) => html`<${Oldest} at=${row.oldestDueAt} tone=${ageTone(row)} />` },
                ]} />`
            : html`<${Empty} title=${sum("depth") ? "All that is due is read" : "Everything is read"}>No group is behind in any queue.<//>`}<//>
          ${sum("idleGroups") > 0 && html`<p class="muted small"><a href="#/groups">${plural(sum("idleGroups"), "idle group is", "idle groups are")}</a> not counted: no consumer reads with ${sum("idleGroups") === 1 ? "it" : "them"} any more.</p>`}
        <//>
        <${Card} title="PostgreSQL"><${Loaded} of=${postgres}>${(data) => html`<${Postgres} data=${data} health=${health} />`}<//><//>
      </div>
      <${Card} title="Workers" about=${workers.data && aboutWorkers(workers.data)}>
        <${Loaded} of=${workers}>${({ workers: rows }) => html`
          <${Table} caption="The serving processes" id=${(row) => `${row.server} ${row.slot}`} rows=${troubledFirst(rows).slice(0, WORKERS_SHOWN)} columns=${[
            { key: "worker", label: "Worker", render: (row) => html`${row.slot} <span class="muted small">pid ${row.pid} on ${row.server}</span>` },
            { key: "state", label: "State", render: (row) => html`<${WorkerState} worker=${row} />` },
            { key: "cpu", label: "CPU", number: true, render: (row) => percent(row.cpu) },
            { key: "memory", label: "Memory", number: true, render: (row) => bytes(row.residentBytes) },
            { key: "lag", label: "Loop lag", number: true, render: (row) => duration(row.loopLagMs == null ? null : row.loopLagMs / 1000) },
            { key: "pool", label: "DB connections", number: true, render: (row) => `${count(row.poolSize - row.poolAvailable)} of ${count(row.poolSize)} busy` },
            { key: "connections", label: "Clients", number: true, render: (row) => count(row.connections) },
            { key: "parked", label: "Waiting pops", number: true, render: (row) => count(row.parkedPops) },
            { key: "up", label: "Up for", number: true, render: (row) => html`<${Ago} at=${row.startedAt} suffix="" />` },
          ]} />
          ${rows.length > WORKERS_SHOWN && html`<p class="muted small">and ${count(rows.length - WORKERS_SHOWN)} more, which serve</p>`}`}<//>
      <//>
    <//>`;
}

function WorkerState({ worker }) {
  if (!worker.ready) return html`<${Badge} tone="bad">not serving<//>`;
  if (isSilent(worker)) return html`<${Badge} tone="bad">silent for ${age(worker.silentSeconds)}<//>`;
  return html`<${Badge} tone="good">serving<//>${!worker.here && html` <span class="muted small">as of ${age(worker.silentSeconds)} ago</span>`}`;
}

const WORKERS_SHOWN = 40;

function troubledFirst(rows) {
  const isTroubled = (row) => !row.ready || isSilent(row);
  return [...rows.filter(isTroubled), ...rows.filter((row) => !isTroubled(row))];
}

function aboutWorkers({ workers, everywhere }) {
  if (!everywhere) return "of the server that answers alone, as the database does not";
  const servers = new Set(workers.map((row) => row.server)).size;
  return servers > 1 && `of ${count(servers)} servers on this database; those of others as they last told`;
}

function Verdict({ ready, found, onGroup }) {
  // Ages change with every look; who listens hears what is wrong when that changes.
  const subjects = found.map((one) => `${one.tone} ${one.link.text}`).join("\n");
  const news = useMemo(() => {
    if (!ready) return "";
    if (!found.length) return "All is well";
    return found.slice(0, SHOWN).map((one) => `${one.link.text}: ${one.why}`).join(". ");
  }, [ready, subjects]);
  return html`<p class="sr-only" role="status">${news}</p><${Sign} ready=${ready} found=${found} onGroup=${onGroup} />`;
}

const SHOWN = 6;

function Sign({ ready, found, onGroup }) {
  if (!ready) return html`<div class="verdict wait"><span class="sign" aria-hidden="true">…</span><strong>Looking</strong></div>`;
  if (!found.length) {
    return html`<div class="verdict good"><span class="sign" aria-hidden="true">✓</span>
      <div><strong>Healthy</strong><p>Pushes are stored, and no queue is behind.</p></div></div>`;
  }
  const tone = found.some((one) => one.tone === "bad") ? "bad" : "warn";
  return html`
    <div class=${`verdict ${tone}`}><span class="sign" aria-hidden="true">!</span>
      <div><strong>${plural(found.length, "thing needs", "things need")} attention</strong>
        <ul>${found.slice(0, SHOWN).map((one, index) => html`<li key=${index}><a href=${one.link.href}>${one.link.text}</a>: ${one.why}${one.group && html` <${GroupActions} group=${one.group} onGroup=${onGroup} />`}</li>`)}
          ${found.length > SHOWN && html`<li>and ${count(found.length - SHOWN)} more</li>`}</ul></div></div>`;
}

/** What may be done about a group that nobody needs any more; each asks before it is done. */
function GroupActions({ group, onGroup }) {
  const name = groupName(group.name);
  return html`<span class="actions">
    <${Action} kind="small" access="read-write" use="administer" queue=${group.queue} label=${`Move ${name} of ${group.queue} to the end`}
      onClick=${() => onGroup({ ...group, act: "move" })}>Move to end<//>
    <${Action} kind="small danger" access="admin" use="administer" queue=${group.queue} label=${`Delete group ${name} of ${group.queue}`}
      onClick=${() => onGroup({ ...group, act: "delete" })}>Delete group<//></span>`;
}

function Throughput({ samples }) {
  const [range, setRange] = useState("live");
  const live = useMemo(() => [
    samples.map((one) => one.at), samples.map((one) => one.pushed), samples.map((one) => one.acked),
  ], [samples]);
  return html`
    <${Card} title="Throughput" about="messages a second, over all queues"
      actions=${html`<${Choice} label="Range" value=${range} options=${RANGES} onChange=${setRange} />`}>
      ${range !== "live" ? html`<${History} key=${range} hours=${Number(range)} />`
        : samples.length > 1 ? html`<${Chart} label="Throughput over the last minutes" data=${live} series=${SERIES} unit="msg/s" seconds=${300} />`
        : html`<${Skeleton} lines=${6} />`}
    <//>`;
}

function History({ hours }) {
  const source = useData((signal) => get("/api/v1/status", {
    from: since(hours),
  }, signal), [hours], { every: 30_000 });
  return html`<${Loaded} of=${source}>${({ throughput, bucketMinutes }) => {
    const points = ended([...throughput].reverse(), "timestamp", bucketMinutes);
    if (points.length < 2) return html`<${Empty} title="No history yet">It is kept from the start of the server on; come back in a few minutes.<//>`;
    const data = [
      points.map((one) => new Date(one.timestamp).getTime() / 1000),
      points.map((one) => one.ingestedPerSecond), points.map((one) => one.processedPerSecond),
    ];
    return html`<${Chart} label="Throughput" data=${data} series=${SERIES} unit="msg/s" />`;
  }}<//>`;
}

const HELD_S = 1;

function Postgres({ data, health }) {
  const active = data.activeQueries ?? [];
  const longest = active.reduce((most, one) => Math.max(most, one.runningSeconds ?? 0), 0);
  const prepared = data.holders.filter((one) => one.kind === "prepared");
  const idle = data.holders.filter((one) => one.logBytes != null);
  // Statements take one as well, for as long as they run.
  const held = data.holders.find((one) => one.xminAge != null && !(one.openSeconds < HELD_S));
  const dead = data.deadTuples.reduce((sum, one) => sum + one.dead, 0);
  const live = data.deadTuples.reduce((sum, one) => sum + one.live, 0);
  return html`
    <dl class="facts">
      <dt>Takes writes</dt><dd>${health.error ? html`<${Badge} tone="bad">no<//> ${health.error.message}` : html`<${Badge} tone="good">yes<//>`}</dd>
      <dt>Size</dt><dd>${bytes(data.database.sizeBytes)}</dd>
      <dt>Connections</dt><dd>${count(data.database.connections)}</dd>
      <dt>Reads from memory</dt><dd>${percent(data.databaseCache.hitRatio)}</dd>
      <dt>Running for the server</dt><dd>${plural(active.length, "statement")}${active.length ? `, the longest for ${duration(longest)}` : ""}</dd>
      <dt>Dead rows</dt><dd>${percent(live + dead ? dead / (live + dead) : 0)} of ${short(live + dead)}</dd>
      <dt>Oldest snapshot</dt><dd>${held ? html`${holderName(held)}, ${held.openSeconds == null ? "" : `for ${duration(held.openSeconds)}, `}${plural(held.xminAge, "transaction")} ago` : "none is kept"}</dd>
      ${prepared.length > 0 && html`<dt>Prepared transactions</dt><dd>${plural(prepared.length, "is", "are")} neither committed nor rolled back</dd>`}
      ${idle.length > 0 && html`<dt>Replication slots</dt><dd>${count(idle.length)} without a reader, keeping ${bytes(idle.reduce((sum, one) => sum + one.logBytes, 0))} of log</dd>`}
    </dl>`;
}

/** The workers of all servers on the database. */
async function loadWorkers(signal) {
  const { workers, silentAfterSeconds, everywhere } = await get("/api/v1/dashboard/workers", {}, signal);
  return { everywhere, workers: workers.map((row) => ({ ...row, server: `${row.hostname}:${row.port}`, silentAfterSeconds })) };
}
