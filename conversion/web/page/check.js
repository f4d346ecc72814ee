"use strict";
// A classic script: it also runs where modules do not, and says why the page cannot work there.
(() => {
  const simd = new Uint8Array([
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
  ]); // one function of one vector: what the runtime is compiled to
  const missing = () => {
    if (location.protocol === "file:") {
      return "It was opened as a file, which browsers give no scripts. Serve the folder: run “python -m http.server” in it and open http://localhost:8000.";
    }
    if (!("noModule" in HTMLScriptElement.prototype)) return "This browser knows no JavaScript modules. Any one from 2023 on does.";
    if (typeof WebAssembly !== "object" || !WebAssembly.validate(simd)) {
      return "This browser has no WebAssembly with SIMD, which the model runs in. It may be switched off; any browser from 2023 on has it.";
    }
    if (typeof Worker !== "function" || typeof createImageBitmap !== "function") {
      return "This browser has no background workers or cannot decode pictures in scripts. Any one from 2023 on can.";
    }
    return "";
  };
  const reason = missing();
  if (reason) {
    document.documentElement.dataset.state = "unable";
    document.addEventListener("DOMContentLoaded", () => {
      document.getElementById("trouble-text").textContent = reason;
    });
  }
})();
