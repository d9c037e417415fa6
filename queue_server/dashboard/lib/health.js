// Is all well, and if not, which queue is not and why: from the figures, by rules that are written
// here and nowhere else.
import { age, ageSeconds, bytes, count, duration, groupName, percent, plural } from "./format.js";
import { href } from "./router.js";

/** From here on a queue's oldest unread message is worth a word, and worth an alarm. */
export const OLD_S = 300;
export const VERY_OLD_S = 3600;
/** A worker of the server that answers gives a sign of life each second; others say when they book. */
export const SILENT_S = 10;
const FULL = 0.8;
/** Failures are normal, and are retried. They are worth a word as a share of what was acknowledged. */
const FAILED_MIN = 5;
const FAILED_SHARE = 0.05;
const FAILED_SHARE_BAD = 0.5;
const CACHE_LOW = 0.9;
const CACHE_READS = 100_000;
/** As `queue-server doctor` judges: a transaction that is open for so long... */
const OLD_TRANSACTION_S = 600;
/** ...a snapshot that so many transactions are newer than... */
const OLD_XMIN = 10_000_000;
/** ...and a prepared transaction that whoever prepared it seems to have forgotten. */
const FORGOTTEN_S = 60;

export function ageTone(row) {
  const seconds = row.depth > 0 ? ageSeconds(row.oldestDueAt) : null;
  if (seconds == null || seconds < OLD_S) return "";
  return seconds < VERY_OLD_S ? "warn" : "bad";
}

/** "" where all that is unread could be read. */
function scheduledNote(row) {
  return row.scheduled > 0 && row.scheduled < row.depth ? ` (${count(row.scheduled)} of them scheduled)` : "";
}

const isLate = (reader) => reader.lag > 0 && ageSeconds(reader.oldestDueAt) >= OLD_S;

/** What the groups of a queue that is late do: which one is behind, by how much, and the others. */
function whoIsLate(row) {
  const unread = `${count(row.depth)} unread${scheduledNote(row)}, the oldest for ${age(ageSeconds(row.oldestDueAt))}`;
  if (row.scheduled === row.depth) return `${unread}: new messages keep the window of windowBuffer open`;
  if (!row.readerCount) return `${unread}: no group has read it yet`;
  const late = row.readers.filter(isLate);
  if (!late.length) return unread; // the groups were looked at a moment earlier or later
  const [worst] = late;
  const last = `last active ${age(ageSeconds(worst.lastActiveAt))} ago${worst.state === "never acknowledged" ? ", never acknowledged" : ""}`;
  const keepingUp = row.readerCount - late.length;
  const others = [
    late.length > 1 && plural(late.length - 1, "other group is behind too", "other groups are behind too"),
    // Of many groups only the worst are told.
    keepingUp > 0 && late.length < row.readers.length && plural(keepingUp, "other group keeps up", "other groups keep up"),
  ].filter(Boolean).join(", ");
  return `${groupName(worst.name)} is ${plural(worst.lag, "message")} behind, the oldest for ${age(ageSeconds(worst.oldestDueAt))}; ${last}${others && `; ${others}`}`;
}

function ofQueue(row) {
  const found = [];
  const link = { text: row.name, href: href(["queues", row.name]) };
  const tone = ageTone(row);
  if (tone) {
    const worst = row.readers.find(isLate);
    found.push({ tone, link, why: whoIsLate(row), group: worst && { queue: row.name, name: worst.name } });
  }
  if (row.maxSize > 0 && row.limited >= FULL * row.maxSize) {
    const full = row.limited >= row.maxSize;
    found.push({
      tone: full ? "bad" : "warn", link,
      why: `${percent(row.limited / row.maxSize)} of its maxSize${full ? ": pushes are refused" : ""}`,
    });
  }
  const acked = row.ackedRecently + row.failedRecently;
  if (row.failedRecently >= FAILED_MIN && row.failedRecently >= FAILED_SHARE * acked) {
    found.push({
      tone: row.failedRecently >= FAILED_SHARE_BAD * acked ? "bad" : "warn", link,
      why: `${percent(row.failedRecently / acked)} of its messages failed in the last five minutes: ${count(row.failedRecently)} of ${count(acked)}`,
    });
  }
  return found;
}

/** Whether a worker has said nothing for longer than it may. */
export function isSilent(worker) {
  return worker.silentSeconds > (worker.here ? SILENT_S : worker.silentAfterSeconds);
}

