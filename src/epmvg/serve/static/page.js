"use strict";

const MAX_PHRASES = 8; // one per color
const TOP_K = 3; // boxes per phrase, the best one and its candidates
const GAP = 3; // px between a box and its label
const DELAY = 300; // ms without a key press before the request is sent
const MAX_SIDE = 1600; // px; a larger image is scaled down before upload

const at = (id) => document.getElementById(id);
let current = null; // the chosen image: {blob, width, height, url}
let predictions = new Map(); // phrase -> result of the API, boxes in pixels of the chosen image
let minScore = 0;
let shown = 0; // images chosen so far
let timer = 0;
let request = null; // the AbortController of the current request

// ---- image ----

async function show(blob, phrases = [], sample = null) {
  const turn = ++shown;
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    return showStatus("The browser cannot decode this file. Choose a JPEG or PNG.", true);
  }
  const small = await shrunk(image, blob);
  if (turn !== shown) return URL.revokeObjectURL(url); // another image was chosen meanwhile
  stop();
  if (current) URL.revokeObjectURL(current.url);
  current = { blob: small, width: image.naturalWidth, height: image.naturalHeight, url };
  predictions = new Map();
  at("image").src = url;
  at("figure").style.setProperty("--ratio", current.width / current.height);
  at("figure").style.setProperty("--most", `${2 * current.width}px`);
  at("figure").hidden = false;
  at("stage").classList.add("filled");
  suggest(phrases);
  for (const button of at("samples").children) {
    button.classList.toggle("taken", button === sample);
    button.setAttribute("aria-pressed", button === sample);
  }
  draw();
  predict();
}

/** Scale a large image down, so that requests stay small. */
async function shrunk(image, blob) {
  const scale = MAX_SIDE / Math.max(image.naturalWidth, image.naturalHeight);
  if (scale >= 1) return blob;
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white"; // JPEG has no transparency
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob((small) => done(small ?? blob), "image/jpeg", 0.92));
}

function firstFile(files) {
  const file = files[0];
  if (file) show(file);
}

at("file").addEventListener("change", (event) => {
  firstFile(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => firstFile(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("stage").classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) at("stage").classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("stage").classList.remove("dropping");
  firstFile(event.dataTransfer.files);
});

// ---- phrases ----

const rows = () => [...at("rows").children];
const inputOf = (row) => row.querySelector("input");
const phraseOf = (row) => inputOf(row).value.trim();

function addRow(text = "") {
  if (rows().length >= MAX_PHRASES) return null;
  const taken = rows().map((row) => row.dataset.color);
  const color = [...Array(MAX_PHRASES).keys()].find((number) => !taken.includes(String(number)));
  const row = document.createElement("li");
  row.dataset.color = color;
  row.className = `c${color}`;
  const input = document.createElement("input");
  Object.assign(input, { type: "text", value: text, maxLength: 300, autocomplete: "off", enterKeyHint: "next" });
  input.placeholder = "the cup on the left";
  const score = document.createElement("output");
  const remove = document.createElement("button");
  Object.assign(remove, { type: "button", className: "remove", textContent: "×" });
  row.append(input, score, remove);
  input.addEventListener("input", () => {
    draw();
    clearTimeout(timer);
    timer = setTimeout(predict, DELAY);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) {
      predict();
      const next = row.nextElementSibling ?? (phraseOf(row) && addRow());
      if (next) inputOf(next).focus();
    } else if (event.key === "Escape") {
      inputOf(removeRow(row)).focus();
    }
  });
  row.addEventListener("mouseenter", () => highlight({ hovered: row }));
  row.addEventListener("mouseleave", () => highlight({ hovered: null }));
  row.addEventListener("focusin", () => highlight({ focused: row }));
  row.addEventListener("focusout", () => highlight({ focused: null }));
  remove.addEventListener("click", () => inputOf(removeRow(row)).focus());
  at("rows").append(row);
  number();
  return row;
}

function removeRow(row) {
  const neighbor = row.previousElementSibling ?? row.nextElementSibling ?? addRow();
  row.remove();
  number();
  draw();
  return neighbor;
}

/** Label the rows for screen readers. */
function number() {
  rows().forEach((row, index) => {
    inputOf(row).setAttribute("aria-label", `Phrase ${index + 1}`);
    row.querySelector(".remove").setAttribute("aria-label", `Remove phrase ${index + 1}`);
  });
  at("add").disabled = rows().length >= MAX_PHRASES;
}

at("add").addEventListener("click", () => inputOf(addRow()).focus());

// ---- requests ----

function stop() {
  clearTimeout(timer);
  request?.abort();
  request = null;
}

