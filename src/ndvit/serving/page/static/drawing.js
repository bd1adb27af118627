// Draws examples and relevance on canvases, in the colours of the page's theme.

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (value) => style(value < 0 ? "--against" : "--for");

/** The size of relevance that has the full colour: nearly the largest, so that one value does not hide all others. */
function strongest(rows) {
  const sizes = rows.flat().map((v) => Math.abs(v ?? 0)).sort((a, b) => a - b);
  return sizes[Math.floor(0.995 * (sizes.length - 1))] || sizes[sizes.length - 1] || 1;
}

function prepared(canvas, width, height) {
  canvas.width = width;
  canvas.height = height;
  canvas.style.aspectRatio = `${width} / ${height}`;
  return canvas.getContext("2d");
}

/** A table of numbers as a small canvas: one pixel for each. `paint` returns [r, g, b, a] with a from 0 to 255. */
function pixels(rows, paint) {
  const canvas = document.createElement("canvas");
  const context = prepared(canvas, rows[0].length, rows.length);
  const image = context.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((value, i) => image.data.set(paint(value), 4 * i));
  context.putImageData(image, 0, 0);
  return canvas;
}

function heat(rows) {
  const most = strongest(rows);
  return pixels(rows, (v) => [...colour(v).split(",").map(Number), 190 * Math.min(1, Math.abs(v ?? 0) / most)]);
}

function fitted(width, height) {
  const scale = 512 / Math.max(width, height);
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

async function drawPicture(canvas, example, relevance) {
  const image = new Image();
  image.src = example.src;
  await image.decode();
  const [width, height] = fitted(image.naturalWidth, image.naturalHeight);
  const context = prepared(canvas, width, height);
  context.imageSmoothingEnabled = image.naturalWidth > 64;
  context.globalAlpha = relevance ? 0.75 : 1;
  context.drawImage(image, 0, 0, width, height);
  context.globalAlpha = 1;
  if (relevance) {
    context.imageSmoothingEnabled = true;
    context.drawImage(heat(relevance), 0, 0, width, height);
  }
}

function drawGrid(canvas, rows, relevance) {
  const upright = rows.slice().reverse(); // low frequencies are at the bottom
  const known = rows.flat().filter((v) => v !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const context = prepared(canvas, 640, 320);
  context.imageSmoothingEnabled = false;
  const grey = (v) => { const g = 235 - 215 * ((v - low) / (high - low || 1)); return [g, g, g, v === null ? 0 : 255]; };
  context.drawImage(pixels(upright, grey), 0, 0, 640, 320);
  if (relevance) context.drawImage(heat(relevance.slice().reverse()), 0, 0, 640, 320);
}

function drawCurves(canvas, example, relevance) {
  const rows = example.values, height = Math.max(90, Math.min(220, 480 / rows.length)), width = 640, left = 52, foot = 26;
  const context = prepared(canvas, width, height * rows.length + foot);
  const most = relevance ? strongest(relevance) : 1;
  context.font = "13px system-ui, sans-serif";
  rows.forEach((row, channel) => {
    const top = channel * height + 6, tall = height - 12;
    const known = row.filter((v) => v !== null);
    const low = Math.min(...known), high = Math.max(...known), span = high - low || 1;
    const x = (i, n) => left + ((i + 0.5) / n) * (width - left - 6), y = (v) => top + tall - ((v - low) / span) * tall;
    const heatRow = relevance && (relevance[channel] ?? relevance[0]);
    heatRow?.forEach((v, i) => {
      const step = (width - left - 6) / heatRow.length;
      context.fillStyle = `rgba(${colour(v)}, ${0.75 * Math.min(1, Math.abs(v ?? 0) / most)})`;
      context.fillRect(left + i * step, top, step + 0.5, tall);
    });
    context.strokeStyle = style("--ink");
    context.lineWidth = 1.6;
    context.beginPath();
    let open = false;
    row.forEach((v, i) => {
      if (v === null) { open = false; return; }
      if (open) context.lineTo(x(i, row.length), y(v)); else context.moveTo(x(i, row.length), y(v));
      open = true;
    });
    context.stroke();
    context.fillStyle = style("--soft");
    context.textAlign = "right";
    context.fillText(high.toPrecision(3), left - 6, top + 11);
    context.fillText(low.toPrecision(3), left - 6, top + tall);
  });
  context.fillStyle = style("--soft");
  context.textAlign = "left";
  context.fillText("0", left, context.canvas.height - 8);
  context.textAlign = "right";
  const end = example.seconds ? `${Number(example.seconds.toPrecision(4))} s` : `${example.samples}`;
  context.fillText(end, width - 6, context.canvas.height - 8);
}

/** Draw an example, with relevance above it or without. */
export async function draw(canvas, example, relevance) {
  if (example.kind === "picture") await drawPicture(canvas, example, relevance);
  else if (example.kind === "grid") drawGrid(canvas, example.values, relevance);
  else drawCurves(canvas, example, relevance);
}
