// The page: what is shown follows from `state` alone.

const SIDE = 28;
const STEP = 5; // degrees between the points of the curve
const SHOWN = 3; // rows of feature maps
const DASHES = ["7 4", "", "2 3", "10 3 2 3"];
const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
const $ = (id) => document.getElementById(id);

const digits = JSON.parse($("digit-data").textContent).map(({ label, pixels }) => ({
  label,
  pixels: Float64Array.from(atob(pixels), (character) => character.charCodeAt(0) / 255),
}));
const networks = JSON.parse($("network-data").textContent).map(readNetwork);
const CLASSES = networks[0].classes;
const state = { image: digits[4].pixels, digit: 4, angle: 0, reflected: false, shown: 4, layer: 2, spinning: false };
let curve = new Map(); // angle: the probabilities of every network
let queue = [];
let timers = {};

const upright = () => (state.reflected ? reflect(state.image, SIDE) : state.image);
const colour = (index) => `var(--c${index % 4})`;
const later = (name, action, wait) => {
  clearTimeout(timers[name]);
  timers[name] = setTimeout(action, wait);
};

function element(tag, attributes = {}, ...children) {
  const svg = ["line", "rect", "polyline", "text", "circle"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function paint(canvas, plane, side, pixel) {
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  for (let p = 0; p < side * side; p++) image.data.set([...pixel(plane[p]), 255], 4 * p);
  context.putImageData(image, 0, 0);
}

const grey = (value) => Array(3).fill(Math.round(255 * Math.min(1, Math.max(0, value))));

function viridis(value) {
  const at = Math.min(1, Math.max(0, value)) * (VIRIDIS.length - 1);
  const [low, high] = [VIRIDIS[Math.floor(at)], VIRIDIS[Math.ceil(at)]];
  return low.map((channel, i) => Math.round(channel + (high[i] - channel) * (at - Math.floor(at))));
}

function small(value) {
  if (value >= 1e-3) return value.toFixed(3);
  return value === 0 ? "0" : `${value.toExponential(0).replace("e", " · 10^")}`.replace("^-", "^−");
}

// 3 · 10^−16 with a raised exponent
function figure(value) {
  const [base, exponent] = small(value).split("^");
  return exponent ? [base, element("sup", {}, exponent)] : [base];
}

// ---- what does not change ------------------------------------------------------------------------------------------

function build() {
  digits.forEach(({ label, pixels }, index) => {
    const canvas = element("canvas");
    paint(canvas, pixels, SIDE, grey);
    const button = element("button", { type: "button", "aria-label": `digit ${label}`, "data-digit": index }, canvas);
    button.addEventListener("click", () => pick(index));
    $("digits").append(button);
  });
  for (let c = 0; c < CLASSES; c++) $("class").append(element("option", { value: c }, String(c)));
  networks.forEach((network, index) => {
    const bars = element("div", { class: "bars", role: "img" });
    for (let c = 0; c < network.classes; c++) {
      const fill = element("div", { class: "fill", style: `background:${colour(index)}` });
      const track = element("div", { class: "track" }, fill);
      const [percent, name] = [element("span", { class: "percent" }), element("span", { class: "name" }, String(c))];
      bars.append(element("div", { class: "bar" }, percent, track, name));
    }
    const kind = network.order > 1 ? `group of ${network.order} elements` : "ordinary convolutions";
    const size = `${kind}, ${network.parameters.toLocaleString("en")} parameters`;
    const change = element("p", { class: "change" });
    const heading = element("h3", { style: `color:${colour(index)}` }, network.name);
    $("cards").append(element("div", { class: "card", "data-network": network.name }, heading, element("p", {}, size), bars, change));
    const grid = element("div", { class: "grid" });
    const text = element("p", {});
    const title = element("h3", { style: `color:${colour(index)}` }, network.name);
    $("maps").append(element("div", { class: "net", "data-network": network.name }, title, text, grid));
    const dash = DASHES[index] ? "dashed" : "solid";
    const swatch = element("span", { class: "swatch", style: `border-color:${colour(index)};border-top-style:${dash}` });
    $("legend").append(element("p", { "data-network": network.name }, swatch, element("span", {}, network.name), element("span", { class: "repeat" })));
  });
  const layers = Math.min(...networks.map((network) => network.steps.filter((step) => step.op === "relu").length));
  $("layer").max = Math.max(1, layers - 1); // the last one's maps are single pixels
}

// ---- what the networks say -----------------------------------------------------------------------------------------

function show() {
  const image = rotate(upright(), state.angle, SIDE);
  paint($("view"), image, SIDE, grey);
  $("angle").value = state.angle;
  $("angle-text").textContent = `${Math.round(state.angle)}°`;
  $("reflect").setAttribute("aria-pressed", state.reflected);
  $("spin").setAttribute("aria-pressed", state.spinning);
  for (const button of $("digits").children) button.setAttribute("aria-pressed", +button.dataset.digit === state.digit);
  $("class").value = state.shown;
  $("layer").value = state.layer;
  $("layer-text").textContent = state.layer;
  const results = networks.map((network) => run(network, image, SIDE));
  results.forEach(({ probabilities }, index) => showBars(index, probabilities));
  results.forEach(({ maps }, index) => showMaps(index, maps[state.layer - 1]));
  drawCurve();
  later("compare", () => compare(image, results), state.spinning ? 400 : 60);
}

function showBars(index, probabilities) {
  const bars = $("cards").children[index].querySelector(".bars");
  const top = probabilities.indexOf(Math.max(...probabilities));
  probabilities.forEach((probability, c) => {
    const bar = bars.children[c];
    bar.dataset.probability = probability;
    bar.classList.toggle("top", c === top);
    bar.querySelector(".fill").style.height = `${100 * probability}%`;
    bar.querySelector(".percent").textContent = probability >= 0.05 ? `${Math.round(100 * probability)}%` : "";
  });
  bars.setAttribute("aria-label", `most probable: ${top}, ${Math.round(100 * probabilities[top])} percent`);
}

// The image rotated by another 90°: how much do probabilities change, and are the feature maps the rotated ones?
function compare(image, results) {
  const rotated = rotate90(image, SIDE);
  networks.forEach((network, index) => {
    const { probabilities, maps } = run(network, rotated, SIDE);
    const change = Math.max(...probabilities.map((p, c) => Math.abs(p - results[index].probabilities[c])));
    const line = $("cards").children[index].querySelector(".change");
    line.dataset.change = change;
    line.replaceChildren("Another 90° changes a probability by at most ", element("strong", {}, ...figure(change)), ".");
    const error = mapError(network, results[index].maps[state.layer - 1], maps[state.layer - 1]);
    const text = $("maps").children[index].querySelector("p");
    text.dataset.error = error;
    const moved = network.rotation ? "rotates and moves to the next place" : "does not simply rotate";
    text.replaceChildren(`By 90°, every map ${moved}: relative difference from that `, element("strong", {}, ...figure(error)), ".");
  });
}

// |f(rotated image) - rotated f(image)| / |f(image)|
function mapError(network, before, after) {
  const order = network.rotation ? network.order : 1;
  const sources = network.rotation || [0];
  const [area, channels] = [before.size ** 2, before.channels / order];
  let [difference, norm] = [0, 0];
  for (let g = 0; g < order; g++) {
    for (let c = 0; c < channels; c++) {
      const from = (sources[g] * channels + c) * area;
      const expected = rotate90(before.data.subarray(from, from + area), before.size);
      const found = (g * channels + c) * area;
      for (let p = 0; p < area; p++) {
        difference += (after.data[found + p] - expected[p]) ** 2;
        norm += expected[p] ** 2;
      }
    }
  }
  return norm ? Math.sqrt(difference / norm) : 0;
}

let chosen = {}; // the channels shown of each layer: those with the largest values for the upright image
function channelsOf(index, map) {
  const key = `${index} ${state.layer}`;
  if (!chosen[key]) {
    const network = networks[index];
    const upper = run(network, Float64Array.from(state.image), SIDE).maps[state.layer - 1];
    const [area, count] = [map.size ** 2, map.channels / network.order];
    const strength = Array.from({ length: count }, (_, c) => {
      const sum = upper.data.subarray(c * area, (c + 1) * area).reduce((a, b) => a + b, 0);
      return [sum, c];
    });
    const wanted = network.order > 1 ? SHOWN : SHOWN * 4;
    chosen[key] = strength.sort((a, b) => b[0] - a[0]).slice(0, wanted).map(([, c]) => c);
  }
  return chosen[key];
}

function showMaps(index, map) {
  const network = networks[index];
  const grid = $("maps").children[index].querySelector(".grid");
  const columns = network.order > 1 ? network.order : 4;
  const channels = channelsOf(index, map);
  const [area, count] = [map.size ** 2, map.channels / network.order];
  const planes = channels.flatMap((c) => Array.from({ length: network.order }, (_, g) => map.data.subarray((g * count + c) * area, (g * count + c + 1) * area)));
  const head = network.order === 4 && network.rotation ? 4 : 0;
  if (grid.childElementCount !== planes.length + head) {
    grid.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
    const names = head ? ["filter at 0°", "90°", "180°", "270°"].map((name) => element("span", {}, name)) : [];
    grid.replaceChildren(...names, ...planes.map(() => element("canvas")));
  }
  planes.forEach((plane, i) => {
    const row = planes.slice(i - (i % network.order), i - (i % network.order) + network.order);
    const scale = Math.max(1e-12, ...row.map((values) => values.reduce((a, b) => Math.max(a, b), 0)));
    paint(grid.children[head + i], plane, map.size, (value) => viridis(value / scale));
  });
}

// ---- the curve -----------------------------------------------------------------------------------------------------

let width = 720; // of the curve, in pixels
const X = (angle) => 66 + (angle / 360) * (width - 80);

// log10 of p : 1 - p, a scale on which a change from 99 % to 99.99 % is as visible as one from 50 % to 99 %.
function logOdds(probabilities, c) {
  const others = probabilities.reduce((sum, p, other) => (other === c ? sum : sum + p), 0);
  return Math.min(9, Math.max(-9, Math.log10(probabilities[c] / others)));
}

function percent(odds) {
  if (odds === 0) return "50%";
  if (Math.abs(odds) > 6) return ""; // too long
  const digits = Math.max(0, Math.abs(odds) - 2);
  return odds < 0 ? `${(10 ** (odds + 2)).toFixed(digits)}%` : `${(100 - 10 ** (2 - odds)).toFixed(digits)}%`;
}

function startCurve() {
  curve = new Map();
  const all = Array.from({ length: 360 / STEP }, (_, i) => i * STEP);
  const coarse = (angle) => [90, 30, 15, STEP].findIndex((step) => angle % step === 0);
  queue = all.sort((a, b) => coarse(a) - coarse(b) || a - b);
  later("curve", extendCurve, 30);
}

function extendCurve() {
  const [image, until] = [upright(), performance.now() + 25];
  while (queue.length && performance.now() < until) {
    const angle = queue.shift();
    const rotated = rotate(image, angle, SIDE);
    curve.set(angle, networks.map((network) => run(network, rotated, SIDE).probabilities));
  }
  drawCurve();
  if (queue.length) later("curve", extendCurve, 10);
}

function drawCurve() {
  width = Math.max(280, $("curve").clientWidth);
  $("curve").setAttribute("viewBox", `0 0 ${width} 264`);
  const angles = [...curve.keys()].sort((a, b) => a - b);
  const lines = networks.map((_, index) => angles.map((angle) => logOdds(curve.get(angle)[index], state.shown)));
  const low = 2 * Math.floor(Math.min(0, ...lines.flat()) / 2);
  const high = 2 * Math.ceil(Math.max(2, ...lines.flat()) / 2);
  const Y = (odds) => 238 - ((odds - low) / (high - low)) * 224;
  const parts = [];
  for (let k = 0; k < 4; k++) {
    const band = { x: X(90 * k), y: Y(high), width: X(90) - X(0), height: Y(low) - Y(high) };
    parts.push(element("rect", { ...band, fill: k % 2 ? "transparent" : "var(--band)" }));
  }
  for (let k = 0; k <= 4; k++) {
    parts.push(element("line", { x1: X(90 * k), x2: X(90 * k), y1: Y(low), y2: Y(high), stroke: "var(--line)" }));
    parts.push(element("text", { x: X(90 * k), y: 258, "text-anchor": k === 4 ? "end" : "middle" }, `${90 * k}°`));
  }
  for (let odds = low; odds <= high; odds += 2) {
    parts.push(element("line", { x1: X(0), x2: X(360), y1: Y(odds), y2: Y(odds), stroke: odds ? "var(--line)" : "var(--faint)" }));
    parts.push(element("text", { x: 60, y: Y(odds) + 4, "text-anchor": "end" }, percent(odds)));
  }
  networks.forEach((network, index) => {
    const around = curve.has(0) ? [...angles, 360] : angles;
    const points = around.map((angle, i) => `${X(angle).toFixed(1)},${Y(lines[index][i % angles.length]).toFixed(1)}`).join(" ");
    const style = { fill: "none", stroke: colour(index), "stroke-width": 3, "stroke-dasharray": DASHES[index], "stroke-linejoin": "round" };
    parts.push(element("polyline", { points, "data-network": network.name, ...style }));
    showRepeat(index);
  });
  parts.push(element("line", { x1: X(state.angle), x2: X(state.angle), y1: Y(low), y2: Y(high), stroke: "var(--ink)", "stroke-width": 2 }));
  $("curve").replaceChildren(...parts);
}

function showRepeat(index) {
  const text = $("legend").children[index].querySelector(".repeat");
  if (queue.length) {
    text.textContent = ": …";
    return;
  }
  let worst = 0;
  for (const [angle, values] of curve) {
    const next = curve.get((angle + 90) % 360)[index];
    values[index].forEach((p, c) => (worst = Math.max(worst, Math.abs(p - next[c]))));
  }
  text.dataset.difference = worst;
  text.replaceChildren(": 90° further on, a probability differs by at most ", element("strong", {}, ...figure(worst)), ".");
}

// ---- what one can do -----------------------------------------------------------------------------------------------

function change(values) {
  Object.assign(state, values);
  if ("image" in values) chosen = {};
  if ("image" in values || "reflected" in values) startCurve();
  if ("layer" in values) for (const grid of document.querySelectorAll(".grid")) grid.replaceChildren();
  show();
}

function pick(index) {
  const { label, pixels } = digits[index];
  change({ image: pixels, digit: index, shown: label });
  const pad = $("pad").getContext("2d");
  const canvas = element("canvas");
  paint(canvas, pixels, SIDE, grey);
  pad.imageSmoothingEnabled = true;
  pad.drawImage(canvas, 0, 0, 280, 280);
  ink = false;
}

let ink = false; // whether the pad holds a drawing
let stroke = null;
const position = (event) => {
  const box = $("pad").getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * 280, ((event.clientY - box.top) / box.height) * 280];
};

function clearPad() {
  const pad = $("pad").getContext("2d");
  pad.fillStyle = "#000";
  pad.fillRect(0, 0, 280, 280);
  ink = true;
}

function readPad() {
  const { data } = $("pad").getContext("2d").getImageData(0, 0, 280, 280);
  const values = Float64Array.from({ length: 280 * 280 }, (_, p) => data[4 * p] / 255);
  const image = fit(values, 280);
  const { probabilities } = run(networks[networks.length - 1], image, SIDE);
  change({ image, digit: -1, shown: probabilities.indexOf(Math.max(...probabilities)) });
}

function drawing() {
  const pad = $("pad");
  const context = pad.getContext("2d", { willReadFrequently: true });
  pad.addEventListener("pointerdown", (event) => {
    if (!ink) clearPad();
    pad.setPointerCapture(event.pointerId);
    stroke = position(event);
    context.fillStyle = "#fff";
    context.beginPath();
    context.arc(...stroke, 11, 0, 7);
    context.fill();
  });
  pad.addEventListener("pointermove", (event) => {
    if (!stroke) return;
    const next = position(event);
    Object.assign(context, { strokeStyle: "#fff", lineWidth: 22, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(...stroke);
    context.lineTo(...next);
    context.stroke();
    stroke = next;
    later("read", readPad, 120);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    pad.addEventListener(end, () => {
      if (stroke) later("read", readPad, 0);
      stroke = null;
    });
  }
}

const rotateBy = (degrees) => change({ angle: (((state.angle + degrees) % 360) + 360) % 360 });

let last = 0;
function spin(now) {
  if (!state.spinning) return;
  const angle = (state.angle + Math.min(100, now - last) * 0.03) % 360;
  last = now;
  change({ angle });
  requestAnimationFrame(spin);
}

function connect() {
  $("angle").addEventListener("input", (event) => change({ angle: +event.target.value, spinning: false }));
  $("layer").addEventListener("input", (event) => change({ layer: +event.target.value }));
  $("class").addEventListener("change", (event) => change({ shown: +event.target.value }));
  $("back").addEventListener("click", () => rotateBy(-90));
  $("on").addEventListener("click", () => rotateBy(90));
  $("reflect").addEventListener("click", () => change({ reflected: !state.reflected }));
  $("clear").addEventListener("click", () => {
    clearPad();
    change({ image: new Float64Array(SIDE * SIDE), digit: -1 });
  });
  $("spin").addEventListener("click", () => {
    change({ spinning: !state.spinning });
    last = performance.now();
    requestAnimationFrame(spin);
  });
  const follow = (event) => {
    if (event.buttons !== 1 && event.type !== "click") return;
    const box = $("curve").getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    change({ angle: Math.round(Math.min(360, Math.max(0, ((x - 66) / (width - 80)) * 360))), spinning: false });
  };
  $("curve").addEventListener("click", follow);
  $("curve").addEventListener("pointermove", follow);
}

addEventListener("resize", () => later("resize", show, 100));
build();
drawing();
connect();
pick(4);
