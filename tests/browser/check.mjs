// Looks at the pages in a folder with headless Chromium over its debugging protocol: check.mjs FOLDER
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const folder = process.argv[2];
const profile = mkdtempSync(join(tmpdir(), "monoquant-browser-"));
const chromium = spawn(process.env.CHROMIUM ?? "chromium", [
  "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank",
], { stdio: ["ignore", "ignore", "pipe"] });
const address = await new Promise((resolve, reject) => {
  let said = "";
  chromium.stderr.on("data", data => {
    said += data;
    const found = said.match(/DevTools listening on (ws:\S+)/);
    if (found) resolve(found[1]);
  });
  chromium.on("exit", () => reject(new Error(said)));
  chromium.on("error", reject);
});
const socket = new WebSocket(address);
await new Promise((resolve, reject) => { socket.onopen = resolve; socket.onerror = reject; });
let last = 0;
const waiting = new Map(), events = [];
socket.onmessage = ({ data }) => {
  const message = JSON.parse(data);
  if (!message.id) return events.push(message);
  const { resolve, reject } = waiting.get(message.id);
  waiting.delete(message.id);
  message.error ? reject(new Error(JSON.stringify(message.error))) : resolve(message.result);
};
const call = (method, params = {}, sessionId) => new Promise((resolve, reject) => {
  last += 1;
  waiting.set(last, { resolve, reject });
  socket.send(JSON.stringify({ id: last, method, params, sessionId }));
});

const { targetId } = await call("Target.createTarget", { url: "about:blank" });
const { sessionId } = await call("Target.attachToTarget", { targetId, flatten: true });
const page = (method, params) => call(method, params, sessionId);
const evaluate = async expression => {
  const found = await page("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
  assert.ok(!found.exceptionDetails, JSON.stringify(found.exceptionDetails));
  return found.result.value;
};
const key = async (name, code, text) => {
  await page("Input.dispatchKeyEvent", { type: text ? "keyDown" : "rawKeyDown", key: name, windowsVirtualKeyCode: code, text });
  await page("Input.dispatchKeyEvent", { type: "keyUp", key: name, windowsVirtualKeyCode: code });
};
const screenshot = async (name, full) => {
  const { cssContentSize } = await page("Page.getLayoutMetrics");
  const clip = { x: 0, y: 0, width: cssContentSize.width, height: Math.min(cssContentSize.height, full ? 4000 : 1400), scale: 1 };
  const { data } = await page("Page.captureScreenshot", { captureBeyondViewport: true, clip });
  writeFileSync(join(folder, `${name}.png`), Buffer.from(data, "base64"));
};
for (const domain of ["Page", "Runtime", "Network", "Log", "Accessibility"]) await page(`${domain}.enable`);

try {
  for (const layers of [40, 4000]) {
    events.length = 0;
    await page("Emulation.setDeviceMetricsOverride", { width: 1200, height: 900, deviceScaleFactor: 1, mobile: false });
    await page("Page.navigate", { url: `file://${join(folder, `${layers}.html`)}` });
    while (!events.some(event => event.method === "Page.loadEventFired")) await new Promise(done => setTimeout(done, 50));

    // Nothing but the file is asked for, and nothing is complained of.
    const asked = events.filter(event => event.method === "Network.requestWillBeSent").map(event => event.params.request.url);
    assert.deepEqual(asked.filter(url => !url.startsWith("file:") && !url.startsWith("data:")), []);
    const complaints = events.filter(event => ["Runtime.exceptionThrown", "Log.entryAdded"].includes(event.method));
    assert.deepEqual(complaints.map(event => JSON.stringify(event.params)), []);

    // All tensors are there, in parts, and a name is text.
    const tensors = layers * 9 + 4;
    const count = () => evaluate("document.getElementById('count').textContent");
    assert.equal(await count(), `${tensors} of ${tensors} tensors, 200 shown`);
    await evaluate("document.getElementById('more').click()");
    assert.match(await count(), /, (400|364) shown$/);
    assert.equal(await evaluate("window.wrong"), undefined);

    // By keyboard: the filter, then the heading that sorts by SQNR.
    await evaluate("document.getElementById('filter').focus()");
    for (const letter of "script") await key(letter, 0, letter);
    assert.match(await count(), /^1 of /);
    assert.equal(await evaluate("document.querySelector('#tensors tbody td').textContent"), "model.<script>window.wrong=1</script>.weight");
    for (let n = 0; n < 6; n += 1) await key("Backspace", 8);
    for (const letter of "down_proj") await key(letter, 0, letter);
    assert.match(await count(), new RegExp(`^${layers} of `));
    let focused = "";
    for (let n = 0; n < 20 && focused !== "SQNR"; n += 1) {
      await key("Tab", 9);
      focused = await evaluate("document.activeElement.textContent.trim()");
    }
    assert.equal(focused, "SQNR");
    await key("Enter", 13, "\r");
    assert.equal(await evaluate("document.querySelector('[aria-sort]').getAttribute('aria-sort')"), "ascending");
    const numbers = "[...document.querySelectorAll('#tensors tbody tr')].map(row => parseFloat(row.cells[6].textContent))";
    const shown = await evaluate(numbers);
    assert.deepEqual(shown, [...shown].sort((a, b) => a - b));
    await key("Enter", 13, "\r");
    assert.equal(await evaluate("document.querySelector('[aria-sort]').getAttribute('aria-sort')"), "descending");

    // Whatever can be used or seen has a name.
    const { nodes } = await page("Accessibility.getFullAXTree");
    const roles = ["button", "searchbox", "combobox", "image", "img", "region", "textbox"];
    const named = nodes.filter(node => !node.ignored && roles.includes(node.role?.value));
    assert.ok(named.length > 12, `${named.length} things`);
    assert.deepEqual(named.filter(node => !node.name?.value).map(node => node.role.value), []);

    for (const scheme of ["light", "dark"]) {
      await page("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
      const colours = await evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]");
      const bright = colour => colour.match(/\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);
      assert.equal(bright(colours[0]) > bright(colours[1]), scheme === "light");
      await screenshot(`${layers}-${scheme}`, layers === 40);
    }
    await page("Emulation.setDeviceMetricsOverride", { width: 390, height: 844, deviceScaleFactor: 1, mobile: true });
    await page("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: "light" }] });
    assert.ok(await evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing but tables is wider than a phone");
    await screenshot(`${layers}-phone`, false);
    console.log(`${layers} layers: ${tensors} tensors, page and table as they should be`);
  }
} finally {
  socket.close();
  chromium.kill();
  await new Promise(done => chromium.once("exit", done));
  rmSync(profile, { recursive: true, force: true });
}