async function predict() {
  stop();
  const phrases = [...new Set(rows().map(phraseOf))].filter((phrase) => phrase && !predictions.has(phrase));
  if (!current) return showStatus(phrases.length ? "Choose an image." : "");
  if (!phrases.length) return showStatus("");
  const controller = new AbortController();
  request = controller;
  const form = new FormData();
  form.append("image", current.blob, "image");
  for (const phrase of phrases) form.append("phrases", phrase);
  form.append("top_k", TOP_K);
  const token = at("token").value.trim();
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const started = performance.now();
  showStatus("Predicting …");
  try {
    const response = await fetch("v1/ground", { method: "POST", body: form, headers, signal: controller.signal });
    const body = await readResponse(response);
    if (request !== controller) return;
    if (response.status === 429) {
      const wait = Number(response.headers.get("Retry-After")) || 1;
      timer = setTimeout(predict, 1000 * wait);
      return showStatus(`The server is busy. Retrying in ${wait} s …`);
    }
    if (response.status === 401) at("token-field").hidden = false;
    if (!response.ok || body.error) return showStatus(body.error ?? `The server returned status ${response.status}.`, true);
    for (const result of body.results) predictions.set(result.phrase, inImagePixels(result, body.width));
    draw();
    showStatus(`Predicted in ${((performance.now() - started) / 1000).toFixed(2)} s.`);
  } catch (error) {
    if (error.name !== "AbortError") showStatus("The server cannot be reached. Check that it is running.", true);
  }
}

/** Convert boxes of an image that was scaled down before upload. */
function inImagePixels(result, width) {
  const scale = current.width / width;
  const convert = (one) => ({ ...one, box: one.box.map((edge) => (scale === 1 ? edge : Math.round(100 * scale * edge) / 100)) });
  return { ...convert(result), candidates: result.candidates.map(convert) };
}

/** Parse the JSON of a response; a proxy may send something else. */
async function readResponse(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { error: `The response is not from this server (status ${response.status} ${response.statusText}). Check the proxy.` };
  }
}

function showStatus(sentence, wrong = false) {
  at("status").textContent = sentence;
  at("status").classList.toggle("wrong", wrong);
}

at("token").addEventListener("change", () => {
  sessionStorage.setItem("token", at("token").value);
  predict();
});
at("token").value = sessionStorage.getItem("token") ?? "";

// ---- drawing ----

let active = { hovered: null, focused: null }; // rows
const resultOf = (row) => predictions.get(phraseOf(row));
const isFound = (result) => result.found && result.score >= minScore; // the server's rule

function draw() {
  const phrases = rows().map(phraseOf);
  for (const button of at("suggestions").children) button.ariaPressed = phrases.includes(button.textContent);
  rows().forEach(showScore);
  at("copy").disabled = !rows().some(resultOf);
  at("hint").hidden = !rows().some((row) => resultOf(row)?.candidates.length > 1);
  drawBoxes();
}

function showScore(row) {
  const result = resultOf(row);
  const output = row.querySelector("output");
  const text = result ? describe(result) : "";
  if (output.textContent !== text) output.textContent = text; // a screen reader announces changes
  output.title = result ? explain(result) : "";
  row.classList.toggle("missing", Boolean(result) && !isFound(result));
  inputOf(row).title = result ? pixels(result.box) : "";
}

function describe(result) {
  if (isFound(result)) return result.score.toFixed(2);
  return result.unknown ? "not found" : `not found\n${result.score.toFixed(2)}`;
}

function explain(result) {
  if (result.unknown) return "The model knows no word of this phrase";
  if (!isFound(result)) return "The score is below the minimum";
  return result.truncated ? "Score, 0 to 1, without the end of the phrase, which is too long" : "Score, 0 to 1";
}

/** Draw the boxes of phrases that were found, and the candidates of the highlighted row. */
function drawBoxes() {
  const taken = []; // rectangles of placed labels
  const row = [active.hovered, active.focused].find((each) => each?.isConnected && resultOf(each));
  at("boxes").replaceChildren();
  for (const each of rows()) {
    const result = resultOf(each);
    if (!result || !isFound(result)) continue;
    const isDim = row !== undefined && row !== each;
    addBox(each, result, phraseOf(each), isDim ? "dim" : "", taken);
  }
  for (const candidate of row ? candidatesOf(resultOf(row)) : []) addBox(row, candidate, "", "candidate", taken);
}

/** Return the boxes that are drawn on request only; the first candidate is the box itself. */
function candidatesOf(result) {
  if (result.unknown) return [];
  return result.candidates.slice(isFound(result) ? 1 : 0);
}

function addBox(row, { box: [x0, y0, x1, y1], score }, text, kind, taken) {
  const box = document.createElement("div");
  box.className = `box c${row.dataset.color} ${kind}`;
  box.style.left = percent(x0 / current.width);
  box.style.top = percent(y0 / current.height);
  box.style.width = percent((x1 - x0) / current.width);
  box.style.height = percent((y1 - y0) / current.height);
  const label = document.createElement("span");
  const words = document.createElement("bdi"); // a long phrase is shortened, its score is not
  words.textContent = text;
  label.append(...(text ? [words, " "] : []), score.toFixed(2));
  box.append(label);
  at("boxes").append(box);
  place(label, box, taken);
}

