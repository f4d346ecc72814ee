// What RadioImageProcessor does to a picture, to the bit: its size, antialiased bicubic resizing of bytes, pixels in [0, 1].

const INT16_RANGE = 1 << 15; // weights are whole numbers below it, as in PyTorch and Pillow-SIMD
const MOST_PRECISE = 22; // bits after the point that a weight has at most there

/** Python's round(): of two integers as near, the even one. */
function roundHalfEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

/**
 * Height and width that a picture is resized to: its longest side is `longest` pixels, the other keeps the aspect ratio
 * up to rounding to multiples of `step`.
 */
export function outputSize(height, width, longest, step) {
  const scale = longest / Math.max(height, width);
  const limit = Math.floor(longest / step) * step;
  const side = (pixels) => Math.min(Math.max(roundHalfEven((pixels * scale) / step), 1) * step, limit);
  return { height: side(height), width: side(width) };
}

/** Keys' cubic kernel with a = -0.5, as PyTorch's and Pillow's antialiased bicubic filters. */
function cubic(x) {
  const a = -0.5;
  const t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  if (t < 2) return (((t - 5) * t + 8) * t - 4) * a;
  return 0;
}

/** For each place of the output: where its inputs begin, and their weights as whole numbers with `precision` bits. */
function integerWeights(inputSize, outputSize_) {
  const scale = inputSize / outputSize_;
  const support = scale >= 1 ? 2 * scale : 2;
  const inverse = scale >= 1 ? 1 / scale : 1;
  const rows = [];
  let largest = 0;
  for (let i = 0; i < outputSize_; i++) {
    const center = scale * (i + 0.5);
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const count = Math.min(Math.trunc(center + support + 0.5), inputSize) - start;
    const weights = Array.from({ length: count }, (_, j) => cubic((j + start - center + 0.5) * inverse));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const shares = weights.map((weight) => (total !== 0 ? weight / total : weight));
    largest = Math.max(largest, ...shares);
    rows.push({ start, shares });
  }
  let precision = 0;
  while (precision < MOST_PRECISE && Math.trunc(0.5 + largest * 2 ** (precision + 1)) < INT16_RANGE) precision++;
  const whole = (share) => Math.trunc(share * 2 ** precision + (share < 0 ? -0.5 : 0.5));
  return { precision, rows: rows.map(({ start, shares }) => ({ start, weights: Int32Array.from(shares, whole) })) };
}

/** Resize along the rows: RGB bytes of `height` x `inputWidth` to `height` x `outputWidth`. */
function resizeRows(source, height, inputWidth, outputWidth) {
  if (inputWidth === outputWidth) return source;
  const { precision, rows } = integerWeights(inputWidth, outputWidth);
  const result = new Uint8ClampedArray(height * outputWidth * 3);
  const half = 1 << (precision - 1);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < outputWidth; x++) {
      const { start, weights } = rows[x];
      let red = half, green = half, blue = half;
      let from = (y * inputWidth + start) * 3;
      for (let j = 0; j < weights.length; j++, from += 3) {
        red += weights[j] * source[from];
        green += weights[j] * source[from + 1];
        blue += weights[j] * source[from + 2];
      }
      const to = (y * outputWidth + x) * 3;
      result[to] = red >> precision;
      result[to + 1] = green >> precision;
      result[to + 2] = blue >> precision;
    }
  }
  return result;
}

/** Resize along the columns: RGB bytes of `inputHeight` x `width` to `outputHeight` x `width`. */
function resizeColumns(source, inputHeight, outputHeight, width) {
  if (inputHeight === outputHeight) return source;
  const { precision, rows } = integerWeights(inputHeight, outputHeight);
  const result = new Uint8ClampedArray(outputHeight * width * 3);
  const half = 1 << (precision - 1);
  const sums = new Int32Array(width * 3);
  for (let y = 0; y < outputHeight; y++) {
    const { start, weights } = rows[y];
    sums.fill(half);
    for (let j = 0; j < weights.length; j++) {
      const from = (start + j) * width * 3;
      for (let i = 0; i < sums.length; i++) sums[i] += weights[j] * source[from + i];
    }
    for (let i = 0; i < sums.length; i++) result[y * width * 3 + i] = sums[i] >> precision;
  }
  return result;
}

/** Resize RGB bytes, first along rows, then along columns, rounded after each, as PyTorch does. */
export function resize(bytes, from, to) {
  const narrow = resizeRows(bytes, from.height, from.width, to.width);
  return resizeColumns(narrow, from.height, to.height, to.width);
}

/** RGB bytes to the model's input, channels first, in [0, 1]; computed in float32 as the processor does. */
export function toPixelValues(bytes, { height, width }) {
  const values = new Float32Array(3 * height * width);
  const factor = Math.fround(1 / 255);
  for (let i = 0; i < height * width; i++) {
    for (let channel = 0; channel < 3; channel++) values[channel * height * width + i] = bytes[3 * i + channel] * factor;
  }
  return values;
}

/** RGBA of a canvas to RGB; the picture lies on white already. */
export function withoutAlpha(rgba) {
  const rgb = new Uint8ClampedArray((rgba.length / 4) * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4, j += 3) {
    rgb[j] = rgba[i];
    rgb[j + 1] = rgba[i + 1];
    rgb[j + 2] = rgba[i + 2];
  }
  return rgb;
}
