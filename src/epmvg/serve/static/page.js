"use strict";

const MOST_PHRASES = 8; // as many as there are colours
const PAUSE = 300; // ms without a key before the question is sent
const LONGEST_SIDE = 1600; // px; a larger photo is scaled down before it travels

const at = (id) => document.getElementById(id);
let picture = null; // what is asked about: {blob, width, height, url}
let known = new Map(); // phrase -> {box, score}, of this picture; box in 0..1 of its sides
let shown = 0; // pictures chosen so far
let timer = 0;
let asking = null; // the AbortController of the question under way

// ---- the picture ----

async function show(blob, phrases = [], scene = null) {
  const turn = ++shown;
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    return say("This file is no picture that the browser can show: try a JPEG or PNG.", true);
  }
  const small = await shrunk(image, blob);
  if (turn !== shown) return URL.revokeObjectURL(url); // another picture was chosen meanwhile
  stop();
  if (picture) URL.revokeObjectURL(picture.url);
  picture = { blob: small, width: image.naturalWidth, height: image.naturalHeight, url };
  known = new Map();
  at("picture").src = url;
  at("figure").style.setProperty("--ratio", picture.width / picture.height);
  at("figure").style.setProperty("--most", `${2 * picture.width}px`);
  at("figure").hidden = false;
  at("stage").classList.add("filled");
  suggest(phrases);
  for (const button of at("samples").children) {
    button.classList.toggle("taken", button === scene);
    button.setAttribute("aria-pressed", button === scene);
  }
  draw();
  ask();
}

/** Scale a large photo down, so that asking again costs little on a slow line. */
async function shrunk(image, blob) {
  const scale = LONGEST_SIDE / Math.max(image.naturalWidth, image.naturalHeight);
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
  event.target.value = ""; // the same file may be chosen again
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

// ---- the phrases ----

const rows = () => [...at("rows").children];
const inputOf = (row) => row.querySelector("input");
const phraseOf = (row) => inputOf(row).value.trim();

function addRow(text = "") {
  if (rows().length >= MOST_PHRASES) return null;
  const taken = rows().map((row) => row.dataset.colour);
  const colour = [...Array(MOST_PHRASES).keys()].find((number) => !taken.includes(String(number)));
  const row = document.createElement("li");
  row.dataset.colour = colour;
  row.className = `c${colour}`;
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
    timer = setTimeout(ask, PAUSE);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) {
      ask();
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
  const neighbour = row.previousElementSibling ?? row.nextElementSibling ?? addRow();
  row.remove();
  number();
  draw();
  return neighbour;
}

/** Name the rows for those who hear them. */
function number() {
  rows().forEach((row, index) => {
    inputOf(row).setAttribute("aria-label", `Phrase ${index + 1}`);
    row.querySelector(".remove").setAttribute("aria-label", `Remove phrase ${index + 1}`);
  });
  at("add").disabled = rows().length >= MOST_PHRASES;
}

function highlight(row) {
  for (const box of at("boxes").children) {
    box.classList.toggle("dim", row !== null && known.has(phraseOf(row)) && box.dataset.colour !== row.dataset.colour);
  }
}

at("add").addEventListener("click", () => inputOf(addRow()).focus());

// ---- asking ----

function stop() {
  clearTimeout(timer);
  asking?.abort();
  asking = null;
}

async function ask() {
  stop();
  const phrases = [...new Set(rows().map(phraseOf))].filter((phrase) => phrase && !known.has(phrase));
  if (!picture) return say(phrases.length ? "Now choose a photo or a sample scene." : "");
  if (!phrases.length) return say("");
  const controller = new AbortController();
  asking = controller;
  const form = new FormData();
  form.append("image", picture.blob, "image");
  for (const phrase of phrases) form.append("phrases", phrase);
  const token = at("token").value.trim();
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const started = performance.now();
  say("Looking …");
  try {
    const response = await fetch("v1/ground", { method: "POST", body: form, headers, signal: controller.signal });
    const answer = await readAnswer(response);
    if (asking !== controller) return;
    if (response.status === 429) {
      const wait = Number(response.headers.get("Retry-After")) || 1;
      timer = setTimeout(ask, 1000 * wait);
      return say(`The server is busy; asking again in ${wait} s …`);
    }
    if (response.status === 401) at("door").hidden = false;
    if (!response.ok || answer.error) return say(answer.error ?? `The server answered with status ${response.status}.`, true);
    for (const { phrase, box, score } of answer.results) {
      const [x0, y0, x1, y1] = box;
      known.set(phrase, {
        score,
        left: x0 / answer.width,
        top: y0 / answer.height,
        right: x1 / answer.width,
        bottom: y1 / answer.height,
      });
    }
    draw();
    say(`Answered in ${((performance.now() - started) / 1000).toFixed(2)} s.`);
  } catch (error) {
    if (error.name !== "AbortError") say("The server cannot be reached: is it still running?", true);
  }
}

/** The JSON of an answer; what stands between the server and here, such as a proxy, answers otherwise. */
async function readAnswer(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { error: `The answer was not the server's own (status ${response.status} ${response.statusText}): ask whoever runs it.` };
  }
}

