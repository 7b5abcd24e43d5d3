/**
 * Steps through a recorded trace: pictures drawn by Python, with everything known of their nodes.
 * No framework and no network. The exported page and the notebook widget use this same file.
 *
 * A node is a row of values in the order of FIELDS. A line is a node's number and its state: `s`
 * same, `c` created, `d` erased (deleted), `r` rewired. A picture is SVG; `g.n[data-n]` are its
 * nodes, `[data-a][data-b]` its edges by the names of their ends.
 *
 * @typedef {{name: string, finding: string, chip: string, facts: string,
 *   lines: [number, string][], folded: number, all: number}} Step
 * @typedef {{title: string, meta: [string, string][], steps: Step[], nodes: any[][],
 *   pictures: string[], legend: string}} Trace
 */

const FIELDS = ["name", "op", "text", "shape", "dtype", "stride", "bytes", "alias of", "mutates",
  "users", "layer", "source"];
const [SHAPE, LAYER] = [FIELDS.indexOf("shape"), FIELDS.indexOf("layer")];
const STATES = { s: ["", "unchanged"], c: ["+", "created"], d: ["−", "erased"], r: ["~", "rewired"] };
const PLAY_MS = 1800;
const HINT = "Point at a node, or press Tab to enter the picture and ↑ ↓ to move in it. "
  + "A click, or Enter, ties a node to its line.";
const PAGE = `
  <header><h1></h1><p class="meta"></p></header>
  <nav aria-label="steps"></nav>
  <div class="bar">
    <button type="button" class="prev" aria-label="previous step">◀</button>
    <button type="button" class="play">▶ play</button>
    <button type="button" class="next" aria-label="next step">▶</button>
    <input type="range" class="slider" min="1" aria-label="step">
    <label><input type="checkbox" class="all">every node</label>
    <label><input type="checkbox" class="fit">fit width</label>
    <input type="search" class="search" placeholder="filter: op, name, layer"
      aria-label="filter nodes by op, name or layer">
    <label><input type="checkbox" class="changed">changed only</label>
    <output></output>
  </div>
  <div class="columns">
    <main>
      <div class="finding" aria-live="polite"><h2></h2><p></p></div>
      <div class="picture"></div><div class="legend"></div>
    </main>
    <aside>
      <section class="details"></section><div class="facts"></div>
      <section><h2>Graph</h2><ol class="code"></ol></section>
    </aside>
  </div>`;

/** Make an element. Children that are strings become text, never markup. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
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

/** Everything known of one node. */
function nodeFacts(record, state) {
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
    ...known.flatMap(([field, value]) =>
      [el("dt", {}, field), el("dd", {}, ...show(field, value))]))];
}

/**
 * Draw `trace` into `root`. Every step shown fires `mlalab:step` on `root`, with its index.
 * @param {HTMLElement} root @param {Trace} trace
 * @returns {{go: (index: number) => void}}
 */
