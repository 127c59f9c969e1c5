// Speaks the language server's protocol: every completion that it inserts into a recipe is applied as an editor applies it, and the
// result has to be free of findings of the server and of `monoquant check`.
import { spawn, spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync, mkdtempSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { tmpdir } from 'node:os';
import { fileURLToPath, pathToFileURL } from 'node:url';

const [monoquant, line, schemaPath] = process.argv.slice(2);
const require = createRequire(import.meta.url);
const rpc = require('vscode-jsonrpc/node');
const server = join(dirname(fileURLToPath(import.meta.url)), 'node_modules/yaml-language-server/bin/yaml-language-server');
const schema = JSON.parse(readFileSync(schemaPath, 'utf8'));
const folder = mkdtempSync(join(tmpdir(), 'monoquant-editor-'));

const child = spawn(process.execPath, [server, '--stdio'], { stdio: ['pipe', 'pipe', 'inherit'] });
const connection = rpc.createMessageConnection(new rpc.StreamMessageReader(child.stdout), new rpc.StreamMessageWriter(child.stdin));
const settings = { validate: true, hover: true, completion: true, schemaStore: { enable: false } };
connection.onRequest('workspace/configuration', ({ items }) => items.map((item) => (item.section === 'yaml' ? settings : null)));
connection.onRequest('client/registerCapability', () => null);
const waiting = new Map();
connection.onNotification('textDocument/publishDiagnostics', ({ uri, diagnostics }) => waiting.get(uri)?.(diagnostics));
connection.listen();
await connection.sendRequest('initialize', {
  processId: process.pid,
  rootUri: null,
  capabilities: {
    textDocument: {
      completion: { completionItem: { snippetSupport: true, documentationFormat: ['markdown'] } },
      hover: { contentFormat: ['markdown'] },
    },
    workspace: { configuration: true },
  },
});
connection.sendNotification('initialized', {});

let documents = 0;
let failures = 0;
let checks = 0;

function expect(holds, what) {
  checks += 1;
  if (!holds) {
    failures += 1;
    console.error(`✗ ${what}`);
  }
}

/// Opens a document and waits until the server has said what is wrong with it.
async function open(text) {
  const uri = pathToFileURL(join(folder, `${documents++}.yaml`)).href;
  const diagnostics = new Promise((resolve) => waiting.set(uri, resolve));
  connection.sendNotification('textDocument/didOpen', { textDocument: { uri, languageId: 'yaml', version: 1, text } });
  return { uri, diagnostics: await diagnostics };
}

function split(marked) {
  const at = marked.indexOf('█');
  const before = marked.slice(0, at).split('\n');
  return { text: marked.replace('█', ''), position: { line: before.length - 1, character: before.at(-1).length } };
}

async function ask(what, marked) {
  const { text, position } = split(marked);
  const { uri } = await open(text);
  return connection.sendRequest(`textDocument/${what}`, { textDocument: { uri }, position });
}

async function complete(marked) {
  const found = await ask('completion', marked);
  return found.items ?? found;
}

/// A snippet with its placeholders as they are inserted.
function expanded(snippet) {
  return snippet
    .replace(/\$\{\d+\|([^,|]*)[^|]*\|\}/g, '$1')
    .replace(/\$\{\d+:((?:[^}\\]|\\.)*)\}/g, '$1')
    .replace(/\$\{\d+\}|\$\d+/g, '')
    .replace(/\\([$}\\])/g, '$1');
}

/// The text after a completion, with the cursor behind what was inserted. Further lines are indented like the first, as editors do.
function applied(marked, item) {
  const { text, position } = split(marked);
  const lines = text.split('\n');
  const range = item.textEdit?.range ?? { start: position, end: position };
  const at = ({ line, character }) => lines.slice(0, line).reduce((sum, one) => sum + one.length + 1, 0) + character;
  const indentation = lines[range.start.line].match(/^ */)[0];
  const inserted = expanded(item.textEdit?.newText ?? item.insertText).replace(/\n/g, `\n${indentation}`);
  return text.slice(0, at(range.start)) + inserted + '█' + text.slice(at(range.end));
}