function say(sentence, wrong = false) {
  at("status").textContent = sentence;
  at("status").classList.toggle("wrong", wrong);
}

at("token").addEventListener("change", () => {
  sessionStorage.setItem("token", at("token").value);
  ask();
});
at("token").value = sessionStorage.getItem("token") ?? "";

// ---- drawing ----

function draw() {
  const taken = []; // where labels lie already
  const asked = rows().map(phraseOf);
  for (const button of at("suggestions").children) button.ariaPressed = asked.includes(button.textContent);
  at("boxes").replaceChildren();
  for (const row of rows()) {
    const phrase = phraseOf(row);
    const found = phrase ? known.get(phrase) : undefined;
    const output = row.querySelector("output");
    const low = found !== undefined && found.score < bound();
    output.textContent = found ? found.score.toFixed(2) : "";
    output.classList.toggle("low", low);
    output.title = low ? "Not found: its score is below the bound" : "Score, 0 to 1";
    inputOf(row).title = found ? pixels(found) : "";
    if (!found || low) continue;
    const box = document.createElement("div");
    box.className = `box ${row.className}`;
    box.dataset.colour = row.dataset.colour;
    box.style.left = percent(found.left);
    box.style.top = percent(found.top);
    box.style.width = percent(found.right - found.left);
    box.style.height = percent(found.bottom - found.top);
    const label = document.createElement("span");
    const words = document.createElement("bdi"); // a long phrase is cut short, its score never
    words.textContent = phrase;
    label.append(words, ` ${found.score.toFixed(2)}`);
    box.append(label);
    at("boxes").append(box);
    taken.push(place(box, label, taken));
  }
}

/** Put a label where it hides no other: above its box, below it, or inside. */
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

const percent = (share) => `${(100 * share).toFixed(2)}%`;

/** The box in the photo's own pixels, shown over its phrase. */
function pixels({ left, top, right, bottom }) {
  const values = [left * picture.width, top * picture.height, right * picture.width, bottom * picture.height];
  return `x0, y0, x1, y1: ${values.map((value) => Math.round(value)).join(", ")} px`;
}

// ---- what counts as found ----

const bound = () => Number(at("min-score").value);

function setBound() {
  at("min-score-value").textContent = bound().toFixed(2);
  draw();
}

at("min-score").addEventListener("input", setBound);

/** Say what the model knows, and start from its stored threshold. */
async function meetModel() {
  const { domain, threshold } = await (await fetch("healthz")).json();
  at("domain").hidden = !domain;
  at("domain").textContent = `This model knows: ${domain}.`;
  if (threshold !== null) {
    at("min-score").value = threshold;
    setBound();
  }
}

// ---- samples ----

function suggest(phrases) {
  at("tries").hidden = !phrases.length;
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
        ask();
      });
      return button;
    }),
  );
}

async function listSamples() {
  const samples = await (await fetch("samples")).json();
  samples.forEach(({ image, phrases }, index) => {
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
meetModel();
listSamples();