export function mount(root, trace) {
  const page = el("div", { class: "mlalab" });
  page.innerHTML = PAGE;
  const part = (selector) => page.querySelector(selector);
  const [prev, play, next] = [".prev", ".play", ".next"].map(part);
  const [slider, all, search, changed] = [".slider", ".all", ".search", ".changed"].map(part);
  const [picture, details, code, aside] = [".picture", ".details", ".code", "aside"].map(part);
  const chips = trace.steps.map(() => el("button", { type: "button", class: "chip" }));
  const settle = [rove(picture, ".n"), rove(code, "li")];
  let index = -1, chosen = null, timer = 0;
  /** @type {Map<string, [number, string]>} lines of the step by node name */
  let lines = new Map();

  const edges = () => picture.querySelectorAll("[data-a]");
  const named = (name) => page.querySelectorAll(`[data-n="${CSS.escape(name)}"]`);
  const mark = (type, names) => {
    page.querySelectorAll(`[data-n].${type}`).forEach((node) => node.classList.remove(type));
    names.forEach((name) => named(name).forEach((node) => node.classList.add(type)));
  };

  /** Show the facts of the node pointed at, or else of the chosen one. */
  function point(name) {
    mark("hot", name ? [name] : []);
    const shown = name ?? chosen;
    edges().forEach((edge) =>
      edge.classList.toggle("hot", [edge.dataset.a, edge.dataset.b].includes(shown)));
    const line = lines.get(shown);
    const layers = shown && part(`.picture [data-n="${CSS.escape(shown)}"] title`);
    details.replaceChildren(...(line ? nodeFacts(trace.nodes[line[0]], line[1])
      : [el("p", { class: "hint" }, layers ? `Layers: ${layers.textContent}` : HINT)]));
  }

  function choose(names) {
    chosen = names.length === 1 ? names[0] : null;
    mark("chosen", names);
    point(null);
    named(names[0]).forEach((node) => node.scrollIntoView({ block: "nearest", inline: "nearest" }));
  }

  function keeps(name, words) {
    const [number, state] = lines.get(name) ?? [-1, "s"];
    const record = trace.nodes[number] ?? [];
    if (changed.checked && state === "s") return false;
    const text = `${name} ${record[1]} ${record[LAYER]}`.toLowerCase();
    return words.every((word) => text.includes(word));
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const dim = (node, ...names) =>
      node.classList.toggle("dim", !names.every((name) => keeps(name, words)));
    picture.querySelectorAll(".n").forEach((node) => dim(node, node.dataset.n));
    edges().forEach((edge) => dim(edge, edge.dataset.a, edge.dataset.b));
    [...code.children].forEach((line) => { line.hidden = !keeps(line.dataset.n, words); });
    const kept = [...lines.keys()].filter((name) => keeps(name, words)).length;
    part("output").value = kept === lines.size ? "" : `${kept} of ${lines.size} nodes`;
    settle.forEach((reset) => reset());
  }

  function draw() {
    const step = trace.steps[index];
    lines = new Map(step.lines.map((line) => [trace.nodes[line[0]][0], line]));
    picture.innerHTML = trace.pictures[all.checked ? step.all : step.folded];
    picture.querySelectorAll(".n").forEach((node) => {
      const state = lines.get(node.dataset.n)?.[1] ?? "s";
      node.setAttribute("role", "button");
      node.setAttribute("aria-label", `${node.dataset.n}, ${STATES[state][1]}`);
    });
    code.replaceChildren(...step.lines.map(([number, state]) => {
      const [name, , text] = trace.nodes[number];
      return el("li", { class: state, "data-n": name }, el("i", {}, STATES[state][0]), text);
    }));
    const first = [".n.c", ".n.r", ".n.d", ".n"].map((kind) => picture.querySelector(kind));
    centre(picture, first.find(Boolean) ?? picture);
    mark("chosen", chosen ? [chosen] : []);
    point(null);
    filter();
  }

  function go(to) {
    const wanted = Math.max(0, Math.min(trace.steps.length - 1, to));
    if (wanted === index) return;
    index = wanted;
    const step = trace.steps[index];
    slider.value = String(index + 1);
    prev.disabled = index === 0;
    next.disabled = index === trace.steps.length - 1;
    chips.forEach((chip, i) => chip.setAttribute("aria-current", i === index ? "step" : "false"));
    part(".finding h2").textContent = `${index + 1} of ${trace.steps.length}: ${step.name}`;
    part(".finding p").textContent = step.finding;
    part(".facts").innerHTML = step.facts;
    aside.scrollTo(0, 0);
    draw();
    root.dispatchEvent(new CustomEvent("mlalab:step", { detail: index }));
  }

  function run(on) {
    clearInterval(timer);
    if (on && next.disabled) go(0);
    timer = on ? setInterval(() => (next.disabled ? run(false) : go(index + 1)), PLAY_MS) : 0;
    play.textContent = on ? "❚❚ pause" : "▶ play";
  }

  function listen() {
    prev.addEventListener("click", () => go(index - 1));
    next.addEventListener("click", () => go(index + 1));
    play.addEventListener("click", () => run(!timer));
    slider.addEventListener("input", () => go(Number(slider.value) - 1));
    chips.forEach((chip, i) => chip.addEventListener("click", () => go(i)));
    all.addEventListener("change", draw);
    part(".fit").addEventListener("change", () => picture.classList.toggle("fit"));
    for (const input of [search, changed]) input.addEventListener("input", filter);
    const over = (event) => point(event.target.closest("[data-n]")?.dataset.n ?? null);
    for (const box of [picture, code]) {
      for (const type of ["pointerover", "focusin"]) box.addEventListener(type, over);
      box.addEventListener("pointerleave", () => point(null));
    }
    page.addEventListener("click", (event) => {
      const from = event.target.closest("[data-n], [data-pick], [data-light]")?.dataset;
      if (from) choose((from.n ?? from.pick ?? from.light).split(" "));
    });
    root.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const node = event.target.closest("[data-n]");
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (move && !event.target.matches("input")) go(index + move);
      else if (node && ["Enter", " "].includes(event.key)) choose([node.dataset.n]);
      else return;
      event.preventDefault();
    });
  }

  part("h1").textContent = trace.title;
  part(".meta").append(...trace.meta.map(([key, value]) => el("span", {}, `${key} ${value}`)));
  part(".legend").innerHTML = trace.legend;
  slider.max = String(trace.steps.length);
  chips.forEach((chip, i) => { chip.innerHTML = trace.steps[i].chip; });
  part("nav").append(...chips);
  listen();
  root.append(page);
  go(0);
  return { go };
}
