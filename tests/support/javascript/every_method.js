// Call every method of runpod-sdk: node every_method.js BASE_URL API_KEY. The last line that
// it prints is a JSON object; runSync prints a line for each poll before.
// Endpoint `test` runs many_sided.py, `items` runs generator.py, `stuck` never gets a worker.
import runpodSdk from "runpod-sdk";

const [baseUrl, apiKey] = process.argv.slice(2);
const sdk = runpodSdk(apiKey, { baseUrl });
const [test, items, stuck] = ["test", "items", "stuck"].map((id) => sdk.endpoint(id));

async function streamed() {
  const job = await items.run({ input: { items: ["a", "b", "c", "d"], pause_s: 2 } });
  const started = Date.now();
  const found = [];
  for await (const item of items.stream(job.id)) found.push(item.output);
  return { found, seconds: (Date.now() - started) / 1000 };
}

async function called() {
  const give = { input: { do: "give", value: { image: "ü" } } };
  const job = await test.run(give);
  const slow = { input: { do: "sleep", seconds: 3.5 } };
  const results = {
    run: job,
    statusSync: await test.statusSync(job.id),
    status: await test.status(job.id),
    runSync: await test.runSync(give),
    runSyncPolls: await test.runSync(slow, 3000),
    failed: await test.runSync({ input: { do: "fail", message: "broken" } }),
  };
  const queued = await stuck.run({ input: { n: 1 }, policy: { ttl: 60000, lowPriority: true } });
  results.cancel = await stuck.cancel(queued.id);
  await stuck.run({ input: { n: 2 } });
  results.health = await stuck.health();
  results.purgeQueue = await stuck.purgeQueue();
  return results;
}

async function refused() {
  const wrong = runpodSdk("wrong key", { baseUrl }).endpoint("test");
  const failure = (promise) => promise.then(() => "none", (error) => error.message);
  return { key: await failure(wrong.health()), job: await failure(test.status("nobody")) };
}

const [stream, results, errors] = await Promise.all([streamed(), called(), refused()]);
process.stdout.write(JSON.stringify({ ...results, stream, errors }) + "\n");
