"use strict";

const MAX_PHRASES = 8; // one per color
const DELAY = 300; // ms without a key press before the request is sent
const MAX_SIDE = 1600; // px; a larger image is scaled down before upload

const at = (id) => document.getElementById(id);
let current = null; // the chosen image: {blob, width, height, url}
let predictions = new Map(); // phrase -> {score, left, top, right, bottom} in 0..1 of the image's sides
let shown = 0; // images chosen so far
let timer = 0;
let request = null; // the AbortController of the current request

// ---- image ----

async function show(blob, phrases = [], scene = null) {
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
    button.classList.toggle("taken", button === scene);
    button.setAttribute("aria-pressed", button === scene);
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
  for (const name of ["focusin", "mouseenter"]) row.addEventListener(name, () => highlight(row));
  for (const name of ["focusout", "mouseleave"]) row.addEventListener(name, () => highlight(null));
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

function highlight(row) {
  for (const box of at("boxes").children) {
    box.classList.toggle("dim", row !== null && predictions.has(phraseOf(row)) && box.dataset.color !== row.dataset.color);
  }
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
    for (const { phrase, box, score } of body.results) {
      const [x0, y0, x1, y1] = box;
      predictions.set(phrase, {
        score,
        left: x0 / body.width,
        top: y0 / body.height,
        right: x1 / body.width,
        bottom: y1 / body.height,
      });
    }
    draw();
    showStatus(`Predicted in ${((performance.now() - started) / 1000).toFixed(2)} s.`);
  } catch (error) {
    if (error.name !== "AbortError") showStatus("The server cannot be reached. Check that it is running.", true);
  }
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

function draw() {
  const taken = []; // rectangles of placed labels
  const phrases = rows().map(phraseOf);
  for (const button of at("suggestions").children) button.ariaPressed = phrases.includes(button.textContent);
  at("boxes").replaceChildren();
  for (const row of rows()) {
    const phrase = phraseOf(row);
    const prediction = phrase ? predictions.get(phrase) : undefined;
    const output = row.querySelector("output");
    const low = prediction !== undefined && prediction.score < minScore();
    output.textContent = prediction ? prediction.score.toFixed(2) : "";
    output.classList.toggle("low", low);
    output.title = low ? "Not found: the score is below the minimum" : "Score, 0 to 1";
    inputOf(row).title = prediction ? pixels(prediction) : "";
    if (!prediction || low) continue;
    const box = document.createElement("div");
    box.className = `box ${row.className}`;
    box.dataset.color = row.dataset.color;
    box.style.left = percent(prediction.left);
    box.style.top = percent(prediction.top);
    box.style.width = percent(prediction.right - prediction.left);
    box.style.height = percent(prediction.bottom - prediction.top);
    const label = document.createElement("span");
    const words = document.createElement("bdi"); // a long phrase is shortened, its score is not
    words.textContent = phrase;
    label.append(words, ` ${prediction.score.toFixed(2)}`);
    box.append(label);
    at("boxes").append(box);
    taken.push(place(box, label, taken));
  }
}

/** Place a label where it covers no other: above its box, below it, or inside. */
function place(box, label, taken) {
  const whole = at("figure").getBoundingClientRect();
  const beyond = label.getBoundingClientRect().right - whole.right;
  if (beyond > 0) label.style.left = `${-3 - beyond}px`;
  const free = ["above", "below", "inside", "foot"].find((side) => {
    box.classList.remove("below", "inside", "foot");
    box.classList.add(side);
    const { left, top, right, bottom } = label.getBoundingClientRect();
    const hides = (other) => left < other.right && other.left < right && top < other.bottom && other.top < bottom;
    return top >= whole.top && bottom <= whole.bottom && !taken.some(hides);
  });
  if (!free) box.classList.replace("foot", "inside");
  return label.getBoundingClientRect();
}

addEventListener("resize", draw);

const percent = (fraction) => `${(100 * fraction).toFixed(2)}%`;

/** Return the box in pixels of the chosen image. */
function pixels({ left, top, right, bottom }) {
  const values = [left * current.width, top * current.height, right * current.width, bottom * current.height];
  return `x0, y0, x1, y1: ${values.map((value) => Math.round(value)).join(", ")} px`;
}

// ---- minimum score ----

const minScore = () => Number(at("min-score").value);

function updateMinScore() {
  at("min-score-value").textContent = minScore().toFixed(2);
  draw();
}

at("min-score").addEventListener("input", updateMinScore);

/** Show what the model was trained on, and start from its stored threshold. */
async function loadModelInfo() {
  const { domain, threshold } = await (await fetch("healthz")).json();
  at("domain").hidden = !domain;
  at("domain").textContent = `This model was trained on ${domain}.`;
  if (threshold !== null) {
    at("min-score").value = threshold;
    updateMinScore();
  }
}

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
  Object.entries(samples).forEach(([name, phrases], index) => {
    const image = `static/samples/${name}`;
    const button = document.createElement("button");
    const thumbnail = document.createElement("img");
    Object.assign(thumbnail, { src: image, alt: `Sample scene ${index + 1}`, loading: "lazy" });
    button.type = "button";
    button.setAttribute("aria-pressed", false);
    button.append(thumbnail);
    button.addEventListener("click", async () => {
      rows().forEach((row) => (inputOf(row).value = ""));
      rows().slice(1).forEach((row) => row.remove());
      number();
      show(await (await fetch(image)).blob(), phrases, button);
    });
    at("samples").append(button);
  });
}

addRow();
loadModelInfo();
listSamples();
