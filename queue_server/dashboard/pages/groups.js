import { html, useEffect, useState } from "../lib/view.js";
import { get, path, post, remove } from "../lib/api.js";
import { age, ageSeconds, briefly, count, duration, groupName, NONE, plural, QUEUE_MODE, short } from "../lib/format.js";
import { OLD_S, VERY_OLD_S } from "../lib/health.js";
import { useData } from "../lib/live.js";
import { go, href, requery } from "../lib/router.js";
import {
  Action, Ago, Badge, Card, Choice, Confirm, Dialog, DialogFooter, Empty, Field, Loaded, Oldest, OldestStat, Page, Pager, Search, Stat, Stats, Table, toast, Unread,
} from "../lib/components.js";

const LIMIT = 50;

/** A group's state; grey where the group does not count in its queue's depth. */
export function GroupState({ state, counted, at }) {
  if (state === "active") return html`<${Badge} tone="good">active<//>`;
  return html`<${Badge} tone=${counted ? "warn" : ""}>${state}${state === "idle" ? html` for <${Ago} at=${at} suffix="" />` : ""}<//>`;
}

const STATES = [["", "All states"], ["active", "Active"], ["idle", "Idle"], ["never acknowledged", "Never acknowledged"]];

function lagTone(seconds) {
  if (!(seconds >= OLD_S)) return "";
  return seconds < VERY_OLD_S ? "warn" : "bad";
}

export function Groups({ query }) {
  const search = (query.get("search") ?? "").toLowerCase();
  const state = query.get("state") ?? "";
  const offset = Number(query.get("offset") ?? 0);
  const source = useData((signal) => get("/api/v1/consumer-groups", {}, signal), [], { every: 5000, wanted: (event) => event === "queue.depth" });
  return html`
    <${Page} title="Groups" about="Who reads what, and how far behind each is.">
      <${Card}>
        <div class="toolbar"><${Search} label="Search groups" placeholder="Search by group or queue" value=${search} onInput=${(text) => requery({ search: text, offset: "" })} />
          <${Choice} label="State" value=${state} options=${STATES} onChange=${(key) => requery({ state: key, offset: "" })} /></div>
        <${Loaded} of=${source} lines=${8}>${(groups) => {
          if (!groups.length) return html`<${Empty} title="No consumer group yet">A group appears with its first pop: <code>GET /api/v1/pop/queue/orders?consumerGroup=billing</code><//>`;
          const found = groups.filter((one) => `${groupName(one.name)}\n${one.queueName}`.toLowerCase().includes(search) && (!state || one.activity === state))
            .sort((a, b) => b.counted - a.counted || b.maxTimeLag - a.maxTimeLag || b.totalLag - a.totalLag || (a.name < b.name ? -1 : 1));
          if (!found.length) return html`<${Empty} title="No group matches">${state ? `None is ${state}${search ? ` with “${search}” in its name or its queue's` : ""}.` : `Neither a group nor its queue has “${search}” in its name.`}<//>`;
          return html`
            <${Table} caption="Consumer groups" id=${(row) => `${row.name}\n${row.queueName}`} rows=${found.slice(offset, offset + LIMIT)} columns=${[
              { key: "name", label: "Group", render: (row) => html`<a href=${href(["groups", row.name, row.queueName])}>${groupName(row.name)}</a>` },
              { key: "queue", label: "Queue", kind: "wide", render: (row) => html`<a href=${href(["queues", row.queueName])}>${row.queueName}</a>` },
              { key: "lag", label: "Unread", number: true, render: (row) => html`<${Unread} depth=${row.totalLag} scheduled=${row.scheduled} />` },
              { key: "time", label: "Behind by", number: true, render: (row) => (row.totalLag === row.scheduled && !row.maxTimeLag ? NONE : html`<${Badge} tone=${row.counted ? lagTone(row.maxTimeLag) : ""}>${duration(row.maxTimeLag)}<//>`) },
              { key: "partitions", label: "Partitions behind", number: true, render: (row) => `${short(row.partitionsWithLag)} of ${short(row.partitionCursors)}` },
              { key: "state", label: "State", render: (row) => html`<${GroupState} state=${row.activity} counted=${row.counted} at=${row.lastActiveAt} />` },
              { key: "active", label: "Last active", number: true, render: (row) => html`<${Ago} at=${row.lastActiveAt} />` },
            ]} />
            <${Pager} offset=${offset} limit=${LIMIT} total=${found.length} noun=${found.length === 1 ? "group" : "groups"} onOffset=${(next) => requery({ offset: next || "" })} />`;
        }}<//>
      <//>
    <//>`;
}

