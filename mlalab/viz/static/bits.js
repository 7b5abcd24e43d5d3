/**
 * One FP8 byte with bits to flip, read by the table of formats that Python sends.
 * No framework and no network. `render` is anywidget's entry; a model has get, set, save_changes,
 * and on.
 *
 * @typedef {{name: string, exponentBits: number, mantissaBits: number, bias: number,
 *   nan: number[], infinity: number[]}} Format
 */

const FIELDS = ["sign", "exponent", "mantissa"];
const MARKS = { NaN: "×", infinity: "∞", "negative zero": "−0", zero: "0" };
const PAGE = `
  <div class="top">
    <label>read as <select class="format"></select></label>
    <p class="said" aria-live="polite"></p>
  </div>
  <div class="bits" role="group"
    aria-label="bits of the byte, highest first; arrow keys move, Space flips"></div>
  <p class="formula"></p>
  <div class="line">
    <button type="button" class="below"></button>
    <strong class="own"></strong>
    <button type="button" class="above"></button>
  </div>
  <svg class="axis" viewBox="0 0 720 52" aria-hidden="true"></svg>
  <p class="source"></p>
  <table><thead><tr><th scope="col">format</th><th scope="col">fields</th>
    <th scope="col">what it is</th><th scope="col">value</th></tr></thead><tbody></tbody></table>`;

/** Take a byte apart: sign, exponent field, mantissa field. */
export function fieldsOf(format, byte) {
  const { exponentBits, mantissaBits } = format;
  return [byte >> 7, (byte >> mantissaBits) & ((1 << exponentBits) - 1),
    byte & ((1 << mantissaBits) - 1)];
}

/** What sort of number a byte is. */
export function kindOf(format, byte) {
  const [sign, exponent, mantissa] = fieldsOf(format, byte);
  if (format.nan.includes(byte)) return "NaN";
  if (format.infinity.includes(byte)) return "infinity";
  if (exponent) return "normal";
  if (mantissa) return "subnormal";
  return sign ? "negative zero" : "zero";
}

/** The value of a byte. */
export function decode(format, byte) {
  const kind = kindOf(format, byte);
  const [sign, exponent, mantissa] = fieldsOf(format, byte);
  const signed = sign ? -1 : 1;
  if (kind === "NaN") return NaN;
  if (kind === "infinity") return signed * Infinity;
  const leading = exponent ? 1 : 0;
  const power = (exponent || 1) - format.bias;
  return signed * (leading + mantissa / (1 << format.mantissaBits)) * 2 ** power;
}

/** Bytes of the next value below and above; undefined where there is none. */
export function neighbours(format, byte) {
  const ordered = [...Array(256).keys()]
    .filter((code) => !["NaN", "negative zero"].includes(kindOf(format, code)))
    .sort((a, b) => decode(format, a) - decode(format, b));
  const value = decode(format, byte);
  const at = ordered.findIndex((code) => decode(format, code) === value);
  return at < 0 ? [undefined, undefined] : [ordered[at - 1], ordered[at + 1]];
}

const hex = (byte) => `0x${byte.toString(16).toUpperCase().padStart(2, "0")}`;
const bitsOf = (byte) => byte.toString(2).padStart(8, "0");

function written(value) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value < 0 ? "−∞" : "∞";
  const text = Object.is(value, -0) ? "-0" : String(Number(value.toPrecision(10)));
  return text.replaceAll("-", "−");
}

function formula(format, byte) {
  const kind = kindOf(format, byte);
  const [sign, exponent, mantissa] = fieldsOf(format, byte);
  if (kind === "NaN" || kind === "infinity") return `a code of its own: ${kind}`;
  if (kind.endsWith("zero")) return kind;
  const fraction = mantissa.toString(2).padStart(format.mantissaBits, "0");
  return `${sign ? "−" : "+"}${exponent ? 1 : 0}.${fraction} (binary) × `
    + `2^(${exponent || 1} − ${format.bias})${exponent ? "" : ", subnormal"}`;
}

function errorText(value, source, scale) {
  if (source === null || source === undefined) return "";
  const found = value * scale;
  if (Number.isNaN(found)) return `source ${written(source)} reads back as NaN`;
  const error = found === source ? 0 : Math.abs(found - source) / Math.abs(source);
  const percent = Number.isFinite(error) ? `${(100 * error).toFixed(2)} %` : "without bound";
  return `source ${written(source)}, scale ${written(scale)}: reads back as ${written(found)}, `
    + `relative error ${percent}`;
}

/** The field that a bit belongs to. */
function fieldAt(format, bit) {
  if (bit === 7) return 0;
  return bit >= format.mantissaBits ? 1 : 2;
}

