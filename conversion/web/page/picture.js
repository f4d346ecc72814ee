// Pictures from files, the clipboard or this site, as RGBA bytes on white.

const MOST_PIXELS = 2 ** 24; // what every browser's canvas holds; larger pictures are reduced first

/** Decode a picture, upright as its camera says and in its own colors; transparency lies on white. */
export async function readPicture(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error("This file is no picture that the browser can open. JPEG, PNG and WebP work everywhere.");
  }
  const factor = Math.min(1, Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(Math.floor(bitmap.width * factor), 1);
  canvas.height = Math.max(Math.floor(bitmap.height * factor), 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return { canvas, rgba: data, height: canvas.height, width: canvas.width };
}

/** The first picture among dropped or pasted things, or null. */
export function pictureIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}
