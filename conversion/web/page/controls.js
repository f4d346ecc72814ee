// The controls of the page: what they show, and what they ask for.

import { MASK_COLORS } from "./drawing.js";

export const element = (id) => document.getElementById(id);

/** Make an element; `properties` may have `dataset` and others of the element's own names. */
export function make(tag, properties = {}, ...children) {
  const { dataset, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

export const percent = (share) => (share > 0 && share < 0.005 ? "< 1 %" : `${Math.round(100 * share)} %`);

/** Say something to screen readers; the page shows it anyway. */
export function announce(text) {
  element("announce").textContent = text;
}

/** Offer the site's sizes; `onChoice` is told the pixels of the longest side. */
export function offerSizes(site, onChoice) {
  for (const size of site.sizes) {
    const input = make("input", { type: "radio", name: "size", value: size, checked: size === site.default_size });
    input.addEventListener("change", () => onChoice(size));
    element("sizes").append(make("label", {}, input, make("span", {}, `${size} px`)));
  }
}

/** Offer the site's sample pictures; `onChoice` is told the one that is wanted. */
export function offerSamples(site, base, onChoice) {
  for (const sample of site.samples) {
    const picture = make("img", { src: new URL(sample.file, base).href, alt: "", width: 44, height: 40 });
    const button = make("button", { type: "button", title: sample.title }, picture);
    button.setAttribute("aria-label", `Sample picture: ${sample.title}`);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => onChoice(sample));
    element("samples").append(button);
  }
}

/** Mark which sample is shown, none for a picture of the user's own. */
export function markSample(site, shown) {
  site.samples.forEach((sample, i) => element("samples").children[i].setAttribute("aria-pressed", String(sample === shown)));
}

/** Show how long the model took, and beside windows what they are worth. */
export function showTime({ height, width, rows, cols, milliseconds, comparison }) {
  const took = (value) => `${Math.round(value)} ms`;
  const lines = [`${width} × ${height} pixels, ${cols} × ${rows} patches: `, make("b", {}, took(milliseconds))];
  if (comparison) {
    lines.push(` with windows, ${took(comparison.milliseconds)} without. Features agree to ${comparison.agreement.toFixed(3)}.`);
  }
  element("time").replaceChildren(...lines);
}

/** Show the most probable names of the whole picture; where `onChoice` is given, each is a button that tells it its name. */
export function showNames(names, onChoice) {
  const items = names.map(({ name, share }) => {
    const bar = make("i");
    bar.style.width = `${100 * share}%`;
    const line = [make("span", {}, name), make("b", {}, percent(share)), bar];
    if (!onChoice) return make("li", {}, ...line);
    const button = make("button", { type: "button", dataset: { name } }, ...line);
    button.addEventListener("click", () => onChoice(name));
    return make("li", {}, button);
  });
  element("names").replaceChildren(...items);
}

/** Say where the chosen name is seen, the engine's answer; nothing if it is null. Returns the sentence. */
export function showNamed(named) {
  for (const button of element("names").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.name === named?.name));
  }
  const place = named && `row ${Math.floor(named.best / named.cols) + 1}, column ${(named.best % named.cols) + 1}`;
  const text = named ? `The picture is light where the model sees "${named.name}", most of all in ${place}. For that patch alone, the probability of this name is ${percent(named.share)}.` : "";
  element("named").textContent = text;
  element("unname").hidden = !named;
  return text;
}

/** Offer all names in the field for another one. */
export function offerNames(labels) {
  element("all-names").append(...labels.map((value) => make("option", { value })));
}

/** Show for every space what share of the picture is alike to the cursor's patch, and the patch's own names. */
export function showPoint(maps, titles, names) {
  if (!maps) {
    element("point").replaceChildren("Click a point of the picture or of any map, or move the cursor with the arrow keys.");
    return;
  }
  const { row, col } = maps[0];
  const items = maps.map(({ name, cosines }) => make("li", {}, make("span", {}, titles[name]), make("b", {}, percent(shareAlike(cosines)))));
  element("point").replaceChildren(
    `Row ${row + 1}, column ${col + 1}. Share of the picture that is similar to this patch (cosine in the upper half of its range):`,
    make("ul", {}, ...items),
    ...(names ? [`Names of this patch alone: ${listNames(names)}.`] : []),
  );
}

/** Names with their probabilities, as a sentence has them. */
export const listNames = (names) => names.map(({ name, share }) => `${name} ${percent(share)}`).join(", ");

/** Share of patches in the upper half of a map's range of cosines. */
export function shareAlike(cosines) {
  const lowest = cosines.reduce((least, value) => Math.min(least, value), 1);
  return cosines.reduce((count, cosine) => count + (cosine >= (1 + lowest) / 2), 0) / cosines.length;
}

/** Show the words with their colors and the shares of the picture that they have; some are left out. */
export function showLegend(words, shares, isOut) {
  const items = words.map((word, i) => {
    const swatch = make("i");
    swatch.style.background = MASK_COLORS[i % MASK_COLORS.length];
    return make("li", {}, swatch, make("span", {}, word), make("span", {}, isOut[i] ? "left out" : percent(shares[i])));
  });
  element("legend").replaceChildren(...items);
}

/** Show that files load, or that something is under way. */
export function showProgress({ stage, done, total }) {
  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  const isDownload = total > 1;
  const text = isDownload ? `${stage}: ${megabytes(Math.min(done, total))} of ${megabytes(total)} MB` : `${stage} …`;
  element("loading-text").textContent = text;
  const bar = element("loading-bar");
  if (isDownload) bar.value = Math.min(done / total, 1);
  else bar.removeAttribute("value");
  return text;
}
