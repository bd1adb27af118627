// Answers of the model for files, as predict.py gives them; `ort` is onnxruntime-web.
export async function open(ort, graph, description) {
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  const model = { ort, session, input: description.input, names: description.outputs, description };
  return {
    ...model,
    read: (name, bytes) => read(model, name, bytes),
    chosen: (example) => (model.input.kind === "picture" ? example : chosen(model.input, example)),
    answer: (example) => answer(model, example),
  };
}

// An example is { values, shape, rate }: (channels, ..., time) float32 with NaN for missing values, or for pictures
// (height, width, 3) bytes; rate in Hz, null if the file has none.
async function read(model, name, bytes) {
  const kind = name.toLowerCase().split(".").pop(), { input } = model;
  if (input.kind === "picture") return [kind === "npy" ? readNpy(bytes) : await readPicture(bytes)];
  if (kind === "wav" && input.axes === 1) return [readWav(bytes)];
  if (kind === "csv" && input.axes === 1) return readCsv(bytes, input);
  if (kind !== "npy") throw new Error(`expected a ${input.axes === 1 ? ".npy, .csv or .wav" : ".npy"} file`);
  const { values, shape } = readNpy(bytes), more = shape.length - input.axes;
  if (more < 0 || more > 2) throw new Error(`has the shape (${shape}), expected (channels, ${input.axes > 1 ? "..., " : ""}time)`);
  if (more === 0) return [{ values, shape: [1, ...shape], rate: null }];
  if (more === 1 && !input.many) return [{ values, shape, rate: null }];
  const each = shape.length === input.axes + 1 ? [1, ...shape.slice(1)] : shape.slice(1), size = product(each);
  return Array.from({ length: shape[0] }, (_, i) => ({ values: values.slice(i * size, (i + 1) * size), shape: each, rate: null }));
}

async function answer({ ort, session, input }, example) {
  if (input.kind === "picture") {
    const { values, shape } = example;
    if (shape.length !== 3 || shape[2] !== 3) throw new Error(`a picture is (height, width, 3), got (${shape})`);
    return run(session, { raw: new ort.Tensor("uint8", values, shape) });
  }
  const whole = example, rate = example.rate ?? input.rate, [up, down] = fraction(input.rate ?? 1, rate ?? 1);
  if (whole.shape[0] !== input.channels) throw new Error(`has ${whole.shape[0]} channels, expected ${input.channels}`);
  if (example.rate && !input.rate) throw new Error("is a recording, and the model knows no sample rate");
  if (whole.values.some((v) => (up !== down && Number.isNaN(v)) || Math.abs(v) === Infinity)) throw new Error("has infinite or missing samples");
  const parts = windows(input, whole, rate), grid = parts[0].shape.slice(1);
  if (input.longest && grid.some((n, i) => (n * up) / down > 2 * input.longest[i]))
    throw new Error(`has ${grid} samples, more than twice as many as ${input.longest}`);
  const ratio = input.rate ? { ratio: new ort.Tensor("int64", BigInt64Array.of(BigInt(up), BigInt(down)), [2]) } : {};
  let sums = null;
  for (const { values, shape } of parts) {
    const size = product(shape.slice(1));
    if (!input.used.some((c) => values.subarray(c * size, (c + 1) * size).some((v) => !Number.isNaN(v))))
      throw new Error("has no observed values in a window");
    const found = await run(session, { raw: new ort.Tensor("float32", values, shape), ...ratio });
    sums = sums ? sums.map((v, i) => v + found[i]) : found;
  }
  return sums.map((v) => v / parts.length);
}

async function run(session, feeds) {
  return Array.from((await session.run(feeds)).answers.data);
}

export function described({ task, outputs, thresholds }, values) {
  const byName = Object.fromEntries(outputs.map((name, i) => [name, values[i]]));
  if (task === "classification") {
    return { class: outputs[values.indexOf(Math.max(...values.slice(0, outputs.length)))], probabilities: byName };
  }
  if (task === "multilabel") return { labels: outputs.filter((_, i) => values[i] >= thresholds[i]), probabilities: byName };
  const n = outputs.length;
  if (values.length === n) return { values: byName };
  return { values: byName, intervals: Object.fromEntries(outputs.map((name, i) => [name, [values[n + i], values[2 * n + i]]])) };
}

