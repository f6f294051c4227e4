// A mask that is painted over a picture, by pointer or keyboard. White is drawn anew.

export class Brush {
  constructor(canvas, size) {
    this.canvas = canvas;
    this.size = size;
    this.erasing = false;
    this.painted = false;
    this.at = null;
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  reset(width, height) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.painted = false;
    this.at = { x: width / 2, y: height / 2 };
  }

  load(image) {
    const context = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    context.drawImage(image, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const white = pixels.data[i] >= 128 && pixels.data[i + 3] >= 128;
      pixels.data.set(white ? [255, 255, 255, 255] : [0, 0, 0, 0], i);
    }
    context.putImageData(pixels, 0, 0);
    this.painted = true;
  }

  invert() {
    const context = this.canvas.getContext("2d");
    context.globalCompositeOperation = "xor";
    context.fillStyle = "white";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.globalCompositeOperation = "source-over";
    this.painted = true;
  }

  // The mask as a data URL, white on black, or null where nothing is painted.
  url() {
    if (!this.painted) return null;
    const flat = document.createElement("canvas");
    flat.width = this.canvas.width;
    flat.height = this.canvas.height;
    const context = flat.getContext("2d");
    context.fillRect(0, 0, flat.width, flat.height);
    context.drawImage(this.canvas, 0, 0);
    return flat.toDataURL("image/png");
  }

  get #radius() {
    return (Number(this.size.value) / 200) * Math.max(this.canvas.width, this.canvas.height);
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * this.canvas.width) / box.width,
      y: ((event.clientY - box.top) * this.canvas.height) / box.height,
    };
  }

  #begin(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.at = this.#place(event);
    this.#paint(this.at);
  }

  #move(event) {
    if (event.buttons) this.#paint(this.#place(event));
  }

  #key(event) {
    const far = Math.max(1, this.#radius);
    const ways = {
      ArrowLeft: [-far, 0],
      ArrowRight: [far, 0],
      ArrowUp: [0, -far],
      ArrowDown: [0, far],
    };
    if (ways[event.key]) {
      const [x, y] = ways[event.key];
      this.at = {
        x: Math.min(Math.max(this.at.x + x, 0), this.canvas.width),
        y: Math.min(Math.max(this.at.y + y, 0), this.canvas.height),
      };
      this.canvas.setAttribute(
        "aria-label",
        `Mask, brush at ${Math.round((100 * this.at.x) / this.canvas.width)} % from the left, ` +
          `${Math.round((100 * this.at.y) / this.canvas.height)} % from the top`,
      );
    } else if (event.key === " ") {
      this.#paint(this.at);
    } else if (event.key === "+") {
      this.size.stepUp();
    } else if (event.key === "-") {
      this.size.stepDown();
    } else {
      return;
    }
    event.preventDefault();
  }

  #paint(to) {
    const context = this.canvas.getContext("2d");
    context.globalCompositeOperation = this.erasing ? "destination-out" : "source-over";
    context.strokeStyle = "white";
    context.lineCap = "round";
    context.lineWidth = 2 * this.#radius;
    context.beginPath();
    context.moveTo(this.at.x, this.at.y);
    context.lineTo(to.x, to.y);
    context.stroke();
    context.globalCompositeOperation = "source-over";
    this.at = to;
    this.painted = true;
  }
}
