// The page of `ndvit serve`: sends files, recordings and numbers to the service, and draws its answers.
import { draw } from "./drawing.js";
import { Recorder } from "./recorder.js";
import { WORDS } from "./words.js";

const TOP = 8; // classes that are listed
const MOST = 20; // answers of one file that are listed
const $ = (id) => document.getElementById(id);
let language = localStorage.getItem("ndvit-language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
let models = [];
let redraws = [];
let turn = 0;
const word = (name, ...values) => { const w = WORDS[language][name]; return typeof w === "function" ? w(...values) : w; };
const current = () => models.find((one) => one.name === $("model").value);

// ------------------------------------------------------------------ requests

class Refusal extends Error {}

async function request(path, options = {}) {
  const token = sessionStorage.getItem("ndvit-token");
  const headers = { ...(options.headers ?? {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Refusal(word("unreachable"));
  }
  if (answer.status === 401) {
    await askToken(Boolean(token));
    return request(path, options);
  }
  if (answer.status === 503 || answer.status === 429) {
    const seconds = Number(answer.headers.get("retry-after") ?? 2);
    if ((options.tries ?? 0) < 20 && seconds <= 10) {
      announce(word("loading"));
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(seconds, 3)));
      return request(path, { ...options, tries: (options.tries ?? 0) + 1 });
    }
  }
  if (!answer.ok) throw new Refusal((await answer.json().catch(() => ({}))).error ?? `${answer.status}`);
  return answer;
}

function askToken(wrong) {
  const dialog = $("token-dialog");
  $("token-wrong").textContent = wrong ? word("token_wrong") : "";
  $("token").value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => { sessionStorage.setItem("ndvit-token", $("token").value); resolve(); }, { once: true });
  });
}

const where = (path) => `${path}?model=${encodeURIComponent(current().name)}`;

function body(source) {
  if (source.inputs) return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(source) };
  const form = new FormData();
  form.append("files", source.file, source.file.name);
  return { method: "POST", body: form };
}

// ------------------------------------------------------------------ answers

const announce = (text) => { $("answers").hidden = false; $("status").textContent = text; };

async function answerAll(sources) {
  const mine = ++turn;
  $("results").replaceChildren();
  redraws = [];
  announce(word("working"));
  let count = 0;
  for (const [i, source] of sources.entries()) {
    const block = element("article", { class: "result" });
    $("results").append(block);
    try {
      const answer = await (await request(where("predict"), body(source))).json();
      if (mine !== turn) return;
      showAnswers(block, source, answer);
      count += answer.predictions.length;
      if (current().explains && answer.predictions.length <= 8) {
        const button = element("button", { type: "button" }, word("explain"));
        button.addEventListener("click", () => explain(block, source, button));
        block.append(button);
        if (i === 0) await explain(block, source, button);
      }
    } catch (error) {
      if (mine !== turn) return;
      block.append(element("h3", {}, source.title), element("p", { class: "fault", role: "alert" }, message(error)));
    }
  }
  if (mine === turn) announce(word("done", count));
}

function message(error) {
  if (!(error instanceof Refusal)) console.error(error);
  return error.message;
}

function showAnswers(block, source, answer) {
  for (const one of answer.predictions.slice(0, MOST)) {
    block.append(element("h3", {}, answer.predictions.length > 1 ? one.name : source.title));
    block.append(element("p", { class: "answer" }, headline(one)), bars(one));
    if (source.target) block.append(element("p", { class: "note" }, `${word("target")}: ${source.target}`));
  }
  if (answer.predictions.length > MOST) block.append(element("p", { class: "note" }, word("more", answer.predictions.length - MOST)));
  for (const fault of answer.faults ?? []) block.append(element("p", { class: "fault", role: "alert" }, fault.error));
  for (const note of answer.notes ?? []) block.append(element("p", { class: "note" }, note));
}

const digits = (value) => new Intl.NumberFormat(language, { maximumSignificantDigits: 5 }).format(value);
const percent = (value) => new Intl.NumberFormat(language, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 }).format(value);

function headline(one) {
  if (one.class !== undefined) return one.class;
  if (one.labels) return one.labels.join(" · ") || word("none");
  return Object.entries(one.values).map(([name, v]) => (Object.keys(one.values).length > 1 ? `${name} ${digits(v)}` : digits(v))).join(" · ");
}

function bars(one) {
  const list = element("ul", { class: "bars" });
  const add = (name, share, text) => {
    const fill = element("span", { class: "fill", "aria-hidden": "true" });
    fill.style.width = `${100 * share}%`;
    list.append(element("li", {}, element("span", {}, name), element("span", { class: "value" }, text), fill));
  };
  if (one.probabilities) {
    const sorted = Object.entries(one.probabilities).sort((a, b) => b[1] - a[1]);
    sorted.slice(0, TOP).forEach(([name, p]) => add(name, p, percent(p)));
    if (sorted.length > TOP) list.append(element("li", { class: "note" }, word("more", sorted.length - TOP)));
  } else {
    for (const [name, [low, high]] of Object.entries(one.intervals ?? {})) add(name, 0, word("between", digits(low), digits(high)));
  }
  return list;
}

async function explain(block, source, button) {
  button.disabled = true;
  button.textContent = word("explaining");
  try {
    const found = await (await request(where("explain"), body(source))).json();
    for (const one of found.explanations) await showExplanation(block, one);
    button.remove();
  } catch (error) {
    button.replaceWith(element("p", { class: "note" }, message(error)));
  }
}

