// The page's side of the worker: one promise for each question.

export class Engine {
  /** `onProgress` is told {stage, done, total} while files load. */
  constructor(onProgress) {
    this.waiting = new Map();
    this.count = 0;
    this.worker = new Worker(new URL("./engine.js", import.meta.url), { type: "module" });
    this.worker.addEventListener("message", ({ data }) => {
      if (data.event === "progress") return onProgress(data);
      const { resolve, reject } = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      return data.error === undefined ? resolve(data.result) : reject(new Error(data.error));
    });
    this.worker.addEventListener("error", (event) => {
      event.preventDefault();
      const error = new Error(event.message || "The worker could not start.");
      for (const { reject } of this.waiting.values()) reject(error);
      this.waiting.clear();
    });
  }

  /** Ask the worker; see `commands` of engine.js. */
  ask(command, given = {}) {
    const id = ++this.count;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, command, ...given });
    });
  }
}
