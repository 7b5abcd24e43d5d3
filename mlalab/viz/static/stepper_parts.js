/**
 * Steps through a recorded trace: pictures drawn by Python, with everything known of their nodes.
 * No framework and no network. The exported page and the notebook widget use these same files,
 * put one after the other: stepper_parts.js, stepper_shade.js, stepper.js.
 *
 * A node is a row of values in the order of FIELDS. A line is a node's number, its state (`s` same,
 * `c` created, `d` erased (deleted), `r` rewired) and its value in each shade. A picture is SVG;
 * `g.n[data-n]` are its nodes, `[data-a][data-b]` its edges by the names of their ends. A panel is
 * a heading, the number of a picture, and the values of the boxes of layers in it. A why is the
 * heading and the picture's number of a pattern that was refused: `g.no` is the node that differs,
 * and its `data-pick` the graph's node. `folded` and
 * `all` each hold the panels of the overlay and those that stand side by side; `all` is null for
 * graphs too large to draw whole. A shade is a name, the label of one node's value, a unit, and
 * the bounds and names of its levels.
 *
 * @typedef {[string, number, Object<string, number[]>]} Panel
 * @typedef {{name: string, finding: string, cost: string, chip: string, facts: string,
 *   whys: [string, number][], retraced: boolean, lines: any[][], folded: Panel[][], all: Panel[][] | null}} Step
 * @typedef {[string, string, string, number[], string[]]} Shade
 * @typedef {{title: string, meta: [string, string][], steps: Step[], nodes: any[][],
 *   pictures: string[], legend: string, shades: Shade[]}} Trace
 */

const FIELDS = ["name", "op", "text", "shape", "dtype", "stride", "bytes", "alias of", "mutates",
  "users", "layer", "source"];
const [SHAPE, LAYER] = [FIELDS.indexOf("shape"), FIELDS.indexOf("layer")];
const STATES = { s: ["", "unchanged"], c: ["+", "created"], d: ["−", "erased"], r: ["~", "rewired"] };
const PLAY_MS = 1800;
const CHUNK = 100;
const HINT = "← → step. Point at a node, or press Tab to enter the picture and ↑ ↓ to move in it. "
  + "A click, or Enter, ties a node to its line.";
const PAGE = `
  <div class="frame" tabindex="-1">
    <header><h1></h1><p class="meta"></p></header>
    <nav aria-label="steps"></nav>
    <div class="bar">
      <button type="button" class="prev" aria-label="previous step">◀</button>
      <button type="button" class="play">▶ play</button>
      <button type="button" class="next" aria-label="next step">▶</button>
      <input type="range" class="slider" min="1" aria-label="step">
      <label><input type="checkbox" class="side">side by side</label>
      <label><input type="checkbox" class="all">every node</label>
      <label><input type="checkbox" class="whys" checked>pattern</label>
      <label><input type="checkbox" class="fit">fit width</label>
      <label>shade <select class="shade"><option value="">none</option></select></label>
      <input type="search" class="search" placeholder="filter nodes"
        aria-label="filter nodes by op, name or layer">
      <label><input type="checkbox" class="changed">changed only</label>
      <output></output>
    </div>
    <div class="columns">
      <main>
        <div class="finding" aria-live="polite"><h2></h2><p></p><p class="cost"></p></div>
        <div class="picture"></div><div class="legend"><div></div><ul class="scale"></ul></div>
      </main>
      <aside>
        <section class="details"></section><div class="facts"></div>
        <section><h2>Graph</h2><div class="code"></div></section>
      </aside>
    </div>
  </div>`;

/** The data of a trace from the bytes that Python packed it into. */
async function unpack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

/** Make an element. Children that are strings become text, never markup. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** The lines of a graph in parts: those out of sight are not laid out, or 61 layers take long. */
function inChunks(lines) {
  const parts = Math.ceil(lines.length / CHUNK);
  return Array.from({ length: parts }, (_, i) => lines.slice(i * CHUNK, (i + 1) * CHUNK));
}

/** Make the items of a box one Tab stop; up and down move in it. Call the result on new items. */
function rove(box, selector) {
  const items = () =>
    [...box.querySelectorAll(selector)].filter((item) => !item.matches("[hidden], .dim"));
  box.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const all = items();
    const at = all.indexOf(event.target.closest(selector));
    if (!move || at < 0) return;
    all[Math.max(0, Math.min(all.length - 1, at + move))].focus();
    event.preventDefault();
  });
  box.addEventListener("focusin", (event) => {
    box.querySelector(`${selector}[tabindex="0"]`)?.setAttribute("tabindex", "-1");
    event.target.closest(selector)?.setAttribute("tabindex", "0");
  });
  return () => {
    box.querySelectorAll(selector).forEach((item) => item.setAttribute("tabindex", "-1"));
    items()[0]?.setAttribute("tabindex", "0");
  };
}

/** Scroll `box`, and nothing around it, so that `item` is in its middle. */
function centre(box, item) {
  const [a, b] = [box, item].map((node) => node.getBoundingClientRect());
  box.scrollBy(b.x + b.width / 2 - a.x - a.width / 2, b.y + b.height / 2 - a.y - a.height / 2);
}

/**
 * Bring an item into view within its own box: the page or notebook around stays where it is.
 * For some frames, as lines that come into view only now may be higher than was expected.
 */
function reveal(item, frames = 4) {
  const box = item.closest("figure, aside");
  if (!box || !item.getClientRects().length) return;
  const [a, b] = [box, item].map((node) => node.getBoundingClientRect());
  const top = a.y + (box.querySelector(".details")?.offsetHeight ?? 0);
  if (b.y < top || b.bottom > a.bottom || b.x < a.x || b.right > a.right) centre(box, item);
  if (frames) requestAnimationFrame(() => reveal(item, frames - 1));
}

/** Everything known of one node; `values` are pairs of what a shade calls it and what it is. */
function nodeFacts(record, state, values) {
  const show = (field, value) => {
    const names = { "alias of": [value], mutates: value }[field];
    const button = (name) => el("button", { type: "button", "data-pick": name }, name);
    if (names) return names.map(button);
    return [Array.isArray(value) ? `[${value.join(", ")}]` : value.toLocaleString("en")];
  };
  const known = FIELDS.map((field, i) => [field, record[i]]).slice(SHAPE)
    .filter(([field, value]) => value !== null && (field !== "mutates" || value.length));
  const tag = el("span", { class: `tag ${state}` }, STATES[state].join(" "));
  return [el("h3", {}, record[0], tag), el("pre", {}, record[2]), el("dl", {},
    ...[...known, ...values].flatMap(([field, value]) =>
      [el("dt", {}, field), el("dd", {}, ...show(field, value))]))];
}
