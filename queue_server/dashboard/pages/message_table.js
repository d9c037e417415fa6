// How messages are listed.
import { html } from "../lib/view.js";
import { href } from "../lib/router.js";
import { Ago, Badge, preview } from "../lib/components.js";

const STATUS_TONES = { pending: "accent", processing: "warn", completed: "good", dead_letter: "bad" };

export function Status({ status }) {
  return html`<${Badge} tone=${STATUS_TONES[status] ?? ""}>${status.replace("_", " ")}<//>`;
}

export const MESSAGE_COLUMNS = [
  { key: "at", label: "Stored", kind: "one-line", render: (row) => html`<${Ago} at=${row.createdAt} />` },
  { key: "id", label: "Transaction id", kind: "mono one-line", render: (row) => (row.transactionId === null ? html`<span class="muted">encrypted</span>` : html`<a href=${href(["messages", row.partitionId, row.transactionId])}>${row.transactionId}</a>`) },
  { key: "partition", label: "Partition", kind: "one-line", render: (row) => row.partition },
  { key: "status", label: "Status", render: (row) => html`<${Status} status=${row.status} />` },
  { key: "payload", label: "Payload", kind: "mono fill", render: (row) => (row.payloadAvailable === false ? html`<span class="muted">cannot be decrypted</span>` : preview(row.data, 300)) },
];
