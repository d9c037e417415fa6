import { html, useMemo, useState } from "../lib/view.js";
import { get, post } from "../lib/api.js";
import { bytes, duration, percent, plural, short, since } from "../lib/format.js";
import { useData } from "../lib/live.js";
import { Action, Ago, Badge, Card, Choice, Confirm, Empty, Loaded, Page, Search, Table, toast } from "../lib/components.js";
import { Chart } from "../lib/chart.js";

const RANGES = [["1", "Last hour"], ["24", "Last day"], ["168", "Last week"]];

export function System() {
  const health = useData((signal) => get("/health", {}, signal), [], { every: 5000 });
  return html`
    <${Page} title="System" about=${health.data && `Version ${health.data.version}, ${health.data.workers} workers, up for ${duration(parseInt(health.data.uptime, 10))}`}>
      <div class="grid-2">
        <${Retention} />
        <${Tables} />
      </div>
      <${Maintenance} />
      <${Migrations} />
      <${Settings} />
    <//>`;
}

const MODES = {
  push: {
    label: "Pushes", field: "maintenanceMode", route: "/api/v1/system/maintenance",
    on: "held back", off: "stored at once", stop: "Hold pushes back", start: "Store pushes again",
    effect: "Pushes are accepted and kept aside on all workers of all hosts; consumers do not see them until this ends. Then they follow in order.",
  },
  pop: {
    label: "Pops", field: "popMaintenanceMode", route: "/api/v1/system/maintenance/pop",
    on: "bring nothing", off: "bring what there is", stop: "Let pops bring nothing", start: "Let pops through again",
    effect: "Every pop is answered empty on all workers of all hosts. Leases that are held run on, and can be acknowledged.",
  },
};

function Maintenance() {
  const [asked, setAsked] = useState(null);
  const source = useData((signal) => get("/api/v1/system/maintenance", {}, signal), [], { every: 5000 });
  const change = (mode, enabled) => async () => {
    const answer = await post(mode.route, { enabled });
    toast(answer.message);
    source.reload();
  };
  return html`
    <${Card} title="Maintenance" about="Hold traffic while something behind the queues is changed.">
      <${Loaded} of=${source} lines=${2}>${(data) => html`
        <dl class="facts">${Object.entries(MODES).map(([key, mode]) => html`
          <dt key=${key}>${mode.label}</dt>
          <dd><span class="actions">
            <${Badge} tone=${data[mode.field] ? "warn" : "good"}>${data[mode.field] ? mode.on : mode.off}<//>
            <${Action} kind="small" access="admin" onClick=${() => setAsked({ mode, enabled: !data[mode.field] })}>${data[mode.field] ? mode.start : mode.stop}<//>
          </span></dd>`)}
          <dt>Held back</dt><dd>${plural(data.bufferedMessages, "message")}</dd>
        </dl>`}<//>
      ${asked && html`
        <${Confirm} kind=${asked.enabled ? "danger" : "primary"} title=${`${asked.enabled ? asked.mode.stop : asked.mode.start}?`}
          verb=${asked.enabled ? asked.mode.stop : asked.mode.start} act=${change(asked.mode, asked.enabled)} onClose=${() => setAsked(null)}>
          <p>${asked.enabled ? asked.mode.effect : "Traffic flows again as it did before."}</p>
        <//>`}
    <//>`;
}

function Retention() {
  const [hours, setHours] = useState("1");
  const source = useData((signal) => get("/api/v1/analytics/retention", {
    from: since(Number(hours)),
  }, signal), [hours], { every: 15_000 });
  return html`
    <${Card} title="Deleted by retention" about="messages, by rule" actions=${html`<${Choice} label="Range" value=${hours} options=${RANGES} onChange=${setHours} />`}>
      <${Loaded} of=${source}>${(data) => (data.totals.totalMsgs ? html`<${RetentionChart} data=${data} />`
        : html`<${Empty} title="Nothing was deleted">No queue had messages that its rules let go. Rules are options of a queue.<//>`)}<//>
    <//>`;
}

