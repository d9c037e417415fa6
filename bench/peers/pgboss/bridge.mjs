// The client library pg-boss behind a Unix socket, for a load generator that is not JavaScript.
//
// node bridge.mjs SOCKET POSTGRES_FOLDER USER DATABASE
//
// A connection carries one request at a time, a line of JSON each way: {"push": [payload, ...]},
// {"pop": count} and {"ack": [job id, ...]}, answered {"ok": ...} or {"error": text}.

import { createServer } from "node:net";
import { createInterface } from "node:readline";
import PgBoss from "pg-boss";

const QUEUE = "bench";
const [socket, host, user, database] = process.argv.slice(2);

const boss = new PgBoss({ host, user, database, max: 10 });
boss.on("error", (error) => console.error(error));
await boss.start();
await boss.createQueue(QUEUE);

async function answer(request) {
  if (request.push) {
    await boss.insert(request.push.map((data) => ({ name: QUEUE, data })));
    return request.push.length;
  }
  if (request.pop) {
    const jobs = (await boss.fetch(QUEUE, { batchSize: request.pop, priority: false })) ?? [];
    return { jobs: jobs.map((job) => job.id), ids: jobs.map((job) => job.data.id) };
  }
  const { affected } = await boss.complete(QUEUE, request.ack);
  return affected;
}

createServer(async (connection) => {
  for await (const line of createInterface({ input: connection })) {
    let reply;
    try {
      reply = { ok: await answer(JSON.parse(line)) };
    } catch (error) {
      reply = { error: String(error) };
    }
    connection.write(JSON.stringify(reply) + "\n");
  }
}).listen(socket);