const product = (numbers) => numbers.reduce((a, b) => a * b, 1);

function fraction(a, b) {
  while (!Number.isInteger(a) || !Number.isInteger(b)) [a, b] = [a * 10, b * 10];
  const gcd = (x, y) => (y ? gcd(y, x % y) : x), common = gcd(a, b);
  return [a / common, b / common];
}

// The channels that the model reads, of those of a file.
function chosen(input, { values, shape, rate }) {
  const size = product(shape.slice(1));
  let rows = Array.from({ length: shape[0] }, (_, c) => values.subarray(c * size, (c + 1) * size));
  if (input.chosen.some((c) => c >= rows.length)) throw new Error(`has ${rows.length} channels, expected the channels ${input.chosen}`);
  if (input.chosen.length) rows = input.chosen.map((c) => rows[c]);
  if (input.mixed && rows.length > 1) {
    rows = [Float32Array.from({ length: size }, (_, i) => {
      const seen = rows.map((row) => row[i]).filter((v) => !Number.isNaN(v));
      return seen.length ? seen.reduce((a, b) => a + b) / seen.length : NaN;
    })];
  }
  const joined = new Float32Array(rows.length * size);
  rows.forEach((row, c) => joined.set(row, c * size));
  return { values: joined, shape: [rows.length, ...shape.slice(1)], rate };
}

function round(value) { // as Python: of two whole numbers that are equally near, the even one
  const low = Math.floor(value), rest = value - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

function windows(input, { values, shape }, rate) {
  if (!input.window) return [{ values, shape }];
  const length = shape[shape.length - 1], units = { samples: 1, seconds: rate, share: length };
  const size = Math.min(length, Math.max(1, round(input.window[0] * units[input.window[1]])));
  const [value, unit] = input.hop ?? [1, "share"], hop = Math.max(1, round(value * { ...units, share: size }[unit]));
  const starts = [];
  for (let start = 0; start + size <= length; start += hop) starts.push(start);
  if ((length - size) % hop > 0 && hop <= size) starts.push(length - size);
  const lines = values.length / length;
  return starts.map((start) => {
    const part = new Float32Array(lines * size);
    for (let i = 0; i < lines; i++) part.set(values.subarray(i * length + start, i * length + start + size), i * size);
    return { values: part, shape: [...shape.slice(0, -1), size] };
  });
}

function readWav(bytes) {
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), chunks = {};
  for (let at = 12; at + 8 <= bytes.length; ) {
    const name = String.fromCharCode(...bytes.subarray(at, at + 4)), size = data.getUint32(at + 4, true);
    chunks[name] ??= [at + 8, Math.min(size, bytes.length - at - 8)];
    at += 8 + size + (size % 2);
  }
  if (!chunks["fmt "] || !chunks.data) throw new Error("is not a WAV file");
  const [head] = chunks["fmt "], [start, size] = chunks.data;
  const code = data.getUint16(head, true), kind = code === 0xfffe ? data.getUint16(head + 24, true) : code;
  const channels = data.getUint16(head + 2, true), rate = data.getUint32(head + 4, true), bits = data.getUint16(head + 14, true);
  const readers = {
    "1/8": (at) => (data.getUint8(at) - 128) / 128,
    "1/16": (at) => data.getInt16(at, true) / 32768,
    "1/24": (at) => (data.getInt8(at + 2) * 65536 + data.getUint16(at, true)) / 8388608,
    "1/32": (at) => data.getInt32(at, true) / 2147483648,
    "3/32": (at) => data.getFloat32(at, true),
    "3/64": (at) => data.getFloat64(at, true),
  };
  const reader = readers[`${kind}/${bits}`], width = bits / 8, length = Math.floor(size / width / channels);
  if (!reader) throw new Error(`is a WAV file of the coding ${kind} with ${bits} bits: save it as PCM`);
  const values = new Float32Array(channels * length);
  for (let i = 0; i < length; i++)
    for (let c = 0; c < channels; c++) values[c * length + i] = reader(start + (i * channels + c) * width);
  return { values, shape: [channels, length], rate };
}

