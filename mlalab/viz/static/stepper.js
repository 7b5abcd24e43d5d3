/**
 * Draw `trace` into `root`. On `root`, every step shown fires `mlalab:step` with its index, and
 * every choice `mlalab:choose` with the name of the node, or "" for none or several.
 * @param {HTMLElement} root @param {Trace} trace
 * @returns {{go: (index: number) => void, choose: (names: string[]) => void, stop: () => void}}
 */
export function mount(root, trace) {
  const page = el("div", { class: "mlalab" });
  page.innerHTML = PAGE;
  const part = (selector) => page.querySelector(selector);
  const [prev, play, next, slider] = [".prev", ".play", ".next", ".slider"].map(part);
  const [side, all, search, changed] = [".side", ".all", ".search", ".changed"].map(part);
  const pattern = part(".whys");
  const [picture, details, code, aside] = [".picture", ".details", ".code", "aside"].map(part);
  const chips = trace.steps.map(() => el("button", { type: "button", class: "chip" }));
  const settle = [rove(picture, ".n"), rove(code, "li")];
  let index = -1, chosen = "", timer = 0;
  /** @type {Map<string, any[]>} lines of the step by node name */
  let lines = new Map();
  /** @type {Map<string, any[]>} lines of the graph before, where their names mean other nodes */
  let older = new Map();
  /** @type {Object<string, number[]>} what boxes of layers are shaded by */
  let boxes = {};

  const edges = () => picture.querySelectorAll("[data-a]");
  const named = (name) => page.querySelectorAll(`[data-n="${CSS.escape(name)}"]`);
  const mark = (type, names) => {
    const wanted = new Set(names);
    page.querySelectorAll("[data-n]").forEach((node) =>
      node.classList.toggle(type, wanted.has(node.dataset.n)));
  };
  const linesOf = (step) => new Map(step.lines.map((line) => [trace.nodes[line[0]][0], line]));

  /** What the shades say of a node or box, as pairs of a word and a value. */
  const values = (numbers) => trace.shades
    .flatMap(([, field, unit], i) => (numbers[i] ? [[field, amount(numbers[i], unit)]] : []));

  function factsOf(name) {
    const line = lines.get(name) ?? older.get(name);
    if (line) return nodeFacts(trace.nodes[line[0]], line[1], values(line.slice(2)));
    const layers = name && part(`.picture [data-n="${CSS.escape(name)}"] title`);
    const sums = values(boxes[name] ?? []).map(([field, value]) => `${field} ${value} together`);
    const said = layers ? [`Layers: ${layers.textContent}`, ...sums].join("; ") : HINT;
    return [el("p", { class: "hint" }, said)];
  }

  /** Show the facts of the node pointed at, or else of the chosen one. */
  function point(name) {
    mark("hot", name ? [name] : []);
    const shown = name ?? chosen;
    edges().forEach((edge) =>
      edge.classList.toggle("hot", [edge.dataset.a, edge.dataset.b].includes(shown)));
    details.replaceChildren(...factsOf(shown));
  }

  function choose(names) {
    chosen = names.length === 1 ? names[0] : "";
    mark("chosen", names);
    point(null);
    if (names.length) named(names[0]).forEach((node) => reveal(node));
    const known = trace.nodes.some(([name]) => name === chosen);
    root.dispatchEvent(new CustomEvent("mlalab:choose", { detail: known ? chosen : "" }));
  }

  function keeps(name, words) {
    if (!words.length && !changed.checked) return true;
    const [number, state] = lines.get(name) ?? older.get(name) ?? [-1, "s"];
    const record = trace.nodes[number] ?? [];
    if (changed.checked && state === "s") return false;
    const text = [name, record[1], record[LAYER]].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const dim = (node, ...names) =>
      node.classList.toggle("dim", !names.every((name) => keeps(name, words)));
    picture.querySelectorAll(".n").forEach((node) => dim(node, node.dataset.n));
    edges().forEach((edge) => dim(edge, edge.dataset.a, edge.dataset.b));
    code.querySelectorAll("li").forEach((line) => { line.hidden = !keeps(line.dataset.n, words); });
    const kept = [...lines.keys()].filter((name) => keeps(name, words)).length;
    part("output").value = kept === lines.size ? "" : `${kept} of ${lines.size} nodes`;
    settle.forEach((reset) => reset());
  }

  /** One graph of the step: its heading, its picture, and the shade of its nodes. */
  function figure([head, number, sums], known) {
    const box = el("figure", {}, ...(head ? [el("figcaption", {}, head)] : []));
    box.insertAdjacentHTML("beforeend", trace.pictures[number]);
    box.querySelectorAll(".n").forEach((node) => {
      const state = Object.keys(STATES).find((key) => node.classList.contains(key));
      node.setAttribute("role", "button");
      node.setAttribute("aria-label", `${node.dataset.n}, ${STATES[state][1]}`);
    });
    const shade = part(".shade").value;
    const valueOf = (name) => (sums[name] ?? known.get(name)?.slice(2) ?? [])[shade];
    if (shade) shadePicture(box, trace.shades[shade], valueOf);
    return box;
  }

  /** The patterns that the step refused, with the node of each that differs in view. */
  function whyFigure(whys) {
    const heads = whys.map(([head]) => el("figcaption", {}, head));
    const box = el("figure", { class: "why" }, ...heads);
    heads.forEach((head, i) => head.insertAdjacentHTML("afterend", trace.pictures[whys[i][1]]));
    return box;
  }

  /** Names in a graph before it was traced anew mean other nodes than the same names after. */
  function setApart(box, old) {
    const apart = (name) => `${name} (before)`;
    box.querySelectorAll(".n").forEach((n) => { n.dataset.n = apart(n.dataset.n); });
    box.querySelectorAll("[data-a]").forEach(({ dataset: d }) =>
      Object.assign(d, { a: apart(d.a), b: apart(d.b) }));
    older = new Map([...old].map(([name, line]) => [apart(name), line]));
  }

  function draw() {
    const step = trace.steps[index];
    const panels = step[all.checked ? "all" : "folded"][Number(side.checked)];
    [lines, older] = [linesOf(step), new Map()];
    boxes = Object.assign({}, ...panels.map(([, , sums]) => sums));
    const old = panels.length > 1 ? linesOf(trace.steps[index - 1]) : lines;
    const figures = panels.map((panel, i) => figure(panel, i ? lines : old));
    if (panels.length > 1 && step.retraced) setApart(figures[0], old);
    pattern.disabled = !step.whys.length;
    pattern.parentElement.title = step.whys.length ? "" : "this step refused no pattern";
    const whys = pattern.checked && step.whys.length ? [whyFigure(step.whys)] : [];
    picture.replaceChildren(...figures, ...whys);
    whys.forEach((box) => centre(box, box.querySelector(".no") ?? box));
    code.replaceChildren(...inChunks(step.lines).map((chunk) =>
      el("ol", {}, ...chunk.map(([number, state]) => {
        const [name, , text] = trace.nodes[number];
        return el("li", { class: state, "data-n": name }, el("i", {}, STATES[state][0]), text);
      }))));
    const differs = whys[0]?.querySelector(".no")?.dataset.pick;
    figures.forEach((box) => {
      const kinds = [`[data-n="${CSS.escape(differs)}"]`, ".n.c", ".n.r", ".n.d", ".n"];
      const first = kinds.map((kind) => box.querySelector(kind));
      centre(box, first.find(Boolean) ?? box);
    });
    const shade = trace.shades[part(".shade").value];
    part(".scale").replaceChildren(...(shade ? scaleItems(shade) : []));
    mark("chosen", chosen ? [chosen] : []);
    point(null);
    filter();
  }

  /** Do what may replace or disable the element in focus; the keys must not go elsewhere then. */
  function keepingFocus(act) {
    const held = page.getRootNode().activeElement;
    if (!page.contains(held)) return act();
    const box = held.closest(".picture, .code");
    act();
    if (held.isConnected && !held.disabled) return undefined;
    const again = box?.querySelector(`[data-n="${CSS.escape(held.dataset.n)}"]`);
    return (again ?? part(".frame")).focus({ preventScroll: true });
  }

  function go(to) {
    const wanted = Math.max(0, Math.min(trace.steps.length - 1, to));
    if (wanted === index || !trace.steps.length) return;
    index = wanted;
    const step = trace.steps[index];
    slider.value = String(index + 1);
    prev.disabled = index === 0;
    next.disabled = index === trace.steps.length - 1;
    chips.forEach((chip, i) => chip.setAttribute("aria-current", i === index ? "step" : "false"));
    part(".finding h2").textContent = `${index + 1} of ${trace.steps.length}: ${step.name}`;
    part(".finding p").textContent = step.finding;
    part(".cost").textContent = `modelled: ${step.cost}`;
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

  function onKey(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const node = event.target.closest("[data-n], .no[data-pick]")?.dataset;
    const own = event.target.matches("[type=range], [type=search], select");
    if (event.altKey || event.ctrlKey || event.metaKey || own) return;
    if (move) keepingFocus(() => go(index + move));
    else if (node && ["Enter", " "].includes(event.key)) choose([node.n ?? node.pick]);
    else return;
    event.preventDefault();
  }

  function listen() {
    prev.addEventListener("click", () => keepingFocus(() => go(index - 1)));
    next.addEventListener("click", () => keepingFocus(() => go(index + 1)));
    play.addEventListener("click", () => run(!timer));
    slider.addEventListener("input", () => go(Number(slider.value) - 1));
    chips.forEach((chip, i) => chip.addEventListener("click", () => go(i)));
    for (const input of [side, all, pattern, part(".shade")]) input.addEventListener("change", draw);
    part(".fit").addEventListener("change", () => picture.classList.toggle("fit"));
    for (const input of [search, changed]) input.addEventListener("input", filter);
    const over = (event) => {
      const at = event.target.closest("[data-n], .no[data-pick]")?.dataset;
      point(at?.n ?? at?.pick ?? null);
    };
    for (const box of [picture, code]) {
      for (const type of ["pointerover", "focusin"]) box.addEventListener(type, over);
      box.addEventListener("pointerleave", () => point(null));
    }
    page.addEventListener("click", (event) => {
      const from = event.target.closest("[data-n], [data-pick], [data-light]")?.dataset;
      if (from) keepingFocus(() => choose((from.n ?? from.pick ?? from.light).split(" ")));
    });
    root.addEventListener("keydown", onKey);
  }

  part("h1").textContent = trace.title;
  part(".meta").append(...trace.meta.map(([key, value]) => el("span", {}, `${key} ${value}`)));
  part(".legend div").innerHTML = trace.legend;
  part(".shade").append(...trace.shades.map(([name], i) => el("option", { value: i }, name)));
  slider.max = String(trace.steps.length);
  chips.forEach((chip, i) => { chip.innerHTML = trace.steps[i].chip; });
  part("nav").append(...chips);
  all.disabled = trace.steps.some((step) => !step.all);
  if (all.disabled) all.closest("label").title = "too many nodes to draw them all";
  listen();
  root.append(page);
  go(0);
  return { go, choose, stop: () => run(false) };
}
