// What is asked before a queue is deleted or emptied, and what goes with it.
import { html } from "../lib/view.js";
import { get, path, remove } from "../lib/api.js";
import { count, groupName, plural } from "../lib/format.js";
import { useData } from "../lib/live.js";
import { Confirm, Loaded, toast } from "../lib/components.js";

function Effect({ name }) {
  const source = useData(async (signal) => {
    const [{ queues }, { groups }] = await Promise.all([
      get("/api/v1/dashboard/queues", { queue: name }, signal),
      get(path`/api/v1/dashboard/queues/${name}/groups`, {}, signal),
    ]);
    return { row: queues[0], groups };
  }, [name], { every: 0 });
  return html`<${Loaded} of=${source} lines=${2}>${({ row, groups }) => html`
    <div class="effect">
      <div><b>${count(row?.total)}</b> messages</div>
      <div><b>${count(row?.depth)}</b> of them unread</div>
      <div><b>${count(row?.processing)}</b> being worked on</div>
      <div><b>${count(row?.partitions)}</b> partitions</div>
      <div><b>${count(row?.deadLetters)}</b> dead letters</div>
      <div><b>${count(groups.length)}</b> groups</div>
    </div>
    ${groups.length > 0 && html`<p class="muted small">Groups: ${groups.slice(0, 10).map((one) => groupName(one.name)).join(", ")}${groups.length > 10 ? ` and ${groups.length - 10} more` : ""}</p>`}`}<//>`;
}

export function DeleteQueue({ name, onClose, onDone }) {
  return html`
    <${Confirm} title=${`Delete ${name}?`} verb="Delete queue" word=${name} onClose=${onClose} act=${async () => {
      await remove(path`/api/v1/resources/queues/${name}`);
      toast(`Deleted ${name}`);
      onDone?.();
    }}>
      <p>The queue goes with all that belongs to it, for good. Consumers that hold messages of it can no longer acknowledge them.</p>
      <${Effect} name=${name} />
    <//>`;
}

export function ClearQueue({ name, onClose, onDone }) {
  return html`
    <${Confirm} title=${`Delete all messages of ${name}?`} verb="Delete messages" word=${name} onClose=${onClose} act=${async () => {
      const { count: gone } = await remove(path`/api/v1/queues/${name}/clear`);
      toast(`Deleted ${plural(gone, "message")}`);
      onDone?.();
    }}>
      <p>Messages go for good, read or not. The queue, its options, groups and dead letters stay.</p>
      <${Effect} name=${name} />
    <//>`;
}