async function showExplanation(block, one) {
  const words = `${word("why")}: ${one.label}`;
  const legend = element("figcaption", {}, `${words} · `, element("span", { class: "legend for" }), ` ${word("speaks_for")}`);
  if (one.signed) legend.append(" · ", element("span", { class: "legend against" }), ` ${word("speaks_against")}`);
  const seen = element("canvas", { role: "img", "aria-label": word("seen") });
  const why = element("canvas", { role: "img", "aria-label": words });
  const pair = element("div", { class: "pictures" },
    element("figure", {}, seen, element("figcaption", {}, word("seen"))), element("figure", {}, why, legend));
  block.append(pair);
  const paint = async () => { await draw(seen, one.view); await draw(why, one.example, one.relevance); };
  redraws.push(paint);
  await paint();
}

// ------------------------------------------------------------------ inputs

function answerFiles(files) {
  if (files.length) answerAll([...files].map((file) => ({ file, title: file.name })));
}

function parseNumbers(text) {
  const rows = text.trim().split(/\n+/).map((line) => line.trim().split(/[\s,;]+/).filter(Boolean).map(Number));
  if (!rows[0].length) throw new Refusal(word("no_numbers"));
  const { channels } = current();
  const plain = rows.map((row) => row.map((v) => (Number.isNaN(v) ? null : v)));
  if (channels === 1) return plain.map((row) => [row]);
  const columns = plain[0].length === channels && plain.length !== channels;
  return [columns ? plain[0].map((_, c) => plain.map((row) => row[c])) : plain];
}

$("files").addEventListener("change", () => { answerFiles($("files").files); $("files").value = ""; });
for (const name of ["dragenter", "dragover"]) addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
for (const name of ["dragleave", "drop"]) addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.remove("over"); });
addEventListener("drop", (event) => answerFiles(event.dataTransfer.files));
addEventListener("paste", (event) => { if (event.clipboardData.files.length) answerFiles(event.clipboardData.files); });

$("numbers-open").addEventListener("click", () => {
  const form = $("numbers-form");
  form.hidden = !form.hidden;
  $("numbers-open").setAttribute("aria-expanded", String(!form.hidden));
  if (!form.hidden) $("numbers").focus();
});
$("numbers-form").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    answerAll([{ inputs: parseNumbers($("numbers").value), title: word("numbers") }]);
  } catch (error) {
    announce(message(error));
  }
});

let recorder = null;
$("record").addEventListener("click", async () => {
  const button = $("record");
  if (recorder) {
    const file = await recorder.stop();
    recorder = null;
    button.classList.remove("recording");
    button.textContent = word("record");
    answerFiles([file]);
    return;
  }
  const started = new Recorder((seconds) => { button.textContent = word("recording", seconds); });
  try {
    await started.start();
    recorder = started;
    button.classList.add("recording");
    button.textContent = word("stop");
  } catch {
    announce(word("no_microphone"));
  }
});

// ------------------------------------------------------------------ the page

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function translate() {
  document.documentElement.lang = language;
  for (const one of document.querySelectorAll("[data-text]")) one.textContent = word(one.dataset.text);
  $("language").textContent = word("language");
  $("language").lang = language === "en" ? "zh" : "en";
  if (current()) describe();
}

function describe() {
  const one = current(), picture = one.kind === "image", size = (one.size ?? []).join(" × ");
  if (!one.task) return;
  const reads = picture ? word("image_size", size) : word("signal_size", size, one.channels);
  $("about").textContent = `${word(one.task, one.outputs.length)} ${reads}`;
  $("kinds").textContent = word(picture ? "image" : one.rate ? "sound" : "signal");
  $("record").hidden = picture || !one.rate;
  if (!recorder) $("record").textContent = word("record");
  $("numbers-open").hidden = picture || Boolean(one.rate) || one.size.length > 1;
  if ($("numbers-open").hidden) $("numbers-form").hidden = true;
  $("numbers-label").textContent = word("lines", one.channels);
  $("facts").textContent = `${one.name} · ${one.version} · ${one.runtime}`;
  for (const [i, button] of [...$("example-list").children].entries()) button.textContent = exampleName(button.dataset.target, i);
}

const exampleName = (target, i) => (target ? `${word("example", i + 1)}: ${target}` : word("example", i + 1));

async function chooseModel() {
  $("results").replaceChildren();
  $("answers").hidden = true;
  $("example-list").replaceChildren();
  $("examples").hidden = true;
  try {
    if (current().state !== "ready") announce(word("loading"));
    const found = await (await request(where("examples"))).json(); // loads the model
    const name = current().name;
    await listModels();
    $("model").value = name;
    if ($("results").childElementCount === 0) $("answers").hidden = true;
    for (const [i, example] of found.entries()) {
      const button = element("button", { type: "button", "data-target": example.target ?? "" }, exampleName(example.target, i));
      button.addEventListener("click", async () => {
        const content = await (await request(where(`examples/${example.number}`))).blob();
        answerAll([{ file: new File([content], example.name), title: exampleName("", i), target: example.target }]);
      });
      $("example-list").append(button);
    }
    $("examples").hidden = !found.length;
  } catch (error) {
    announce(message(error));
  }
  describe();
}

async function listModels() {
  models = await (await request("models")).json();
  const before = $("model").value;
  $("model").replaceChildren(...models.map((one) => element("option", { value: one.name }, one.name)));
  if (before) $("model").value = before;
  document.querySelector(".model").hidden = models.length < 2;
}

$("model").addEventListener("change", chooseModel);
$("language").addEventListener("click", () => {
  language = language === "en" ? "zh" : "en";
  localStorage.setItem("ndvit-language", language);
  translate();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((paint) => paint()));
translate();
await listModels();
await chooseModel();
