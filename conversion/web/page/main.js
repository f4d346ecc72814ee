// What the page shows, and when it asks the engine.

import { Engine } from "./client.js";
import { announce, element, listNames, make, markSample, offerNames, offerSamples, offerSizes, percent } from "./controls.js";
import { shareAlike, showLegend, showNamed, showNames, showPoint, showProgress, showTime } from "./controls.js";
import { fit, paintColors, paintCosines, paintCursor, paintLight, paintMasks } from "./drawing.js";
import { readPicture } from "./picture.js";
import { followCursor, takePictures } from "./stage.js";

const STAGE_PIXELS = 900; // of the canvas, on its longer side
const MAP_PIXELS = 448;

const base = new URL(".", location.href).href;
const page = document.documentElement;
const state = {
  site: null,
  titles: {}, // of spaces, by name
  picture: null, // as of readPicture
  size: 0,
  windows: false,
  seen: null, // the engine's answer about the picture
  view: "colors",
  cursor: null, // {row, col} of the backbone's patches
  maps: null, // cosines by space, as of the cursor
  patchNames: null, // as of the cursor
  named: null, // the engine's answer about the name that is shown on the picture
  words: [],
  masks: null,
  working: 0, // questions that are not answered yet
};
const canvases = new Map(); // of the spaces, by name

const engine = new Engine((progress) => {
  const text = showProgress(progress);
  if (page.dataset.state === "ready") element("words-note").textContent = progress.done < progress.total ? text : "";
});

function fail(error) {
  if (page.dataset.state === "ready") {
    element("notice").textContent = error.message;
    return;
  }
  page.dataset.state = "unable";
  element("trouble-text").textContent = `${error.message} Loading the page again may help.`;
}

/** Do something that takes a while, and show that. */
async function busily(work) {
  state.working++;
  page.toggleAttribute("data-busy", true);
  element("notice").textContent = "";
  try {
    await work();
  } catch (error) {
    fail(error);
  } finally {
    page.toggleAttribute("data-busy", --state.working > 0);
  }
}

function draw() {
  const stage = element("picture");
  const { seen, cursor, maps, masks, named, picture } = state;
  fit(stage, picture, STAGE_PIXELS);
  stage.getContext("2d", { willReadFrequently: true }).drawImage(picture.canvas, 0, 0, stage.width, stage.height);
  if (masks) {
    const threshold = Number(element("threshold").value);
    element("threshold-value").textContent = percent(threshold);
    const isOut = masks.unlikely.map((isUnlikely) => isUnlikely && element("denoising").checked);
    const maps = masks.maps.map((map, i) => (isOut[i] ? new Float32Array(map.length) : map));
    showLegend(state.words, paintMasks(stage, maps, masks.rows, masks.cols, threshold), isOut);
  }
  if (named) paintLight(stage, named.map, named.rows, named.cols);
  const sentence = showNamed(named);
  if (cursor) paintCursor(stage, cursor.row, cursor.col, seen.rows, seen.cols);
  element("found").hidden = !masks;
  element("clear").hidden = !cursor;
  showPoint(maps, state.titles, state.patchNames);
  drawMaps();
  return sentence;
}

function drawMaps() {
  const { seen, maps, picture } = state;
  const isAlike = state.view === "alike" && maps !== null;
  document.querySelector(`[name="view"][value="${state.view}"]`).checked = true;
  element("scale").hidden = !isAlike;
  element("spaces-note").textContent =
    state.view === "alike" && !maps
      ? "Click a point first: the map then shows how similar each patch is to it."
      : isAlike
        ? "Light patches are similar to the one in the frame."
        : `Patches with similar features have similar colors: three principal components as red, green and blue.${seen.spaces.length > 1 ? " Each map has its own colors." : ""}`;
  seen.spaces.forEach((space, i) => {
    const canvas = canvases.get(space.name);
    fit(canvas, picture, MAP_PIXELS);
    if (isAlike) {
      const { cosines, rows, cols, row, col } = maps[i];
      paintCosines(canvas, cosines, rows, cols);
      paintCursor(canvas, row, col, rows, cols);
      canvas.setAttribute("aria-label", `${state.titles[space.name]}: ${percent(shareAlike(cosines))} of the picture is similar.`);
    } else {
      paintColors(canvas, space.colors, space.rows, space.cols);
      canvas.setAttribute("aria-label", `${state.titles[space.name]}: principal components as colors, ${space.cols} by ${space.rows} patches.`);
    }
  });
}

