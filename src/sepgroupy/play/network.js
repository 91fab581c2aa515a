"use strict";
// Networks and rotations on plain arrays. A feature map is {channels, size, data}, data of channels * size * size.

function decode(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return Float64Array.from(new Float32Array(bytes.buffer)); // float64: sums do not depend visibly on their order
}

function readNetwork(network) {
  for (const step of network.steps) {
    if (step.weight) {
      step.weight = decode(step.weight);
      step.bias = decode(step.bias);
    }
  }
  return network;
}

// A 1×1 convolution, four inputs at a time.
function mix(out, { inputs, outputs, weight, bias }, area, data) {
  for (let o = 0; o < outputs; o++) {
    const start = o * area;
    out.fill(bias[o], start, start + area);
    for (let i = 0; i < inputs; i++) {
      const [at, a] = [o * inputs + i, i * area];
      const wa = weight[at];
      if (i + 3 >= inputs) {
        for (let p = 0; p < area; p++) out[start + p] += wa * data[a + p];
        continue;
      }
      const [wb, wc, wd] = [weight[at + 1], weight[at + 2], weight[at + 3]];
      const [b, c, d] = [a + area, a + 2 * area, a + 3 * area];
      for (let p = 0; p < area; p++) {
        out[start + p] += wa * data[a + p] + wb * data[b + p] + wc * data[c + p] + wd * data[d + p];
      }
      i += 3;
    }
  }
}

// out[row][column] += sum over u, v of kernel[u][v] * plane[row + u][column + v], three v at a time
function slide(out, start, size, data, plane, side, weight, first, kernel) {
  for (let u = 0; u < kernel; u++) {
    for (let v = 0; v < kernel; v += 3) {
      const at = first + u * kernel + v;
      const wa = weight[at];
      const wb = v + 1 < kernel ? weight[at + 1] : 0;
      const wc = v + 2 < kernel ? weight[at + 2] : 0;
      for (let row = 0; row < size; row++) {
        let p = plane + (row + u) * side + v;
        const end = start + (row + 1) * size;
        if (v + 2 < kernel) {
          for (let q = end - size; q < end; q++, p++) out[q] += wa * data[p] + wb * data[p + 1] + wc * data[p + 2];
        } else if (v + 1 < kernel) {
          for (let q = end - size; q < end; q++, p++) out[q] += wa * data[p] + wb * data[p + 1];
        } else {
          for (let q = end - size; q < end; q++, p++) out[q] += wa * data[p];
        }
      }
    }
  }
}

function convolve(x, step) {
  const [kernel, size] = [step.kernel, x.size - step.kernel + 1];
  const [inputs, outputs] = [step.inputs / step.groups, step.outputs];
  const perGroup = outputs / step.groups;
  const out = new Float64Array(outputs * size * size);
  if (kernel === 1 && step.groups === 1) {
    mix(out, step, size * size, x.data);
    return { channels: outputs, size, data: out };
  }
  for (let o = 0; o < outputs; o++) {
    const start = o * size * size;
    out.fill(step.bias[o], start, start + size * size);
    for (let i = 0; i < inputs; i++) {
      const plane = (Math.floor(o / perGroup) * inputs + i) * x.size * x.size;
      slide(out, start, size, x.data, plane, x.size, step.weight, (o * inputs + i) * kernel ** 2, kernel);
    }
  }
  return { channels: outputs, size, data: out };
}

function relu(values) {
  const out = new Float64Array(values.length);
  for (let p = 0; p < values.length; p++) out[p] = values[p] > 0 ? values[p] : 0;
  return out;
}

function maxPool(x) {
  const size = Math.floor(x.size / 2);
  const out = new Float64Array(x.channels * size * size);
  for (let c = 0; c < x.channels; c++) {
    for (let row = 0; row < size; row++) {
      for (let column = 0; column < size; column++) {
        const p = (c * x.size + 2 * row) * x.size + 2 * column;
        const d = x.data;
        out[(c * size + row) * size + column] = Math.max(d[p], d[p + 1], d[p + x.size], d[p + x.size + 1]);
      }
    }
  }
  return { channels: x.channels, size, data: out };
}

