// Maps on canvases: colors of patches, cosines, masks of words, the cursor.

// Viridis (https://bids.github.io/colormap/, CC0) at nine places: as light grows, so does the value, also in gray.
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"].map(
  (color) => [1, 3, 5].map((place) => parseInt(color.slice(place, place + 2), 16)),
);

/** Colors of masks, apart for most kinds of color vision (Okabe and Ito, https://jfly.uni-koeln.de/color/). */
export const MASK_COLORS = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442"];

function viridis(value) {
  const place = Math.min(Math.max(value, 0), 1) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return [0, 1, 2].map((channel) => {
    const [low, high] = [VIRIDIS[below][channel], VIRIDIS[below + 1][channel]];
    return low + (place - below) * (high - low);
  });
}

/** Make a canvas as large as a picture is shown, `longest` pixels on its longer side. */
export function fit(canvas, { height, width }, longest) {
  const scale = longest / Math.max(height, width);
  canvas.height = Math.max(Math.round(height * scale), 1);
  canvas.width = Math.max(Math.round(width * scale), 1);
}

/** Paint RGBA bytes, one color for each patch, over a whole canvas. */
export function paintColors(canvas, colors, rows, cols) {
  const small = new OffscreenCanvas(cols, rows);
  small.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(colors), cols, rows), 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

/** Paint cosines from the lowest (dark) to 1 (light). Returns the lowest. */
export function paintCosines(canvas, cosines, rows, cols) {
  const lowest = cosines.reduce((least, value) => Math.min(least, value), 1);
  const colors = new Uint8ClampedArray(4 * cosines.length);
  cosines.forEach((cosine, i) => colors.set([...viridis((cosine - lowest) / (1 - lowest || 1)), 255], 4 * i));
  paintColors(canvas, colors, rows, cols);
  return lowest;
}

/** Value of a map between its patches' centers, bilinearly. */
function between(map, rows, cols, y, x) {
  const [row, col] = [Math.min(Math.max(y, 0), rows - 1), Math.min(Math.max(x, 0), cols - 1)];
  const [top, left] = [Math.min(Math.floor(row), Math.max(rows - 2, 0)), Math.min(Math.floor(col), Math.max(cols - 2, 0))];
  const [down, right] = [Math.min(top + 1, rows - 1), Math.min(left + 1, cols - 1)];
  const [v, u] = [row - top, col - left];
  return (
    (1 - v) * ((1 - u) * map[top * cols + left] + u * map[top * cols + right]) +
    v * ((1 - u) * map[down * cols + left] + u * map[down * cols + right])
  );
}

/**
 * Lay masks over a canvas: each pixel shows the word that it is surest of, if it is as sure as `threshold`.
 *
 * Returns the share of the picture that each word has.
 */
export function paintMasks(canvas, maps, rows, cols, threshold, opacity = 0.62) {
  const { height, width } = canvas;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.getImageData(0, 0, width, height);
  const colors = MASK_COLORS.map((color) => [1, 3, 5].map((place) => parseInt(color.slice(place, place + 2), 16)));
  const counts = maps.map(() => 0);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [row, col] = [((y + 0.5) * rows) / height - 0.5, ((x + 0.5) * cols) / width - 0.5];
      const values = maps.map((map) => between(map, rows, cols, row, col));
      const best = values.indexOf(Math.max(...values));
      const i = 4 * (y * width + x);
      if (values[best] >= threshold) {
        counts[best]++;
        const color = colors[best % colors.length];
        for (let c = 0; c < 3; c++) image.data[i + c] = (1 - opacity) * image.data[i + c] + opacity * color[c];
      } else {
        const gray = 0.3 * image.data[i] + 0.59 * image.data[i + 1] + 0.11 * image.data[i + 2];
        for (let c = 0; c < 3; c++) image.data[i + c] = 0.45 * image.data[i + c] + 0.35 * gray + 40;
      }
    }
  }
  context.putImageData(image, 0, 0);
  return counts.map((count) => count / (height * width));
}

const SHADE = 0.2; // of the picture's light that is left where a map is at its mean or below

/** Leave a canvas light where a map is highest, and shade the rest. */
export function paintLight(canvas, map, rows, cols) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.getImageData(0, 0, width, height);
  const mean = map.reduce((sum, value) => sum + value, 0) / map.length;
  const highest = map.reduce((most, value) => Math.max(most, value), -Infinity);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = between(map, rows, cols, ((y + 0.5) * rows) / height - 0.5, ((x + 0.5) * cols) / width - 0.5);
      const light = SHADE + (1 - SHADE) * Math.max((value - mean) / (highest - mean || 1), 0);
      const i = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) image.data[i + c] *= light;
    }
  }
  context.putImageData(image, 0, 0);
}

/** Frame the patch under the cursor: dark outside, light inside, so that it is seen on anything. */
export function paintCursor(canvas, row, col, rows, cols) {
  const context = canvas.getContext("2d");
  const [height, width] = [canvas.height / rows, canvas.width / cols];
  const line = Math.max(canvas.width / 240, 1.5);
  context.lineJoin = "round";
  for (const [color, thickness] of [["rgba(0, 0, 0, 0.85)", 3 * line], ["#fff", 1.4 * line]]) {
    context.strokeStyle = color;
    context.lineWidth = thickness;
    context.strokeRect(col * width, row * height, width, height);
  }
}