/** Run the model on the picture as the controls say, then what was asked of it before. */
async function see() {
  const { rgba, height, width } = state.picture;
  state.seen = await engine.ask("see", { rgba, height, width, size: state.size, windows: state.windows });
  const { cursor, seen } = state;
  showTime(seen);
  if (seen.names) showNames(seen.names, state.site.names.patches && toggleName);
  if (state.named) state.named = await engine.ask("name", { name: state.named.name });
  if (cursor) {
    state.cursor = { row: Math.min(cursor.row, seen.rows - 1), col: Math.min(cursor.col, seen.cols - 1) };
    await compare();
  }
  if (state.words.length) state.masks = await engine.ask("words", { words: state.words });
  draw();
  const named = seen.names ? ` Names: ${listNames(seen.names)}.` : "";
  announce(`The model has seen the picture: ${seen.cols} by ${seen.rows} patches in ${Math.round(seen.milliseconds)} milliseconds.${named}`);
}

async function compare() {
  const { cursor, seen } = state;
  state.maps = await engine.ask("alike", { x: (cursor.col + 0.5) / seen.cols, y: (cursor.row + 0.5) / seen.rows });
  if (state.site.names?.patches) state.patchNames = await engine.ask("patch", cursor);
}

const toggleName = (name) => busily(() => showName(name === state.named?.name ? null : name));

/** Show where a name is seen; null takes it away. */
async function showName(name) {
  const { labels } = state.site.names;
  if (name !== null && !labels.includes(name)) throw new Error(`"${name}" is not one of the ${labels.length} names of the list.`);
  state.named = name === null ? null : await engine.ask("name", { name });
  Object.assign(state, { words: [], masks: null });
  announce(draw() || "No name.");
  element("frame").scrollIntoView({ block: "nearest" }); // on a phone the picture is far above
}

async function moveCursor(cursor) {
  const wasShown = state.cursor !== null;
  Object.assign(state, { cursor, maps: null, patchNames: null });
  if (cursor) {
    await compare();
    if (!wasShown) state.view = "alike";
    const shares = state.maps.map(({ name, cosines }) => `${state.titles[name]} ${percent(shareAlike(cosines))}`);
    const names = state.patchNames ? ` Names of this patch alone: ${listNames(state.patchNames)}.` : "";
    announce(`Row ${cursor.row + 1}, column ${cursor.col + 1}. Similar: ${shares.join(", ")}.${names}`);
  } else {
    state.view = "colors";
    announce("No cursor.");
  }
  draw();
}

async function findWords() {
  const words = element("words").value.split(",").map((word) => word.trim()).filter(Boolean);
  state.words = [...new Set(words)];
  state.masks = state.words.length ? await engine.ask("words", { words: state.words }) : null;
  if (state.masks) state.named = null;
  element("words-note").textContent = "";
  draw();
  element("frame").scrollIntoView({ block: "nearest" }); // on a phone the masks are far above
  if (state.masks) announce(`Found: ${[...element("legend").children].map((item) => item.textContent).join(", ")}.`);
}

async function show(blob, title, sample = null) {
  const picture = await readPicture(blob);
  Object.assign(state, { picture, cursor: null, maps: null, masks: null, named: null, view: "colors" });
  markSample(state.site, sample);
  element("picture").setAttribute("aria-label", title);
  await see();
}