/** Move a label to where it covers no other: near its box, or else anywhere; hide it where there is no room. */
function place(label, box, taken) {
  const { clientWidth: width, clientHeight: height } = at("boxes");
  const { offsetWidth, offsetHeight } = label;
  const isFree = ([x, y]) =>
    y >= 0 &&
    y + offsetHeight <= height &&
    !taken.some((other) => x < other.right && other.left < x + offsetWidth && y < other.bottom && other.top < y + offsetHeight);
  const spot = spots(box, offsetWidth, offsetHeight, width, height).find(isFree);
  if (!spot) return label.remove();
  const [x, y] = spot;
  label.style.left = `${x - box.offsetLeft - box.clientLeft}px`;
  label.style.top = `${y - box.offsetTop - box.clientTop}px`;
  taken.push({ left: x, top: y, right: x + offsetWidth, bottom: y + offsetHeight });
}

/** List positions [x, y] of a label, the best first: above its box, below it, inside at the top or bottom, elsewhere. */
function spots(box, labelWidth, labelHeight, width, height) {
  const { offsetLeft: left, offsetTop: top, offsetWidth, offsetHeight } = box;
  const [right, bottom] = [left + offsetWidth, top + offsetHeight];
  const within = (x) => Math.max(0, Math.min(x, width - labelWidth));
  const columns = [within(left), within(right - labelWidth)];
  const near = [top - labelHeight - GAP, bottom + GAP, top + GAP, bottom - labelHeight - GAP];
  const lines = [...Array(Math.floor(height / labelHeight)).keys()].map((number) => number * labelHeight);
  lines.sort((one, other) => Math.abs(one - top) - Math.abs(other - top));
  return [
    ...columns.flatMap((x) => near.map((y) => [x, y])),
    ...lines.flatMap((y) => [...columns, 0, within(width)].map((x) => [x, y])),
  ];
}

function highlight(change) {
  active = { ...active, ...change };
  drawBoxes();
}

addEventListener("resize", drawBoxes);

const percent = (fraction) => `${(100 * fraction).toFixed(2)}%`;
const pixels = (box) => `x0, y0, x1, y1: ${box.map((edge) => Math.round(edge)).join(", ")} px`;

// ---- model and minimum score ----

function setMinScore(score) {
  minScore = score;
  at("min-score-value").textContent = score.toFixed(2);
  draw();
}

at("min-score").addEventListener("input", () => setMinScore(Number(at("min-score").value)));

/** Show the name of the model and what it was trained on, and start from its stored threshold. */
async function loadModelInfo() {
  const { model, domain, threshold } = await (await fetch("healthz")).json();
  at("model").textContent = `Model: ${model}${domain ? `, trained on ${domain}` : ""}`;
  at("min-score").value = threshold ?? 0; // rounded by the slider
  setMinScore(threshold ?? 0);
}

// ---- copy ----

function results() {
  const found = [...new Set(rows().map(resultOf))].filter(Boolean);
  return found.map((result) => ({ ...result, found: isFound(result) }));
}

async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // browsers offer the clipboard over HTTPS and on localhost only
  Object.assign(area, { value: text, className: "hidden", readOnly: true });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  at("copy").focus();
  if (!copied) throw new Error("not allowed");
}

at("copy").addEventListener("click", async () => {
  const copied = results();
  try {
    await copyText(JSON.stringify({ width: current.width, height: current.height, results: copied }, null, 2));
    showStatus(`Copied ${copied.length} ${copied.length === 1 ? "result" : "results"} as JSON.`);
  } catch {
    showStatus("The browser does not allow this page to copy. Change its permissions.", true);
  }
});

// ---- samples ----

function suggest(phrases) {
  at("suggested").hidden = !phrases.length;
  at("suggestions").replaceChildren(
    ...phrases.map((phrase) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: phrase });
      button.addEventListener("click", () => {
        const same = rows().find((row) => phraseOf(row) === phrase);
        if (same) return removeRow(same);
        const row = rows().find((row) => !phraseOf(row)) ?? addRow() ?? rows().at(-1);
        inputOf(row).value = phrase;
        draw();
        predict();
      });
      return button;
    }),
  );
}

async function listSamples() {
  const samples = await (await fetch("static/samples/samples.json")).json();
  at("samples").replaceChildren(...samples.map(sampleButton));
}

function sampleButton({ file, title, phrases }) {
  const address = `static/samples/${file}`;
  const thumbnail = document.createElement("img");
  Object.assign(thumbnail, { src: address, alt: `Sample: ${title}`, loading: "lazy" });
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", false);
  button.append(thumbnail);
  button.addEventListener("click", async () => {
    rows().forEach((row) => (inputOf(row).value = ""));
    rows().slice(1).forEach((row) => row.remove());
    number();
    show(await (await fetch(address)).blob(), phrases, button);
  });
  return button;
}

addRow();
loadModelInfo();
listSamples();