/** Markup of a number line: the value, and two on each side as far as they are finite. */
function axisOf(format, byte) {
  const isFinite = (code) => code !== undefined && Number.isFinite(decode(format, code));
  if (!isFinite(byte)) return "";
  const around = [byte];
  for (let i = 0; i < 2; i += 1) {
    const [below] = neighbours(format, around[0]);
    const [, above] = neighbours(format, around.at(-1));
    if (isFinite(below)) around.unshift(below);
    if (isFinite(above)) around.push(above);
  }
  const values = around.map((code) => decode(format, code));
  const x = (value) => 60 + (600 * (value - values[0])) / (values.at(-1) - values[0]);
  const ticks = around.map((code, at) => {
    const place = `transform="translate(${x(values[at])} 16)"`;
    const shape = code === byte ? "M0 -9l7 9l-7 9l-7 -9Z" : "M0 -6v12";
    return `<g ${place}><path d="${shape}"/><text y="26">${written(values[at])}</text></g>`;
  });
  return `<path d="M60 16H660"/>${ticks.join("")}`;
}

function rowOf(format, byte) {
  const kind = kindOf(format, byte);
  const bits = bitsOf(byte);
  const cut = 1 + format.exponentBits;
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = format.name;
  row.append(head);
  const mark = MARKS[kind] ? `${MARKS[kind]} ` : "";
  for (const text of [`${bits[0]} ${bits.slice(1, cut)} ${bits.slice(cut)}`, mark + kind,
    written(decode(format, byte))]) {
    row.insertCell().textContent = text;
  }
  row.dataset.kind = kind;
  return row;
}

function makeBits(box, flip) {
  const buttons = [7, 6, 5, 4, 3, 2, 1, 0].map((bit) => {
    const button = document.createElement("button");
    button.type = "button";
    button.addEventListener("click", () => flip(bit));
    button.append(document.createElement("b"), document.createElement("small"));
    return button;
  });
  box.append(...buttons);
  box.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const at = buttons.indexOf(event.target.closest("button"));
    if (!move || at < 0) return;
    buttons[Math.max(0, Math.min(7, at + move))].focus();
    event.preventDefault();
  });
  return buttons;
}

function drawBits(buttons, format, byte) {
  buttons.forEach((button, at) => {
    const bit = 7 - at;
    const field = fieldAt(format, bit);
    const value = (byte >> bit) & 1;
    const first = at === 0 || fieldAt(format, bit + 1) !== field;
    button.className = `${FIELDS[field]}${first && at ? " first" : ""}`;
    button.setAttribute("aria-pressed", String(value === 1));
    button.setAttribute("aria-label", `bit ${bit}, ${FIELDS[field]}, is ${value}`);
    button.firstChild.textContent = value;
    button.lastChild.textContent = first ? FIELDS[field] : "";
  });
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "mlalab-bits";
  root.innerHTML = PAGE;
  el.append(root);
  const find = (selector) => root.querySelector(selector);
  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const buttons = makeBits(find(".bits"), (bit) => set("byte", model.get("byte") ^ (1 << bit)));
  const formats = model.get("formats");
  find(".format").append(...formats.map((format) => new Option(format.name)));
  find(".format").addEventListener("change", (event) => set("format", event.target.value));
  for (const where of [".below", ".above"]) {
    find(where).addEventListener("click", (event) =>
      set("byte", Number(event.currentTarget.dataset.byte)));
  }
  // A notebook has letters and arrows of its own; with Ctrl they are Lab's, and stay so.
  root.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
  });

  const draw = () => {
    const byte = model.get("byte");
    const format = formats.find((row) => row.name === model.get("format"));
    const value = decode(format, byte);
    drawBits(buttons, format, byte);
    find(".format").value = format.name;
    find(".said").textContent = `${hex(byte)} is ${written(value)} (${kindOf(format, byte)})`;
    find(".formula").textContent = formula(format, byte);
    find(".own").textContent = `◆ ${written(value)}`;
    neighbours(format, byte).forEach((code, at) => {
      const button = find([".below", ".above"][at]);
      const name = ["◀ next below", "next above ▶"][at];
      button.disabled = code === undefined;
      button.dataset.byte = code;
      button.textContent = code === undefined ? `${name}: none`
        : `${name}: ${written(decode(format, code))} (${hex(code)})`;
    });
    find(".axis").innerHTML = axisOf(format, byte);
    find(".axis").toggleAttribute("hidden", !Number.isFinite(value));
    find(".source").textContent = errorText(value, model.get("source"), model.get("scale"));
    find("tbody").replaceChildren(...formats.map((row) => rowOf(row, byte)));
    find(`tbody tr:nth-child(${formats.indexOf(format) + 1})`).setAttribute("aria-current", "true");
  };
  for (const name of ["byte", "format", "source", "scale"]) model.on(`change:${name}`, draw);
  draw();
}

export default { render };
