// Is all well, and if not, which queue is not and why: from the figures, by rules that are written
// here and nowhere else.
import { age, ageSeconds, count, duration, percent } from "./format.js";
import { href } from "./router.js";

/** From here on a queue's oldest unread message is worth a word, and worth an alarm. */
export const OLD_S = 300;
export const VERY_OLD_S = 3600;
/** A worker gives a sign of life each second. */
export const SILENT_S = 10;
const FULL = 0.8;
const CACHE_LOW = 0.9;
const CACHE_READS = 100_000;

export function ageTone(row) {
  const seconds = row.depth > 0 ? ageSeconds(row.oldestUnreadAt) : null;
  if (seconds == null || seconds < OLD_S) return "";
  return seconds < VERY_OLD_S ? "warn" : "bad";
}

function ofQueue(row) {
  const found = [];
  const link = { text: row.name, href: href(["queues", row.name]) };
  const tone = ageTone(row);
  if (tone) {
    const why = row.groups === 0 && !row.consumedAt
      ? "nobody has read it yet"
      : row.processing > 0 ? `${count(row.processing)} are being worked on` : "nobody works on it now";
    found.push({ tone, link, why: `${count(row.depth)} unread, the oldest for ${age(ageSeconds(row.oldestUnreadAt))}: ${why}` });
  }
  if (row.maxSize > 0 && row.depth >= FULL * row.maxSize) {
    const full = row.depth >= row.maxSize;
    found.push({
      tone: full ? "bad" : "warn", link,
      why: `${percent(row.depth / row.maxSize)} of its maxSize${full ? ": pushes are refused" : ""}`,
    });
  }
  return found;
}

/** [{tone: "bad"|"warn", link, why}], the worst first. */
export function problems({ healthError, queues, postgres, workers, maintenance, failing }) {
  const found = [];
  if (healthError) {
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
  for (const worker of workers ?? []) {
    if (worker.ready && worker.silentSeconds <= SILENT_S) continue;
    found.push({
      tone: "bad", link: { text: `Worker ${worker.slot}`, href: href([]) },
      why: worker.ready ? `no sign of life for ${duration(worker.silentSeconds)}` : "does not serve; the server starts another one",
    });
  }
  const waiting = (workers ?? []).reduce((sum, worker) => sum + worker.poolWaiting, 0);
  if (waiting > 0) {
    found.push({
      tone: "warn", link: { text: "Database connections", href: href(["system"]) },
      why: `${count(waiting)} requests wait for one: raise DB_POOL_SIZE if it stays so`,
    });
  }
  for (const row of queues ?? []) found.push(...ofQueue(row));
  const cache = postgres?.databaseCache;
  if (cache && cache.hits + cache.reads > CACHE_READS && cache.hitRatio < CACHE_LOW) {
    found.push({
      tone: "warn", link: { text: "PostgreSQL", href: href([]) },
      why: `only ${percent(cache.hitRatio)} of its reads come from memory`,
    });
  }
  if (failing > 0) {
    found.push({
      tone: "warn", link: { text: "Acknowledgements", href: href(["dead-letters"]) },
      why: `${count(failing)} messages failed in the last five minutes`,
    });
  }
  return found.sort((a, b) => (a.tone === "bad" ? 0 : 1) - (b.tone === "bad" ? 0 : 1));
}
