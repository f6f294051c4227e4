// The gallery: a card for every picture, which shows it while it is drawn.

import { cancel, events } from "./server.js";

const gallery = document.getElementById("gallery");
const template = document.getElementById("card");

class Card {
  constructor(prompt, actions) {
    this.item = template.content.cloneNode(true).firstElementChild;
    this.prompt = prompt;
    this.actions = actions;
    gallery.prepend(this.item);
    document.getElementById("empty").hidden = true;
  }

  find(name) {
    return this.item.querySelector(name);
  }

  say(text) {
    this.find(".told").textContent = `${this.prompt} – ${text}`;
  }

  show(url) {
    const picture = this.find(".picture");
    picture.src = url;
    picture.alt = this.prompt;
    picture.hidden = false;
  }

  follow(told) {
    this.find("progress").value = told.step / told.steps;
    const waits = told.status === "queued" && !told.step;
    this.say(waits ? `waiting, ${told.position} before it` : `step ${told.step} of ${told.steps}`);
  }

  finish(job, index) {
    this.item.classList.add("done");
    this.show(job.pictures[index]);
    this.find("progress").remove();
    this.find(".cancel").remove();
    const seed = Array.isArray(job.options.seed) ? job.options.seed[index] : job.options.seed;
    this.say(`seed ${seed}${job.pictures.length > 1 ? `, picture ${index + 1}` : ""}`);
    for (const [name, act] of [
      [".seed", () => this.actions.seed(seed)],
      [".again", () => this.actions.start(job.pictures[index])],
    ]) {
      this.find(name).hidden = false;
      this.find(name).addEventListener("click", act);
    }
    const save = this.find(".save");
    save.href = job.pictures[index];
    save.hidden = false;
  }

  fail(words) {
    this.item.classList.add("failed");
    this.say(words);
    this.find("progress").remove();
    this.find(".cancel").remove();
  }
}

// Follows a job to its end; actions are what the buttons of a finished picture do.
export async function follow(job, prompt, actions, say) {
  const count = job.options.num_images_per_prompt;
  const cards = Array.from({ length: count }, () => new Card(prompt, actions));
  for (const card of cards) {
    card.follow(job);
    card.find(".cancel").addEventListener("click", () => cancel(job));
  }
  try {
    for await (const [name, told] of events(job)) {
      if (name === "state") cards.forEach((card) => card.follow(told));
      if (name === "preview") cards.forEach((card, k) => card.show(told.pictures[k]));
      if (name !== "end") continue;
      if (told.status === "done") {
        cards.forEach((card, k) => card.finish(told, k));
        say(`Done: ${prompt}`);
      } else {
        cards.forEach((card) => card.fail(told.error.detail));
        say(`Not drawn: ${told.error.detail}`);
      }
      return;
    }
    throw new Error("the connection ended");
  } catch (error) {
    cards.forEach((card) => card.fail(error.message));
  }
}