export function Group({ group, queue, query }) {
  const [dialog, setDialog] = useState(null);
  const search = query.get("search") ?? "";
  const offset = Number(query.get("offset") ?? 0);
  const wanted = (event, data) => data?.queue === queue;
  const source = useData(async (signal) => {
    const { groups } = await get(path`/api/v1/dashboard/queues/${queue}/groups`, {}, signal);
    const found = groups.find((one) => one.name === group);
    if (!found) throw Object.assign(new Error(`${groupName(group)} does not read ${queue}`), { status: 404 });
    return found;
  }, [group, queue], { every: 3000, wanted });
  const places = useData((signal) => get(path`/api/v1/dashboard/queues/${queue}/groups/${group}/partitions`,
    { search, offset, limit: LIMIT }, signal), [group, queue, search, offset], { every: 3000, wanted });
  const row = source.data;
  const renew = () => {
    source.reload();
    places.reload();
  };
  return html`
    <${Page} title=${groupName(group)} back=${{ href: "#/groups", label: "Groups" }}
      about=${html`reads <a href=${href(["queues", queue])}>${queue}</a>${group === QUEUE_MODE && ", for consumers that name no group"}`}
      actions=${html`
        <${Action} kind="primary" access="read-write" use="administer" queue=${queue} onClick=${() => setDialog({ seek: null })}>Move…<//>
        <${Action} kind="danger" access="admin" use="administer" queue=${queue} onClick=${() => setDialog("delete")}>Delete group<//>`}>
      <${Loaded} of=${source} lines=${2}>${() => html`
        <${Stats}>
          <${Stat} label="Unread" value=${short(row.lag)} unit="msg" note=${row.scheduled > 0 && `${short(row.scheduled)} scheduled`} />
          <${OldestStat} at=${row.lag ? row.oldestDueAt : null} tone=${lagTone(row.lag && row.counted ? ageSeconds(row.oldestDueAt) : 0)} />
          <${Stat} label="Partitions behind" value=${short(row.laggingPartitions)} unit=${`of ${short(row.partitions)}`} />
          <${Stat} label="Held now" value=${short(row.leasedPartitions)} unit="partitions" note="under a live lease" />
          <${Stat} label="Last active" value=${briefly(ageSeconds(row.lastActiveAt))} note=${row.lastAckAt ? html`acknowledged <${Ago} at=${row.lastAckAt} />` : "never acknowledged"} />
        <//>
        ${!row.counted && html`<p class="notice">No consumer has used this group for ${age(ageSeconds(row.lastActiveAt))}, so its unread messages are not counted as the queue's. It counts again when it pops.</p>`}`}<//>
      <${Card} title="Partitions" about="Those first in which the group is furthest behind.">
        <div class="toolbar"><${Search} label="Search partitions" placeholder="Search partitions" value=${search} onInput=${(text) => requery({ search: text, offset: "" })} /></div>
        <${Loaded} of=${places}>${({ partitions, total }) => (partitions.length ? html`
          <${Table} caption="Places of the group" id=${(one) => one.id} rows=${partitions} columns=${[
            { key: "name", label: "Partition", render: (one) => one.name },
            { key: "lag", label: "Unread", number: true, render: (one) => count(one.lag) },
            { key: "age", label: "Oldest", number: true, render: (one) => html`<${Oldest} at=${one.lag ? one.oldestDueAt : null} tone=${lagTone(ageSeconds(one.oldestDueAt))} />` },
            { key: "place", label: "Committed / end", number: true, render: (one) => `${count(one.committedOffset)} / ${count(one.nextOffset)}` },
            { key: "lease", label: "Held", render: (one) => (one.leaseExpiresAt ? html`<${Badge} tone="accent">until ${new Date(one.leaseExpiresAt).toLocaleTimeString("en-GB")}<//>` : NONE) },
            { key: "read", label: "Last read", number: true, render: (one) => html`<${Ago} at=${one.consumedAt} />` },
            { key: "actions", label: "", kind: "right", render: (one) => html`<${Action} kind="small" access="read-write" use="administer" queue=${queue}
              label=${`Move in partition ${one.name}`} onClick=${() => setDialog({ seek: one.name })}>Move…<//>` },
          ]} />
          <${Pager} offset=${offset} limit=${LIMIT} total=${total} noun=${total === 1 ? "partition" : "partitions"} onOffset=${(next) => requery({ offset: next || "" })} />`
          : html`<${Empty} title=${search ? "No partition matches" : "No place yet"}>${search ? `None has “${search}” in its name.` : "The group gets a place in a partition when it first reads there."}<//>`)}<//>
      <//>
      ${dialog?.seek !== undefined && html`<${Seek} group=${group} queue=${queue} partition=${dialog.seek} onClose=${() => setDialog(null)} onDone=${() => {
        setDialog(null);
        renew();
      }} />`}
      ${dialog === "delete" && html`<${DeleteGroup} group=${group} queue=${queue} row=${row} onClose=${() => setDialog(null)} onDone=${() => go(["groups"])} />`}
    <//>`;
}

/** *row*: what is known of the group; without it all its places are spoken of. */
export function DeleteGroup({ group, queue, row, onClose, onDone }) {
  return html`
    <${Confirm} title=${`Delete ${groupName(group)} from ${queue}?`} verb="Delete group" onClose=${onClose} act=${async () => {
      await remove(path`/api/v1/consumer-groups/${group}/queues/${queue}`);
      toast(`Deleted ${groupName(group)} from ${queue}`);
      onDone();
    }}>
      <p>The group's places go: ${row ? plural(row.partitions, "partition") : "all"}, and the leases of ${row ? plural(row.leasedPartitions, "partition") : "all"}. Its dead letters stay, and so do the messages.</p>
      <p>Should it pop again, it begins as a new group: by default with everything that is stored.</p>
    <//>`;
}

// The one that skips everything unread comes last, and none is chosen beforehand.
const TARGETS = [
  ["time", "To a time", "continue with the first message since then"],
  ["start", "To the beginning", "read everything again that is stored"],
  ["end", "To the end", "skip everything unread"],
];

/** The local time *date* as a field of a form takes it. */
function fieldTime(date) {
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}

const PRESETS = [
  ["5 min ago", () => new Date(Date.now() - 300_000)],
  ["1 h ago", () => new Date(Date.now() - 3_600_000)],
  ["Today, 0:00", () => new Date(new Date().setHours(0, 0, 0, 0))],
];

/** Shows what a seek does before it is done. */
export function Seek({ group, queue, partition, chosen = null, onClose, onDone }) {
  const [target, setTarget] = useState(chosen);
  const [time, setTime] = useState(() => fieldTime(new Date(Date.now() - 3_600_000)));
  const [preview, setPreview] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const timestamp = target === "start" ? "1970-01-01T00:00:00.000Z"
    : target === "time" && time ? new Date(time).toISOString() : null;
  const complete = target === "end" || timestamp !== null;

  useEffect(() => {
    const aborter = new AbortController();
    setPreview(null);
    setError(null);
    if (complete) {
      get(path`/api/v1/dashboard/queues/${queue}/groups/${group}/seek-preview`,
        { toEnd: target === "end" ? "true" : "", timestamp, partition }, aborter.signal)
        .then(setPreview, (failure) => failure.name !== "AbortError" && setError(failure));
    }
    return () => aborter.abort();
  }, [target, timestamp]);

  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const route = partition === null ? path`/api/v1/consumer-groups/${group}/queues/${queue}/seek`
        : path`/api/v1/consumer-groups/${group}/queues/${queue}/partitions/${partition}/seek`;
      await post(route, target === "end" ? { toEnd: true } : { timestamp });
      toast(`Moved ${groupName(group)}: ${count(preview.skipped)} skipped, ${count(preview.readAgain)} to be read again`);
      onDone();
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };
  return html`
    <${Dialog} title=${`Move ${groupName(group)}`} onClose=${onClose}>
      <form onSubmit=${submit}>
        <div class="body">
          <p class="muted">In ${partition === null ? html`every partition of <b>${queue}</b>` : html`partition <b>${partition}</b> of ${queue}`}.</p>
          <div role="radiogroup" aria-label="Where to">
            ${TARGETS.map(([key, label, hint]) => html`
              <label key=${key} class="check"><input type="radio" name="target" value=${key} checked=${target === key} onChange=${() => setTarget(key)} />
                <span>${label} <span class="muted small">– ${hint}</span></span></label>`)}
          </div>
          ${target === "time" && html`
            <${Field} label="Time (of your browser)"><input type="datetime-local" step="1" required value=${time} onInput=${(event) => setTime(event.currentTarget.value)} /><//>
            <div class="actions">${PRESETS.map(([label, at]) => html`<button key=${label} type="button" class="small" onClick=${() => setTime(fieldTime(at()))}>${label}</button>`)}</div>`}
          <div class="effect" aria-live="polite">
            ${[["skipped", "skipped"], ["readAgain", "read again"], ["lagAfter", "unread afterwards"], ["leasesEnded", "leases ended"]]
              .map(([key, label]) => html`<div key=${key}><b>${preview ? count(preview[key]) : complete ? "…" : NONE}</b> ${label}</div>`)}
          </div>
          ${preview?.leasesEnded > 0 && html`<p class="notice warn">Consumers that hold these leases are refused when they acknowledge, and the messages are handed out again from the new place.</p>`}
        </div>
        <${DialogFooter} error=${error}><button type="button" onClick=${onClose}>Cancel</button>
          <button type="submit" class=${preview?.skipped ? "danger" : "primary"} disabled=${busy || !preview}>${busy ? "Working…" : "Move the group"}</button><//>
      </form>
    <//>`;
}
