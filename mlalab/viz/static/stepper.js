/**
 * Steps through a recorded trace: pictures drawn by Python, with everything known of their nodes.
 * No framework and no network. The exported page and the notebook widget use this same file.
 *
 * A node is a row of values in the order of FIELDS. A line is a node's number and its state: `s`
 * same, `c` created, `d` erased (deleted), `r` rewired. A picture is SVG; `g.n[data-n]` are its
 * nodes, `[data-a][data-b]` its edges by the names of their ends.
 *
 * @typedef {{name: string, alt: string, note: string, chip: string, facts: string,
 *   lines: [number, string][], folded: number, all: number}} Step
 * @typedef {{title: string, meta: [string, string][], steps: Step[], nodes: any[][],
 *   pictures: string[]}} Trace
 */

const FIELDS = ["name", "op", "text", "shape", "dtype", "stride", "bytes", "alias of", "mutates",
  "users", "layer", "source"];
const MARKS = { s: " ", c: "+", d: "−", r: "~" };
const WORDS = { s: "unchanged", c: "created", d: "erased", r: "rewired" };
const PLAY_MS = 1800;
const HINT = "Point at a node, or press Tab to enter the picture and ↑ ↓ to move in it. "
  + "A click, or Enter, ties a node to its line.";

/** Make an element. Children that are strings become text, never markup. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const button = (text, attributes = {}) => el("button", { type: "button", ...attributes }, text);

function checkbox(text) {
  const input = el("input", { type: "checkbox" });
  return { input, label: el("label", {}, input, text) };
}

/**
 * Make the items of a box one Tab stop, in which the up and down keys move.
 * @returns {() => void} to be called when the items have changed
 */
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

/** Everything known of one node. */
function nodeFacts(record, state) {
  const show = (field, value) => {
    if (field === "alias of") return [button(value, { "data-pick": value })];
    if (field === "mutates") return value.map((name) => button(name, { "data-pick": name }));
    if (field === "bytes") return [value.toLocaleString("en")];
    return [Array.isArray(value) ? `[${value.join(", ")}]` : String(value)];
  };
  const known = FIELDS.map((field, i) => [field, record[i]]).slice(3).filter(([field, value]) =>
    value !== null && (field !== "mutates" || value.length));
  return [
    el("h3", {}, record[0], el("span", { class: `tag ${state}` }, `${MARKS[state]} ${WORDS[state]}`)),
    el("pre", {}, record[2]),
    el("dl", {}, ...known.flatMap(([field, value]) =>
      [el("dt", {}, field), el("dd", {}, ...show(field, value))])),
  ];
}

/** The page, empty: every part that `mount` fills or listens to. */
function build(trace) {
  const last = String(trace.steps.length);
  const p = {
    prev: button("◀", { "aria-label": "previous step" }),
    play: button("▶ play", { class: "play" }),
    next: button("▶", { "aria-label": "next step" }),
    slider: el("input", { type: "range", min: "1", max: last, value: "1", "aria-label": "step" }),
    all: checkbox("show every node"),
    changed: checkbox("changed only"),
    search: el("input", { type: "search", placeholder: "filter: op, name, layer",
      "aria-label": "filter nodes by op, name or layer" }),
    count: el("output"),
    chips: trace.steps.map((step) => button("", { class: "chip" })),
    title: el("h2"), live: el("p", { "aria-live": "polite", class: "live" }),
    picture: el("div", { class: "picture" }), details: el("section", { class: "details" }),
    code: el("ol", { class: "code" }), facts: el("div"),
  };
  p.chips.forEach((chip, i) => { chip.innerHTML = trace.steps[i].chip; });
  p.page = el("div", { class: "mlalab" },
    el("header", {}, el("h1", {}, trace.title),
      el("p", { class: "meta" }, ...trace.meta.map(([key, value]) => el("span", {}, `${key} ${value}`)))),
    el("nav", { "aria-label": "steps" }, ...p.chips),
    el("div", { class: "bar" }, p.prev, p.play, p.next, p.slider, p.all.label, p.search,
      p.changed.label, p.count),
    el("div", { class: "columns" },
      el("main", {}, p.title, p.live, p.picture),
      el("aside", {}, p.details, p.facts, el("section", {}, el("h2", {}, "Graph"), p.code))));
  return p;
}

/**
 * Draw `trace` into `root`. Every step shown fires `mlalab:step` on `root`, with its index.
 * @param {HTMLElement} root @param {Trace} trace
 * @returns {{go: (index: number) => void}}
 */
