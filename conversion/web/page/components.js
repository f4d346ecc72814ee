// Principal components of a map of features as colors, as figures/features.py draws them.

const NUM_VECTORS = 8; // three are wanted; more make the iteration converge faster
const NUM_STEPS = 16; // our choice: colors have long stopped to change
const NUM_SWEEPS = 12; // of Jacobi rotations over a matrix of that many rows; a few suffice
const PERCENTILE = 0.02; // of the patches at each end of a component's range, so that outliers do not wash it out

function meanOf(features, count, width) {
  const mean = new Float64Array(width);
  for (let i = 0; i < count; i++) for (let j = 0; j < width; j++) mean[j] += features[i * width + j];
  return mean.map((sum) => sum / count);
}

/** Make vectors orthonormal, one after the other (modified Gram-Schmidt). */
function orthonormalize(vectors) {
  for (let k = 0; k < vectors.length; k++) {
    for (let l = 0; l < k; l++) subtract(vectors[k], vectors[l], dot(vectors[k], vectors[l]));
    const norm = Math.sqrt(dot(vectors[k], vectors[k]));
    if (norm > 1e-12) for (let j = 0; j < vectors[k].length; j++) vectors[k][j] /= norm;
    else vectors[k].fill(0);
  }
}

function dot(a, b) {
  let sum = 0;
  for (let j = 0; j < a.length; j++) sum += a[j] * b[j];
  return sum;
}

function subtract(a, b, factor) {
  for (let j = 0; j < a.length; j++) a[j] -= factor * b[j];
}

/** Multiply vectors by the (unscaled) covariance of centered rows. */
function timesCovariance(centered, count, width, vectors) {
  const products = vectors.map(() => new Float64Array(width));
  for (let i = 0; i < count; i++) {
    const row = centered.subarray(i * width, (i + 1) * width);
    for (let k = 0; k < vectors.length; k++) {
      const share = dot(row, vectors[k]);
      const product = products[k];
      for (let j = 0; j < width; j++) product[j] += share * row[j];
    }
  }
  return products;
}

/**
 * Turn orthonormal vectors within the space that they span until their products with the covariance have no others' part
 * (Rayleigh-Ritz, by Jacobi rotations). Returns the variance along each.
 */
function rotateToPrincipal(vectors, products) {
  const matrix = vectors.map((vector) => products.map((product) => dot(vector, product)));
  const turn = (a, b, cosine, sine) => {
    for (let j = 0; j < a.length; j++) [a[j], b[j]] = [cosine * a[j] - sine * b[j], sine * a[j] + cosine * b[j]];
  };
  for (let sweep = 0; sweep < NUM_SWEEPS; sweep++) {
    for (let k = 0; k < vectors.length; k++) {
      for (let l = k + 1; l < vectors.length; l++) {
        const angle = 0.5 * Math.atan2(2 * matrix[k][l], matrix[l][l] - matrix[k][k]);
        const [cosine, sine] = [Math.cos(angle), Math.sin(angle)];
        turn(matrix[k], matrix[l], cosine, sine);
        for (const row of matrix) [row[k], row[l]] = [cosine * row[k] - sine * row[l], sine * row[k] + cosine * row[l]];
        turn(vectors[k], vectors[l], cosine, sine);
      }
    }
  }
  return matrix.map((row, k) => row[k]);
}

/**
 * The first principal directions of features, by subspace iteration.
 *
 * Returns for each of `wanted` its projections, one for each patch; the sign is such that the direction's largest entry
 * is positive.
 */
export function principalComponents(features, count, width, wanted = 3) {
  const mean = meanOf(features, count, width);
  const centered = Float32Array.from(features, (value, i) => value - mean[i % width]);
  const number = Math.min(NUM_VECTORS, width, Math.max(count - 1, wanted));
  // Rows of the map to begin with: they lie in the space that is searched. Deterministic, so that colors are.
  let vectors = Array.from({ length: number }, (_, k) => {
    const row = Math.floor(((k + 0.5) * count) / number);
    return Float64Array.from({ length: width }, (_, j) => centered[row * width + j] + 1e-4 * Math.sin(j * (k + 1) + 1));
  });
  orthonormalize(vectors);
  for (let step = 0; step < NUM_STEPS; step++) {
    vectors = timesCovariance(centered, count, width, vectors);
    orthonormalize(vectors);
  }
  const variances = rotateToPrincipal(vectors, timesCovariance(centered, count, width, vectors));
  const order = variances.map((_, k) => k).sort((a, b) => variances[b] - variances[a]);
  return order.slice(0, wanted).map((k) => {
    const direction = vectors[k];
    const sign = Math.sign(direction.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0)) || 1;
    return Float32Array.from({ length: count }, (_, i) => {
      return sign * dot(centered.subarray(i * width, (i + 1) * width), direction);
    });
  });
}

/** Value below which a share of sorted values lies, interpolated linearly. */
function quantile(sorted, share) {
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}

/** Colors of a map, RGBA bytes for each patch. */
export function componentColors(features, count, width) {
  const colors = new Uint8ClampedArray(4 * count).fill(255);
  principalComponents(features, count, width).forEach((values, channel) => {
    const sorted = Float32Array.from(values).sort();
    const low = quantile(sorted, PERCENTILE);
    const span = Math.max(quantile(sorted, 1 - PERCENTILE) - low, 1e-12);
    for (let i = 0; i < count; i++) colors[4 * i + channel] = (255 * (values[i] - low)) / span;
  });
  return colors;
}