/// A recipe around one stage, with the line that names the schema.
function around(stage) {
  const has = (name) => stage.includes(`- stage: ${name}`);
  const calibration = 'calibration: {file: s}';
  const load = has('load') ? '' : `  - stage: load\n    model: m\n    ${calibration}\n`;
  const quantize = has('quantize-') ? '' : '  - stage: quantize-int8\n    observer: mse\n';
  const end = has('export') ? '' : '  - stage: export\n    path: out\n';
  const before = has('resolve-skips') || has('calibrate') || has('load') ? '' : quantize;
  const after = before === '' ? quantize : '';
  return `${line}\nversion: 1\nstages:\n${load}${before}${stage}${after}${end}`;
}

async function isFine(marked, what) {
  // Rounding with activations needs more than a file of statistics.
  const needsModel = /rounding: (gptq|guided)/.test(marked);
  const text = marked.replace('█', '').replace(needsModel ? '    calibration: {file: s}\n' : '█', '  - stage: calibrate\n    text: [t]\n');
  const { diagnostics } = await open(text);
  expect(diagnostics.length === 0, `${what}: ${diagnostics.map((d) => d.message).join('; ')}\n${text}`);
  const path = join(folder, 'checked.yaml');
  writeFileSync(path, text);
  const said = spawnSync(monoquant, ['check', path, '--format', 'plain'], { encoding: 'utf8' });
  expect(said.status === 0, `${what}: monoquant says ${said.stderr}\n${text}`);
}

const required = { load: '    model: m\n', export: '    path: out\n', evaluate: '    text: [t]\n' };
const types = schema.$defs.LayerType.enum;
for (const branch of schema.$defs.Stage.oneOf) {
  const stage = branch.properties.stage.const;
  const names = (await complete(around('  - stage: █\n'))).map((item) => item.label);
  expect(names.includes(stage), `${stage} is offered`);
  for (const [name, property] of Object.entries(branch.properties)) {
    if (name === 'stage' || (required[stage] ?? '').includes(`${name}:`)) continue;
    const what = `${stage}.${name}`;
    const marked = around(`  - stage: ${stage}\n${required[stage] ?? ''}    █\n`);
    const item = (await complete(marked)).find((one) => one.label === name);
    expect(item, `${what} is offered`);
    if (!item) continue;
    const done = applied(marked, item);
    const value = done.slice(0, done.indexOf('█')).split('\n').at(-1);
    if (new RegExp(`${name}: *$`).test(value)) {
      // No value yet: every one that is offered next is allowed.
      const spaced = done.replace(/: *█/, ': █');
      const values = await complete(spaced);
      expect(values.length > 0 || property.type === 'string', `${what} has values`);
      for (const one of values) await isFine(applied(spaced, one), `${what} ${one.label}`);
    } else if (!/- *█|file: *█|file: *\n|:\n *█/.test(done)) {
      await isFine(done, what);
    }
    const hover = await ask('hover', around(`  - stage: ${stage}\n${required[stage] ?? ''}    ${name.slice(0, 2)}█${name.slice(2)}: x\n`));
    const text = (hover?.contents?.value ?? '').replace(/\\/g, '');
    if (property.default !== undefined) {
      const all = [property.default].flat().map((one) => '`' + one + '`');
      expect(all.length === 0 ? text.includes('Default: none') : text.includes(`Default: ${all.join(', ')}`), `the hover of ${what} tells its default: ${text}`);
    }
    if (property.minimum !== undefined) {
      expect(new RegExp(`(From|At least) ${property.minimum}\\b`).test(text), `the hover of ${what} tells its range: ${text}`);
    }
  }
}
for (const [stage, name] of [['quantize-int4', 'targets'], ['quantize-int8', 'targets'], ['resolve-skips', 'quantize_anyway'], ['resolve-skips', 'skip_layer_types']]) {
  for (const list of [`    ${name}:\n      - █\n`, `    ${name}: [█]\n`]) {
    const marked = around(`  - stage: ${stage}\n${list}`);
    const items = await complete(marked);
    for (const type of types) {
      const item = items.find((one) => one.label === type);
      expect(item && item.documentation, `${stage}.${name} offers ${type} with its meaning`);
    }
    // What is offered besides can be inserted where it is offered, in a list of lines and in one in brackets.
    for (const item of items.filter((one) => !one.label.startsWith('- (array item)'))) {
      await isFine(applied(marked, item), `${stage}.${name} ${item.label}`);
    }
  }
}
console.log(`${checks - failures} passed, ${failures} failed`);
connection.dispose();
child.kill();
process.exit(failures === 0 ? 0 : 1);
