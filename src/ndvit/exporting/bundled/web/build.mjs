// Writes predict.html, one file with the page, the model and ONNX Runtime, which works offline when it is opened.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";

const dist = "node_modules/onnxruntime-web/dist";
const files = {
  "predict.js": "predict.js",
  "ort.mjs": `${dist}/ort.wasm.bundle.min.mjs`,
  "ort.wasm": `${dist}/ort-wasm-simd-threaded.wasm`,
  "model.onnx": "../model.onnx",
  "model.json": "../model.json",
};
for (const name of readdirSync("../self-test")) files[`self-test/${name}`] = `../self-test/${name}`;
const parts = Object.entries(files).map(([name, path]) => `${JSON.stringify(name)}: "${readFileSync(path).toString("base64")}"`);
const [before, after] = readFileSync("index.html", "utf8").split("<!-- files -->");
writeFileSync("predict.html", `${before}<script>globalThis.FILES = {${parts.join(",\n")}};</script>${after}`);
