// Words to vectors, and vectors to the share of certainty with which a patch shows a word.

import { cosinesWith, meanDirection, unitRows } from "./similarity.js";

/** What a word is weighed against in each patch (the relevancy of LERF, https://arxiv.org/abs/2303.09553). */
export const REFERENCES = ["object", "things", "stuff", "texture"];

/** Tokens of prompts as one matrix, padded as the text tower was trained with. */
export function tokenize(tokenizer, prompts, { max_length: maxLength, padding }) {
  const sequences = prompts.map((prompt) => truncate(tokenizer.encode(prompt).ids, maxLength));
  const length = padding.to === "max_length" ? maxLength : Math.max(...sequences.map((ids) => ids.length));
  const tokens = new BigInt64Array(prompts.length * length).fill(BigInt(padding.id));
  sequences.forEach((ids, row) => ids.forEach((id, column) => (tokens[row * length + column] = BigInt(id))));
  return { tokens, dims: [prompts.length, length] };
}

/** The first tokens and the last, which ends the text. */
function truncate(ids, length) {
  return ids.length <= length ? ids : [...ids.slice(0, length - 1), ids[ids.length - 1]];
}

/** One unit vector for each word: the mean of its prompts' unit vectors. */
export function classVectors(embeddings, numWords, numPrompts, width) {
  const units = unitRows(embeddings, numWords * numPrompts, width);
  return Array.from({ length: numWords }, (_, word) => {
    const rows = Array.from({ length: numPrompts }, (_, prompt) => {
      const row = word * numPrompts + prompt;
      return units.subarray(row * width, (row + 1) * width);
    });
    return meanDirection(rows, width);
  });
}

const [PROBABILITY_SCALE, LEAST_PROBABILITY] = [100, 0.5];

/**
 * Which words no patch is sure of (prompt denoising of RADSeg, https://arxiv.org/abs/2511.19704); none where all would be.
 *
 * Beside the others, such a word is less likely than 50 % at every patch. `units` and `words` are unit vectors.
 */
export function findUnlikely(units, count, width, words) {
  const cosines = words.map((word) => cosinesWith(units, count, width, word));
  const best = words.map(() => 0);
  for (let i = 0; i < count; i++) {
    const highest = Math.max(...cosines.map((map) => map[i]));
    const weights = cosines.map((map) => Math.exp(PROBABILITY_SCALE * (map[i] - highest)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    weights.forEach((weight, word) => (best[word] = Math.max(best[word], weight / sum)));
  }
  const isOut = best.map((probability) => probability < LEAST_PROBABILITY);
  return isOut.every(Boolean) ? isOut.fill(false) : isOut;
}

/**
 * How sure each patch is of each word, in [0, 1]: the smallest probability of the word beside one of the references.
 *
 * `units` are the patches as unit vectors, `scale` is what cosines are multiplied by.
 */
export function relevancies(units, count, width, words, references, scale) {
  const highest = new Float32Array(count).fill(-Infinity);
  for (const reference of references) {
    cosinesWith(units, count, width, reference).forEach((cosine, i) => (highest[i] = Math.max(highest[i], cosine)));
  }
  return words.map((word) => {
    return cosinesWith(units, count, width, word).map((cosine, i) => 1 / (1 + Math.exp(scale * (highest[i] - cosine))));
  });
}

/** The names of the classes with the highest logits, and the probability of each among all classes. */
export function bestNames(logits, labels, wanted = 5) {
  const order = labels.map((_, i) => i).sort((a, b) => logits[b] - logits[a]);
  return order.slice(0, wanted).map((i) => ({ name: labels[i], share: probability(logits, i) }));
}

/** Probability of one class among all. */
function probability(logits, index) {
  const highest = logits.reduce((most, value) => Math.max(most, value), -Infinity);
  return Math.exp(logits[index] - highest) / logits.reduce((total, value) => total + Math.exp(value - highest), 0);
}

/**
 * Logits of one class at all patches, as a class activation map has them (https://arxiv.org/abs/1512.04150).
 *
 * `share` is the probability among all classes at `best`, the patch of the highest logit.
 */
export function nameMap(logits, count, numClasses, index) {
  const map = Float32Array.from({ length: count }, (_, i) => logits[i * numClasses + index]);
  const best = map.indexOf(map.reduce((most, value) => Math.max(most, value), -Infinity));
  return { map, best, share: probability(logits.subarray(best * numClasses, (best + 1) * numClasses), index) };
}