function poolGroup(x, order, mean) {
  const length = x.data.length / order;
  const out = new Float64Array(length).fill(mean ? 0 : -Infinity);
  for (let g = 0; g < order; g++) {
    for (let p = 0; p < length; p++) {
      const value = x.data[g * length + p];
      out[p] = mean ? out[p] + value / order : Math.max(out[p], value);
    }
  }
  return { channels: x.channels / order, size: x.size, data: out };
}

function linear(x, step) {
  const out = Float64Array.from(step.bias);
  for (let o = 0; o < step.outputs; o++) {
    for (let i = 0; i < step.inputs; i++) out[o] += step.weight[o * step.inputs + i] * x.data[i];
  }
  return { channels: step.outputs, size: 1, data: out };
}

function softmax(scores) {
  const top = Math.max(...scores);
  const powers = Array.from(scores, (score) => Math.exp(score - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

// The class probabilities, and the feature maps behind each ReLU.
function run(network, pixels, side) {
  let x = { channels: 1, size: side, data: pixels };
  let order = 1;
  const maps = [];
  for (const step of network.steps) {
    if (step.op === "conv") x = convolve(x, step);
    else if (step.op === "linear") x = linear(x, step);
    else if (step.op === "max_pool") x = maxPool(x);
    else if (step.op === "split") order = step.order;
    else if (step.op === "relu") {
      x = { channels: x.channels, size: x.size, data: relu(x.data) };
      maps.push(x);
    } else x = poolGroup(x, order, step.op === "mean");
  }
  return { probabilities: softmax(x.data), maps };
}

// By 90°, counter-clockwise: pixels only change places.
function rotate90(plane, side) {
  const out = new Float64Array(side * side);
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) out[row * side + column] = plane[column * side + side - 1 - row];
  }
  return out;
}

// Counter-clockwise about the centre, bilinear, 0 outside: the remainder of 90° is interpolated, the 90° steps are exact.
function rotate(image, degrees, side) {
  const whole = ((degrees % 360) + 360) % 360;
  const steps = Math.floor(whole / 90);
  const angle = ((whole - 90 * steps) * Math.PI) / 180;
  let out = Float64Array.from(image);
  if (angle > 0) {
    const [cos, sin, centre] = [Math.cos(angle), Math.sin(angle), (side - 1) / 2];
    const at = (y, x) => (y < 0 || x < 0 || y >= side || x >= side ? 0 : image[y * side + x]);
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        const x = cos * (column - centre) - sin * (row - centre) + centre;
        const y = sin * (column - centre) + cos * (row - centre) + centre;
        const [left, top] = [Math.floor(x), Math.floor(y)];
        const [fx, fy] = [x - left, y - top];
        const upper = at(top, left) * (1 - fx) + at(top, left + 1) * fx;
        const lower = at(top + 1, left) * (1 - fx) + at(top + 1, left + 1) * fx;
        out[row * side + column] = upper * (1 - fy) + lower * fy;
      }
    }
  }
  for (let step = 0; step < steps; step++) out = rotate90(out, side);
  return out;
}

function reflect(image, side) {
  return image.map((_, p) => image[p - (p % side) + side - 1 - (p % side)]);
}

// A drawing as the digits of MNIST are: its longer side 20 pixels, its centre of mass in the centre of the image.
function fit(ink, side) {
  let [left, right, top, bottom, mass, mx, my] = [side, -1, side, -1, 0, 0, 0];
  for (let p = 0; p < side * side; p++) {
    const [x, y] = [p % side, Math.floor(p / side)];
    mass += ink[p];
    mx += ink[p] * x;
    my += ink[p] * y;
    if (ink[p] > 0.1) {
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
    }
  }
  const out = new Float64Array(28 * 28);
  if (right < 0) return out;
  const scale = Math.max(right - left + 1, bottom - top + 1) / 20; // pixels of the drawing for one of the image
  for (let p = 0; p < out.length; p++) {
    const x0 = mx / mass + ((p % 28) - 14) * scale;
    const y0 = my / mass + (Math.floor(p / 28) - 14) * scale;
    let [sum, count] = [0, 0];
    for (let y = Math.round(y0); y < Math.max(y0 + scale, Math.round(y0) + 1); y++) {
      for (let x = Math.round(x0); x < Math.max(x0 + scale, Math.round(x0) + 1); x++) {
        sum += x >= 0 && y >= 0 && x < side && y < side ? ink[y * side + x] : 0;
        count++;
      }
    }
    out[p] = sum / count;
  }
  return out;
}