function readNpy(bytes) {
  if (bytes[0] !== 0x93 || String.fromCharCode(...bytes.subarray(1, 6)) !== "NUMPY") throw new Error("is not an .npy file");
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), wide = bytes[6] > 1;
  const start = (wide ? 12 : 10) + (wide ? data.getUint32(8, true) : data.getUint16(8, true));
  const head = new TextDecoder().decode(bytes.subarray(wide ? 12 : 10, start));
  const type = head.match(/'descr': '([^']+)'/)?.[1], shape = [...head.match(/'shape': \(([^)]*)\)/)[1].matchAll(/\d+/g)].map(Number);
  const kinds = { "|u1": Uint8Array, "|i1": Int8Array, "<i2": Int16Array, "<u2": Uint16Array, "<i4": Int32Array, "<f4": Float32Array, "<f8": Float64Array };
  if (!kinds[type] || /'fortran_order': True/.test(head)) throw new Error(`has numbers of the type ${type}: save it as float32 in the order of C`);
  const values = new kinds[type](bytes.slice(start).buffer, 0, product(shape));
  return { values: type === "|u1" ? values : Float32Array.from(values), shape, rate: null };
}

function number(field) { // words that pandas takes as missing, too; any other text is an error
  if (["", "na", "n/a", "nan", "null", "none", "?"].includes(field.toLowerCase())) return NaN;
  if (Number.isNaN(Number(field))) throw new Error(`has ${JSON.stringify(field)} where a number is expected`);
  return Number(field);
}

// A column is a channel, a row a moment; for one channel, rows of several numbers are examples.
function readCsv(bytes, input) {
  let rows = new TextDecoder().decode(bytes).split(/\r?\n/).filter((line) => line);
  rows = rows.map((line) => line.split(",").map((field) => field.replace(/^[\s"]+|[\s"]+$/g, "")));
  let names = [], wanted = input.channel_names;
  try {
    rows[0].map(number);
  } catch {
    [names, ...rows] = rows;
  }
  const numbers = rows.map((row) => row.map(number)), count = numbers[0]?.length;
  if (!count || numbers.some((row) => row.length !== count)) throw new Error("has rows of different lengths or none");
  const column = (i) => numbers.map((row) => row[i]), isTime = (name) => /^(time.*|t)$/i.test(name ?? "");
  names.forEach((name, i) => {
    if (!isTime(name) || !input.rate || numbers.length < 2) return;
    const t = column(i), step = (t[t.length - 1] - t[0]) / (t.length - 1);
    const even = t.every((v, k) => Math.abs(v - t[0] - step * k) <= step / 4), ratio = step * input.rate;
    if (!(even && 0.99 < ratio && ratio < 1.01))
      throw new Error(`has times ${step} s apart, expected ${1 / input.rate} s everywhere: resample the recording`);
  });
  let columns = Array.from({ length: count }, (_, i) => i).filter((i) => !isTime(names[i]));
  const fault = `has the columns ${names.slice(0, 9).join(", ")}, expected ${wanted.join(", ") || input.channels}`;
  const check = (fits) => { if (!fits) throw new Error(fault); };
  if (names.length && wanted.length) { // in any order and among others
    check(wanted.every((name) => names.filter((other) => other === name).length === 1));
    columns = wanted.map((name) => names.indexOf(name));
  } else if (input.many && (columns.length > 1 || numbers.length === 1)) {
    check(!names.length || columns.every((i) => /\d$/.test(names[i])));
    return numbers.map((row) => ({ values: Float32Array.from(columns, (i) => row[i]), shape: [1, columns.length], rate: null }));
  }
  check(!names.length || wanted.length || input.mixed || (columns.length === input.channels && !input.chosen.length));
  return [{ values: Float32Array.from(columns.map(column).flat()), shape: [columns.length, numbers.length], rate: null }];
}

async function readPicture(bytes) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "default" };
  const picture = await createImageBitmap(new Blob([bytes]), options);
  const { width, height } = picture, context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // behind what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, width, height), values = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) values.set(data.subarray(4 * i, 4 * i + 3), 3 * i);
  return { values, shape: [height, width, 3], rate: null };
}
