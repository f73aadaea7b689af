"use strict";
// Sends each photo to the service and shows the answer. All text is set as text, never as HTML.

const AT_A_TIME = 4;      // photos on their way to the service
const ATTEMPTS = 5;       // while the service is busy
const ALTERNATIVES = 4;

const find = (id) => document.getElementById(id);
const results = find("results");
const waiting = [];   // [file, list item]
let running = 0;

function add(files) {
  for (const file of files) {
    const item = document.importNode(find("result").content, true).querySelector("li");
    const name = file.name || "pasted photo";
    item.querySelector(".name").textContent = name;
    item.classList.add("waiting");
    item.querySelector(".caption").textContent = "Waiting …";
    preview(item.querySelector("img"), file, name);
    results.append(item);
    waiting.push([file, item]);
  }
  next();
}

function preview(image, file, name) {
  const url = URL.createObjectURL(file);
  image.alt = name;
  image.onload = () => URL.revokeObjectURL(url);
  image.onerror = () => { URL.revokeObjectURL(url); image.hidden = true; };   // browsers show no TIFF
  image.src = url;
}

function next() {
  while (running < AT_A_TIME && waiting.length) {
    const [file, item] = waiting.shift();
    running += 1;
    caption(file, item).finally(() => { item.classList.remove("waiting"); running -= 1; next(); });
  }
  const total = results.children.length, count = (name) => results.getElementsByClassName(name).length;
  const left = count("waiting"), failed = count("failed");
  const done = `${total} done${failed ? `, ${failed} of them without a caption` : ""}.`;
  find("status").textContent = left ? `${left} of ${total} left.` : total ? done : "";
  find("clear-line").hidden = !total;
}

async function caption(file, item) {
  try {
    const answer = await post(`predict?n=${ALTERNATIVES}`, file, "application/json");
    show(file, item, JSON.parse(await answer.text()));
  } catch (error) {
    item.classList.add("failed");
    item.querySelector(".caption").textContent = `No caption: ${error.message}`;
  }
}

// The body of the service's answer, of this content type; an error says why there is none. A busy service says when to
// try again.
async function post(address, file, type) {
  const form = new FormData();
  form.append("file", file, file.name || "pasted");
  for (let attempt = 1; ; attempt += 1) {
    const response = await fetch(address, { method: "POST", body: form }).catch(unreachable);
    if (response.ok && is(response, type)) return response.blob().catch(unreachable);
    if (response.status !== 503 || attempt === ATTEMPTS) throw new Error(await reason(response));
    const seconds = Number(response.headers.get("Retry-After")) || 2;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
}

const is = (response, type) => (response.headers.get("Content-Type") || "").startsWith(type);

// Why there is no answer. What is no problem of the service comes from a proxy before it: an error, or a login page.
async function reason(response) {
  if (is(response, "application/problem+json")) {
    const problem = await response.json().catch(() => ({}));
    if (problem.detail) return problem.detail;
  }
  const status = `${response.status} ${response.statusText}`.trim();
  if (response.status === 413) return `the photo is larger than a proxy before the service allows (${status})`;
  if (response.ok || response.status === 401 || response.status === 403) {
    return `a proxy before the service may ask for a login (${status}); load this page again`;
  }
  return `a proxy before the service answered instead of it (${status}); try again later`;
}

function unreachable() {
  throw new Error("the service can't be reached; try again, or load this page again");
}

// What the model wrote, in its language.
function write(element, text) {
  element.lang = document.body.dataset.language;
  element.dir = document.body.dataset.direction;
  element.textContent = text;
}

function show(file, item, answer) {
  const words = answer.caption || "(empty caption)";
  write(item.querySelector(".caption"), words);
  item.querySelector("img").alt = words;
  item.querySelector(".confidence").textContent = answer.confidence_in_words;
  for (const other of answer.alternatives) {
    const line = document.createElement("li"), text = document.createElement("bdi"), source = document.createElement("span");
    write(text, other.caption);
    source.className = "source";
    source.textContent = other.source === "beam" ? " (also found)" : " (drawn at random)";
    line.append(text, source);
    item.querySelector(".alternatives ul").append(line);
  }
  item.querySelector(".alternatives").hidden = !answer.alternatives.length;
  if (document.body.dataset.attends === "yes") {
    item.querySelector(".more").hidden = false;
    item.querySelector(".look").onclick = (event) => look(file, item, event.currentTarget, words);
  }
}

async function look(file, item, button, words) {
  button.disabled = true;
  try {
    const answer = await post("attention", file, "image/png");
    const picture = document.createElement("img"), url = URL.createObjectURL(answer);
    picture.className = "attention";
    picture.alt = `Where the model looked for each word of: ${words}`;
    picture.onload = () => URL.revokeObjectURL(url);
    picture.src = url;
    const frame = document.createElement("div");   // scrolls on narrow screens, also with the keyboard
    frame.className = "frame";
    frame.tabIndex = 0;
    frame.setAttribute("role", "group");
    frame.setAttribute("aria-label", "Where the model looked");
    frame.append(picture);
    button.parentElement.replaceWith(frame);
    frame.focus();
    find("status").textContent = "The picture of the attention is below the caption.";
  } catch (error) {
    button.disabled = false;
    find("status").textContent = `No picture: ${error.message}`;
  }
}

function clear() {
  waiting.length = 0;
  results.replaceChildren();
  next();
  find("files").focus();
}

for (const id of ["files", "camera"]) {
  find(id).addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });
}
find("camera-choice").hidden = !matchMedia("(pointer: coarse)").matches;
find("clear").addEventListener("click", clear);
document.addEventListener("paste", (event) => add(event.clipboardData.files));
// Anywhere on the page: a photo that misses the frame would otherwise replace the page.
document.addEventListener("dragover", (event) => { event.preventDefault(); find("drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) find("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  add(event.dataTransfer.files);
});