async function showSample(sample) {
  const response = await fetch(new URL(sample.file, base));
  await show(await response.blob(), sample.title, sample);
}

/** Write what the model is, and make the maps' places. */
function describe({ site, backend, threads, precision, bytes }) {
  const runs = backend === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;
  element("backend").textContent = `${runs} · ${precision} · ${(bytes / 1e6).toFixed(1)} MB`;
  element("backend").hidden = false;
  element("model-name").textContent = site.title;
  for (const id of ["words-form", "no-words"]) element(id).hidden = Boolean(site.texts) === (id === "no-words");
  if (site.texts) element("words-note").textContent = `The first search loads ${(site.texts.bytes / 1e6).toFixed(1)} MB more.`;
  element("names-card").hidden = !site.names;
  element("name-form").hidden = !site.names?.patches;
  if (site.names) {
    element("names-help").textContent = `The most probable of ${site.names.labels.length} names. One always comes first, even if none fits.${site.names.patches ? " Choose one to see where the model sees it." : ""}`;
    offerNames(site.names.labels);
  }
  const [model, runtime] = [bytes, site.runtime[backend].bytes].map((each) => (each / 1e6).toFixed(1));
  element("loaded").textContent = `Loaded: the model, ${model} MB, and the runtime, ${runtime} MB. `;
  element("windows-row").hidden = !site.window;
  if (site.window) {
    const { size, windowed_blocks: windowed, blocks } = site.window;
    element("windows-title").textContent = `Windows of ${size} × ${size} patches`;
    element("windows-help").textContent = `${windowed} of ${blocks} layers then look at patches nearby only.`;
  }
  for (const { name, title, width } of site.spaces) {
    state.titles[name] = title;
    const canvas = make("canvas");
    canvas.setAttribute("role", "img");
    canvases.set(name, canvas);
    followCursor(canvas, () => state.seen && { ...state.seen, cursor: state.cursor }, (cursor) => busily(() => moveCursor(cursor)));
    const caption = make("figcaption", {}, title, make("span", { className: "quiet" }, `${width} numbers for each patch`));
    element("maps").append(make("figure", { dataset: { space: name } }, canvas, caption));
  }
}

function listen() {
  const { site } = state;
  offerSizes(site, (size) => busily(() => ((state.size = size), see())));
  offerSamples(site, base, (sample) => busily(() => showSample(sample)));
  const open = (file) => busily(() => show(file, file.name || "Your picture"));
  takePictures(open);
  element("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) open(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  });
  element("windows").addEventListener("change", ({ target }) => busily(() => ((state.windows = target.checked), see())));
  const getGrid = () => state.seen && { ...state.seen, cursor: state.cursor };
  followCursor(element("picture"), getGrid, (cursor) => busily(() => moveCursor(cursor)));
  element("clear").addEventListener("click", () => busily(() => moveCursor(null)));
  element("views").addEventListener("change", ({ target }) => ((state.view = target.value), drawMaps()));
  element("words-form").addEventListener("submit", (event) => (event.preventDefault(), busily(findWords)));
  element("name-form").addEventListener("submit", (event) => (event.preventDefault(), busily(() => showName(element("name").value.trim() || null))));
  element("unname").addEventListener("click", () => ((element("name").value = ""), busily(() => showName(null))));
  element("threshold").addEventListener("input", draw);
  element("denoising").addEventListener("change", draw);
  element("forget").addEventListener("click", () => ((element("words").value = ""), busily(findWords)));
}

async function main() {
  const wanted = new URLSearchParams(location.search).get("backend");
  const opened = await engine.ask("open", { address: base, backend: wanted });
  Object.assign(state, { site: opened.site, size: opened.site.default_size });
  describe(opened);
  listen();
  element("loading-text").textContent = "Looking at the first picture …";
  await showSample(opened.site.samples[0]);
  page.dataset.state = "ready";
}

if (page.dataset.state !== "unable") main().catch(fail);