export function mount(root, trace) {
  const p = build(trace);
  const settle = [rove(p.picture, ".n"), rove(p.code, "li")];
  let index = -1, chosen = null, timer = 0;
  /** @type {Map<string, [number, string]>} lines of the step by node name */
  let lines = new Map();

  const edges = () => p.picture.querySelectorAll("[data-a]");
  const named = (name) => root.querySelectorAll(`[data-n="${CSS.escape(name)}"]`);

  function mark(type, names) {
    p.page.querySelectorAll(`[data-n].${type}`).forEach((node) => node.classList.remove(type));
    names.forEach((name) => named(name).forEach((node) => node.classList.add(type)));
  }

  /** Show the facts of the node pointed at, or else of the chosen one. */
  function point(name) {
    mark("hot", name ? [name] : []);
    const shown = name ?? chosen;
    edges().forEach((edge) =>
      edge.classList.toggle("hot", [edge.dataset.a, edge.dataset.b].includes(shown)));
    const line = lines.get(shown);
    const group = shown && p.picture.querySelector(`[data-n="${CSS.escape(shown)}"] title`);
    p.details.replaceChildren(...(line ? nodeFacts(trace.nodes[line[0]], line[1])
      : [el("p", { class: "hint" }, group ? `Layers: ${group.textContent}` : HINT)]));
  }

  function choose(names) {
    chosen = names.length === 1 ? names[0] : null;
    mark("chosen", names);
    point(null);
    named(names[0]).forEach((node) => node.scrollIntoView({ block: "nearest", inline: "nearest" }));
  }

  function keeps(name, words) {
    const [number, state] = lines.get(name) ?? [null, "s"];
    const [node, op, , , , , , , , , layer] = number === null ? [name, ""] : trace.nodes[number];
    const text = `${node} ${op} ${layer ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word)) && !(p.changed.input.checked && state === "s");
  }

  function filter() {
    const words = p.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const dim = (node, ...names) => node.classList.toggle("dim", !names.every((n) => keeps(n, words)));
    p.picture.querySelectorAll(".n").forEach((node) => dim(node, node.dataset.n));
    edges().forEach((edge) => dim(edge, edge.dataset.a, edge.dataset.b));
    [...p.code.children].forEach((line) => { line.hidden = !keeps(line.dataset.n, words); });
    const kept = [...lines.keys()].filter((name) => keeps(name, words)).length;
    p.count.value = kept === lines.size ? "" : `${kept} of ${lines.size} nodes`;
    settle.forEach((reset) => reset());
  }

  function draw() {
    const step = trace.steps[index];
    lines = new Map(step.lines.map((line) => [trace.nodes[line[0]][0], line]));
    p.picture.innerHTML = trace.pictures[p.all.input.checked ? step.all : step.folded];
    p.picture.querySelectorAll(".n").forEach((node) => {
      const state = lines.get(node.dataset.n)?.[1] ?? "s";
      node.setAttribute("role", "button");
      node.setAttribute("aria-label", `${node.dataset.n}, ${WORDS[state]}`);
    });
    p.code.replaceChildren(...step.lines.map(([number, state]) => el("li",
      { class: state, "data-n": trace.nodes[number][0] }, `${MARKS[state]} ${trace.nodes[number][2]}`)));
    mark("chosen", chosen ? [chosen] : []);
    point(null);
    filter();
  }

  function go(to) {
    const next = Math.max(0, Math.min(trace.steps.length - 1, to));
    if (next === index) return;
    index = next;
    const step = trace.steps[index];
    p.slider.value = String(index + 1);
    p.prev.disabled = index === 0;
    p.next.disabled = index === trace.steps.length - 1;
    p.chips.forEach((chip, i) => chip.setAttribute("aria-current", i === index ? "step" : "false"));
    p.title.textContent = `${index + 1} of ${trace.steps.length}: ${step.name}`;
    p.live.textContent = `${step.note} ${step.alt}`.trim();
    p.facts.innerHTML = step.facts;
    draw();
    root.dispatchEvent(new CustomEvent("mlalab:step", { detail: index }));
  }

  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => (p.next.disabled ? play(false) : go(index + 1)), PLAY_MS) : 0;
    p.play.textContent = on ? "❚❚ pause" : "▶ play";
  }

  p.prev.addEventListener("click", () => go(index - 1));
  p.next.addEventListener("click", () => go(index + 1));
  p.play.addEventListener("click", () => {
    if (!timer && p.next.disabled) go(0);
    play(!timer);
  });
  p.slider.addEventListener("input", () => go(Number(p.slider.value) - 1));
  p.chips.forEach((chip, i) => chip.addEventListener("click", () => go(i)));
  p.all.input.addEventListener("change", draw);
  for (const input of [p.search, p.changed.input]) input.addEventListener("input", filter);
  root.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const node = event.target.closest("[data-n]");
    if (move && !event.target.matches("input")) go(index + move);
    else if (node && ["Enter", " "].includes(event.key)) choose([node.dataset.n]);
    else return;
    event.preventDefault();
  });
  root.addEventListener("click", (event) => {
    const from = event.target.closest("[data-n], [data-pick], [data-light]");
    if (from) choose((from.dataset.n ?? from.dataset.pick ?? from.dataset.light).split(" "));
  });
  for (const box of [p.picture, p.code]) {
    box.addEventListener("pointerover", (e) => point(e.target.closest("[data-n]")?.dataset.n ?? null));
    box.addEventListener("pointerleave", () => point(null));
    box.addEventListener("focusin", (e) => point(e.target.closest("[data-n]")?.dataset.n ?? null));
  }
  root.append(p.page);
  go(0);
  return { go };
}