/** Workers that do not serve; a server of which none says a word is one line. */
function ofWorkers(workers) {
  const found = [];
  const servers = new Map();
  for (const worker of workers) servers.set(worker.server, [...(servers.get(worker.server) ?? []), worker]);
  for (const [server, all] of servers) {
    const silent = all.filter(isSilent);
    const link = (text) => ({ text, href: href([]) });
    if (silent.length === all.length && !all[0].here) {
      const since = Math.min(...all.map((worker) => worker.silentSeconds));
      found.push({
        tone: "bad", link: link(`Server ${server}`),
        why: `no sign of life of its ${plural(all.length, "worker")} for ${age(since)}: does it run, and reach the database? One that is gone for good is told of for an hour`,
      });
      continue;
    }
    for (const worker of all) {
      const name = servers.size > 1 ? `Worker ${worker.slot} of ${server}` : `Worker ${worker.slot}`;
      if (!worker.ready) {
        found.push({ tone: "bad", link: link(name), why: "does not serve; the server starts another one" });
      } else if (silent.includes(worker)) {
        found.push({ tone: "bad", link: link(name), why: `no sign of life for ${age(worker.silentSeconds)}` });
      }
    }
  }
  return found;
}

/** What keeps dead rows or log: a session, a prepared transaction or a replication slot. */
export function holderName({ kind, name, application }) {
  if (kind === "session") return `pid ${name}${application ? ` (${application})` : ""}`;
  return kind === "slot" ? `slot ${name}` : `prepared transaction ${name}`;
}

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

function ofHolder(one) {
  const found = (why) => [{ tone: "warn", link: { text: `PostgreSQL, ${holderName(one)}`, href: href([]) }, why }];
  const kept = "rows that died since stay, and tables grow";
  if (one.logBytes != null) {
    return found(`has no reader and keeps ${bytes(one.logBytes)} of log. If nobody needs it: SELECT pg_drop_replication_slot(${quoted(one.name)}); else set max_slot_wal_keep_size`);
  }
  if (one.kind === "prepared" && one.openSeconds > FORGOTTEN_S) {
    return found(`is neither committed nor rolled back for ${duration(one.openSeconds)}: it holds locks, ${kept}. COMMIT PREPARED ${quoted(one.name)} or ROLLBACK PREPARED ${quoted(one.name)}`);
  }
  if (one.kind === "session" && one.openSeconds > OLD_TRANSACTION_S) {
    return found(`has a transaction open for ${duration(one.openSeconds)}: ${kept}. If nobody needs it: SELECT pg_terminate_backend(${one.name})`);
  }
  if (one.xminAge > OLD_XMIN) return found(`keeps a snapshot that is ${count(one.xminAge)} transactions old: ${kept}`);
  return [];
}

/** [{tone: "bad"|"warn", link, why, group}], the worst first; `group`: one to move or to delete. */
export function problems({ healthError, queues, postgres, workers, maintenance }) {
  const found = [];
  // Whether the server itself answers is said above every page.
  if (healthError && healthError.status !== 0) {
    found.push({ tone: "bad", link: { text: "PostgreSQL", href: href(["system"]) }, why: healthError.message });
  }
  if (maintenance?.maintenanceMode) {
    found.push({
      tone: "warn", link: { text: "Maintenance", href: href(["system"]) },
      why: `pushes are held back, ${count(maintenance.bufferedMessages)} so far`,
    });
  }
  if (maintenance?.popMaintenanceMode) {
    found.push({ tone: "warn", link: { text: "Maintenance", href: href(["system"]) }, why: "pops bring nothing" });
  }
  found.push(...ofWorkers(workers ?? []));
  const waiting = (workers ?? []).reduce((sum, worker) => sum + (isSilent(worker) ? 0 : worker.poolWaiting), 0);
  if (waiting > 0) {
    found.push({
      tone: "warn", link: { text: "Database connections", href: href(["system"]) },
      why: `${count(waiting)} requests wait for one: raise DB_POOL_SIZE if it stays so`,
    });
  }
  for (const row of queues ?? []) found.push(...ofQueue(row));
  for (const one of postgres?.holders ?? []) found.push(...ofHolder(one));
  const cache = postgres?.databaseCache;
  if (cache && cache.hits + cache.reads > CACHE_READS && cache.hitRatio < CACHE_LOW) {
    found.push({
      tone: "warn", link: { text: "PostgreSQL", href: href([]) },
      why: `only ${percent(cache.hitRatio)} of its reads come from memory`,
    });
  }
  return found.sort((a, b) => (a.tone === "bad" ? 0 : 1) - (b.tone === "bad" ? 0 : 1));
}
