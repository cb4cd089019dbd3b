// The query's image: chosen, dropped or pasted, and the region of it that is searched by.

import { byId } from "./dom.js";

const SMALLEST_DRAG = 4; // pixels on the screen; less is a click, and a click is no region
const FIELDS = ["x", "y", "width", "height"];

// `changed({ file, region })` is called for each new image and each new region.
export function watchImage(changed) {
  const [stage, shown, frame] = ["stage", "query-image", "frame"].map(byId);
  const fields = FIELDS.map((name) => byId("region").querySelector(`[name=${name}]`));
  let file = null;
  let region = null;
  let url = null;

  function show(next) {
    if (next.file !== file) {
      if (url) URL.revokeObjectURL(url);
      url = next.file ? URL.createObjectURL(next.file) : null;
      if (url) shown.src = url;
      else shown.removeAttribute("src");
      byId("region").disabled = true; // until its size is known
      byId("picture-title").textContent = next.file?.name || "Image";
      shown.alt = `The query's image${next.file?.name ? `: ${next.file.name}` : ""}`;
    }
    ({ file, region } = next);
    byId("picture").hidden = !file;
    drawRegion();
  }

  function drawRegion() {
    frame.hidden = !region;
    byId("whole").hidden = !region;
    const { naturalWidth: width, naturalHeight: height } = shown;
    if (region && width) {
      const [x, y, w, h] = region;
      const parts = { left: x / width, top: y / height, width: w / width, height: h / height };
      for (const [name, part] of Object.entries(parts)) frame.style[name] = `${100 * part}%`;
    }
    fields.forEach((field, i) => {
      field.value = region ? region[i] : ["0", "0", width || "", height || ""][i];
    });
  }

  function setRegion(next) {
    if (String(next) === String(region)) return drawRegion();
    region = next;
    drawRegion();
    return changed({ file, region });
  }

  shown.addEventListener("load", () => {
    byId("region").disabled = false;
    byId("picture-help").textContent =
      `${shown.naturalWidth} × ${shown.naturalHeight}. Drag over the image to search by a part of it.`;
    drawRegion();
  });
  shown.addEventListener("error", () => {
    byId("picture-help").textContent =
      "This browser cannot show the image; the server may still read it.";
  });

  watchDrag(stage, shown, {
    draw: (drawn) => {
      region = drawn;
      drawRegion();
    },
    end: (drawn) => changed({ file, region: drawn }),
    start: () => region,
  });

  for (const field of fields) {
    field.addEventListener("change", () => setRegion(readFields(fields, shown)));
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      setRegion(readFields(fields, shown));
    });
  }
  byId("whole").addEventListener("click", () => {
    setRegion(null);
    stage.scrollIntoView({ block: "nearest" });
    fields[0].focus();
  });
  byId("no-image").addEventListener("click", () => {
    changed({ file: null, region: null });
    byId("text").focus();
  });
  byId("file").addEventListener("change", (event) => {
    const [chosen] = event.target.files;
    event.target.value = ""; // so that the same file can be chosen again
    if (chosen) changed({ file: chosen, region: null });
  });
  watchDrops((dropped) => changed({ file: dropped, region: null }));
  return { show };
}

// Whole pixels inside the image; null where they are all of it.
function readFields(fields, shown) {
  const { naturalWidth: width, naturalHeight: height } = shown;
  const [x, y, w, h] = fields.map((field) => Math.round(Number(field.value)) || 0);
  const left = clamp(x, 0, width - 1);
  const top = clamp(y, 0, height - 1);
  const region = [left, top, clamp(w, 1, width - left), clamp(h, 1, height - top)];
  return region[2] === width && region[3] === height ? null : region;
}

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

function watchDrag(stage, shown, { start, draw, end }) {
  let from = null;
  let before = null;

  const regionTo = (event) => {
    const box = shown.getBoundingClientRect();
    const at = (x, y) => [
      clamp((x - box.left) / box.width, 0, 1) * shown.naturalWidth,
      clamp((y - box.top) / box.height, 0, 1) * shown.naturalHeight,
    ];
    const [[x0, y0], [x1, y1]] = [at(...from), at(event.clientX, event.clientY)];
    const left = Math.floor(Math.min(x0, x1));
    const top = Math.floor(Math.min(y0, y1));
    const [right, bottom] = [Math.ceil(Math.max(x0, x1)), Math.ceil(Math.max(y0, y1))];
    return [left, top, Math.max(right - left, 1), Math.max(bottom - top, 1)];
  };
  const isDrag = (event) =>
    Math.min(Math.abs(event.clientX - from[0]), Math.abs(event.clientY - from[1])) >= SMALLEST_DRAG;

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !shown.naturalWidth) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    from = [event.clientX, event.clientY];
    before = start();
  });
  stage.addEventListener("pointermove", (event) => {
    if (from && isDrag(event)) draw(regionTo(event));
  });
  stage.addEventListener("pointerup", (event) => {
    if (!from) return;
    const drawn = isDrag(event) ? regionTo(event) : null;
    from = null;
    if (drawn) end(drawn);
    else draw(before);
  });
  stage.addEventListener("pointercancel", () => {
    if (from) draw(before);
    from = null;
  });
}

function watchDrops(take) {
  const cover = byId("drop");
  const firstImage = (files) => [...(files ?? [])].find((file) => file.type.startsWith("image/"));
  const bringsFiles = (event) => event.dataTransfer?.types.includes("Files");

  document.addEventListener("dragover", (event) => {
    if (!bringsFiles(event)) return;
    event.preventDefault();
    cover.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) cover.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    if (!bringsFiles(event)) return;
    event.preventDefault(); // else the browser leaves the page for the file
    cover.hidden = true;
    const file = firstImage(event.dataTransfer.files);
    if (file) take(file);
  });
  document.addEventListener("paste", (event) => {
    const file = firstImage(event.clipboardData?.files);
    if (!file) return;
    event.preventDefault();
    take(file);
  });
}