function RetentionChart({ data }) {
  // Buckets in which nothing happened are left out of the answer; the line has to touch the ground there.
  const points = useMemo(() => {
    const step = data.bucketMinutes * 60;
    const sums = new Map(data.series.map((one) => [Math.floor(new Date(one.bucket).getTime() / 1000 / step), one]));
    const bound = (time) => Math.floor(new Date(time).getTime() / 1000 / step);
    const lists = [[], [], [], []];
    for (let bucket = bound(data.timeRange.from); bucket < bound(data.timeRange.to); bucket += 1) {
      const one = sums.get(bucket);
      lists[0].push(bucket * step);
      lists[1].push(one?.retentionMsgs ?? 0);
      lists[2].push(one?.completedRetentionMsgs ?? 0);
      lists[3].push(one?.evictionMsgs ?? 0);
    }
    return lists;
  }, [data]);
  return html`<${Chart} label="Messages deleted by retention" data=${points} format=${short} height=${160} series=${[
    { label: "By age", colour: "--in" }, { label: "Read by all", colour: "--out" }, { label: "Too long unread", colour: "--warn-line" },
  ]} />`;
}

function Tables() {
  const source = useData((signal) => get("/api/v1/analytics/postgres-stats", {}, signal), [], { every: 15_000 });
  return html`
    <${Card} title="Tables" about="the largest, as PostgreSQL counts them">
      <${Loaded} of=${source}>${(data) => {
        const dead = new Map(data.deadTuples.map((one) => [one.table, one]));
        const vacuums = new Map(data.autovacuumStatus.map((one) => [one.table, one]));
        return html`<${Table} caption="Tables" id=${(row) => row.table} rows=${data.tableSizes.slice(0, 6)} columns=${[
          { key: "table", label: "Table", kind: "mono", render: (row) => row.table },
          { key: "size", label: "Size", number: true, render: (row) => bytes(row.totalBytes) },
          { key: "dead", label: "Dead rows", number: true, render: (row) => {
            const { live, dead: gone } = dead.get(row.table);
            return percent(live + gone ? gone / (live + gone) : 0);
          } },
          { key: "vacuum", label: "Last vacuum", number: true, render: (row) => html`<${Ago} at=${vacuums.get(row.table).lastAutovacuum} />` },
        ]} />`;
      }}<//>
    <//>`;
}

function Settings() {
  const [search, setSearch] = useState("");
  const source = useData((signal) => get("/api/v1/system/settings", {}, signal), [], { every: 0 });
  return html`
    <${Card} title="Settings" about="As this server was started; secrets are not shown."
      actions=${html`<${Search} label="Search settings" placeholder="Search settings" value="" onInput=${(text) => setSearch(text.toLowerCase())} />`}>
      <${Loaded} of=${source} lines=${8}>${({ settings }) => html`
        <${Table} caption="Settings" id=${(row) => row.name} rows=${settings.filter((one) => `${one.name} ${one.environment.join(" ")} ${one.text}`.toLowerCase().includes(search))} columns=${[
          { key: "name", label: "Setting", kind: "mono one-line", render: (row) => row.environment[0] },
          { key: "value", label: "Value", kind: "mono", render: (row) => (row.secret ? html`<${Badge} tone=${row.value === "set" ? "good" : ""}>${row.value}<//>` : shown(row.value)) },
          { key: "text", label: "What it is", render: (row) => html`<span class="muted">${row.text}</span>` },
        ]} />`}<//>
    <//>`;
}

function shown(value) {
  if (value === "" || value == null) return html`<span class="muted">empty</span>`;
  if (value === true || value === false) return value ? "yes" : "no";
  return Array.isArray(value) ? value.join(", ") : String(value);
}

function Migrations() {
  const source = useData((signal) => get("/api/v1/system/migrations", {}, signal), [], { every: 0 });
  return html`
    <${Card} title="Schema" about="Migrations are applied once and in order, functions whenever their text changes.">
      <${Loaded} of=${source}>${({ files }) => html`
        <${Table} caption="Files of the schema" id=${(row) => row.name} rows=${[...files].reverse()} columns=${[
          { key: "name", label: "File", kind: "mono", render: (row) => row.name },
          { key: "kind", label: "Kind", render: (row) => (row.name.startsWith("migrations/") ? "migration" : "functions") },
          { key: "sum", label: "Checksum", kind: "mono", render: (row) => row.checksum.slice(0, 12) },
          { key: "at", label: "Applied", number: true, render: (row) => html`<${Ago} at=${row.appliedAt} />` },
        ]} />`}<//>
    <//>`;
}
