// The form, the picture to start from, and what is dropped on the page.

import { Brush } from "./brush.js";
import { follow } from "./cards.js";
import { read, send, setKey } from "./server.js";

const PREVIEWS = 20;
const NUMBERS = [
  "num_inference_steps",
  "guidance_scale",
  "width",
  "height",
  "seed",
  "num_images_per_prompt",
  "fast",
  "strength",
];
const TEXTS = ["negative_prompt", "sampler", "model", "output_format"];
const at = (name) => document.getElementById(name);
const brush = new Brush(at("mask"), at("brush"));
let image = null;
let recorded = null;

function say(text) {
  at("state").textContent = text;
}

function complain(error) {
  at("trouble").textContent = error ? error.message : "";
  if (error?.status === 401) {
    at("key-field").hidden = false;
    at("key").focus();
  } else if (error?.field && at(error.field)) {
    at(error.field).focus();
  }
}

function options() {
  const given = { prompt: at("prompt").value, previews: PREVIEWS };
  for (const name of TEXTS) if (at(name).value) given[name] = at(name).value;
  for (const name of NUMBERS) {
    if (at(name).value === "" || (name === "strength" && !image)) continue;
    given[name] = Number(at(name).value);
  }
  if (image) given.image = image;
  const mask = image && brush.url();
  if (mask) given.mask = mask;
  return given;
}

async function draw(event) {
  event.preventDefault();
  complain(null);
  try {
    const given = options();
    const job = await send("/v1/jobs", given);
    say(`Drawing: ${given.prompt}`);
    await follow(job, given.prompt, { seed: useSeed, start: startFrom }, say);
  } catch (error) {
    complain(error);
  }
}

function useSeed(seed) {
  at("seed").value = seed;
  at("seed").focus();
}

async function startFrom(url) {
  const content = await (await fetch(url)).blob();
  await take(content);
}

function dataUrl(content) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error("the file cannot be read"));
    reader.readAsDataURL(content);
  });
}

function loaded(url) {
  return new Promise((done, failed) => {
    const found = new Image();
    found.onload = () => done(found);
    found.onerror = () => failed(new Error("this is no picture"));
    found.src = url;
  });
}

// Takes a picture to start from, and reads how it was made.
async function take(content) {
  complain(null);
  try {
    const url = await dataUrl(content);
    const found = await loaded(url);
    image = url;
    at("shown").src = url;
    at("editor").hidden = false;
    at("start").open = true;
    brush.reset(found.naturalWidth, found.naturalHeight);
    say(`Starts from a picture of ${found.naturalWidth} by ${found.naturalHeight} pixels`);
    const told = await send("/sdapi/v1/png-info", { image: url });
    recorded = told.items;
    at("record").hidden = !told.info && !told.items["bksdm:prompt"];
    at("record-text").textContent = told.info || told.items["bksdm:prompt"] || "";
  } catch (error) {
    complain(error);
  }
}

function takeOptions() {
  for (const name of ["prompt", ...NUMBERS, ...TEXTS]) {
    const value = recorded[`bksdm:${name}`];
    if (value !== undefined && name !== "model" && name !== "output_format") at(name).value = value;
  }
  removePicture();
  say("Took the options of the picture");
  at("prompt").focus();
}

function removePicture() {
  image = null;
  at("editor").hidden = true;
  at("record").hidden = true;
  at("image-file").value = "";
}

async function limits() {
  const schema = (await read("/openapi.json")).paths["/v1/jobs"].post.requestBody;
  const known = schema.content["application/json"].schema.properties;
  for (const name of NUMBERS) {
    const { minimum, maximum, description } = known[name];
    at(name).title = description || "";
    if (minimum !== undefined && at(name).type === "number") at(name).min = minimum;
    if (maximum !== undefined && at(name).type === "number") at(name).max = maximum;
  }
}

async function choices() {
  try {
    const models = await read("/v1/models");
    at("model").replaceChildren(...models.data.map(({ id }) => new Option(id, id)));
    const samplers = await read("/sdapi/v1/samplers");
    at("sampler").append(...samplers.map(({ name, aliases }) => new Option(name, aliases[0])));
    say("Ready");
  } catch (error) {
    complain(error);
  }
}

at("form").addEventListener("submit", draw);
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
at("key").addEventListener("change", () => {
  setKey(at("key").value);
  complain(null);
  choices();
});
at("image-file").addEventListener("change", () => {
  if (at("image-file").files.length) take(at("image-file").files[0]);
});
at("mask-file").addEventListener("change", async () => {
  if (at("mask-file").files.length) {
    brush.load(await loaded(await dataUrl(at("mask-file").files[0])));
  }
});
at("erase").addEventListener("click", () => {
  brush.erasing = !brush.erasing;
  at("erase").setAttribute("aria-pressed", String(brush.erasing));
});
at("invert").addEventListener("click", () => brush.invert());
at("clear").addEventListener("click", () => brush.reset(at("mask").width, at("mask").height));
at("remove").addEventListener("click", removePicture);
at("take").addEventListener("click", takeOptions);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) take(file);
});
if (matchMedia("(max-width: 52rem)").matches) {
  // On a phone the pictures would be far below.
  for (const part of document.querySelectorAll("details")) part.open = false;
}
limits();
choices();
