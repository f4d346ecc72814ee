// Cosines of vectors that stand in the rows of a map.

/** Rows made unit vectors. */
export function unitRows(features, count, width) {
  const units = new Float32Array(count * width);
  for (let i = 0; i < count; i++) {
    let square = 0;
    for (let j = i * width; j < (i + 1) * width; j++) square += features[j] * features[j];
    const factor = square > 0 ? 1 / Math.sqrt(square) : 0;
    for (let j = i * width; j < (i + 1) * width; j++) units[j] = features[j] * factor;
  }
  return units;
}

/** Cosine of every row with one vector; both are unit vectors. */
export function cosinesWith(units, count, width, vector) {
  const cosines = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    let sum = 0;
    for (let j = 0; j < width; j++) sum += units[i * width + j] * vector[j];
    cosines[i] = sum;
  }
  return cosines;
}

/** Mean cosine of the rows of two maps, in pairs. */
export function agreement(a, b, count, width) {
  const [first, second] = [unitRows(a, count, width), unitRows(b, count, width)];
  let sum = 0;
  for (let i = 0; i < count * width; i++) sum += first[i] * second[i];
  return sum / count;
}

/** Mean of several unit vectors, as a unit vector. */
export function meanDirection(vectors, width) {
  const mean = new Float32Array(width);
  for (const vector of vectors) for (let j = 0; j < width; j++) mean[j] += vector[j] / vectors.length;
  return unitRows(mean, 1, width);
}
