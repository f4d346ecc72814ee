// The picture under the cursor: pointer and keys to a patch, dropped and pasted pictures.

import { pictureIn } from "./picture.js";

const KEYS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const STRIDE = 4; // patches that Shift and an arrow key move by

/**
 * Let pointer and keys move a cursor over a canvas.
 *
 * `getState` returns {rows, cols, cursor}, or null while there is no map; `onMove` is told {row, col}, or null.
 */
export function followCursor(canvas, getState, onMove) {
  canvas.addEventListener("click", (event) => {
    const state = getState();
    if (!state) return;
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const within = (place, extent, count) => Math.min(Math.max(Math.floor((place / extent) * count), 0), count - 1);
    onMove({ row: within(event.clientY - top, height, state.rows), col: within(event.clientX - left, width, state.cols) });
  });
  canvas.addEventListener("keydown", (event) => {
    const state = getState();
    if (!state) return;
    if (event.key === "Escape") return onMove(null);
    const step = KEYS[event.key];
    if (!step) return;
    event.preventDefault();
    const { row, col } = state.cursor ?? { row: Math.floor(state.rows / 2), col: Math.floor(state.cols / 2) };
    const stride = state.cursor ? (event.shiftKey ? STRIDE : 1) : 0; // the first key shows where it is
    const inside = (place, count) => Math.min(Math.max(place, 0), count - 1);
    onMove({ row: inside(row + stride * step[0], state.rows), col: inside(col + stride * step[1], state.cols) });
  });
}

/** Take pictures that are dropped anywhere or pasted. */
export function takePictures(onPicture) {
  const page = document.documentElement;
  let depth = 0; // dragging enters and leaves every element on the way
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const show = (change) => {
    depth = Math.max(depth + change, 0);
    page.toggleAttribute("data-dragging", depth > 0);
  };
  document.addEventListener("dragenter", (event) => hasFiles(event) && show(1));
  document.addEventListener("dragleave", (event) => hasFiles(event) && show(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    show(-depth);
    const file = pictureIn(event.dataTransfer);
    if (file) onPicture(file);
  });
  document.addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData);
    if (file) onPicture(file);
  });
}
