/** Shading: each box darker the more its node moves or takes, with the amount beside it. */

const PREFIXES = ["", "k", "M", "G", "T"];

/** A value in three digits with its unit: `65.5 kB`, `3.21 µs`. */
function amount(value, unit) {
  let [scaled, power] = [value, 0];
  // From 999.5 on three digits are those of the next unit.
  for (; unit === "B" && scaled >= 999.5 && power < PREFIXES.length - 1; power += 1) scaled /= 1000;
  const whole = Number.isInteger(scaled) || scaled >= 99.95;
  return `${whole ? Math.round(scaled) : scaled.toPrecision(3)} ${PREFIXES[power]}${unit}`;
}

/** The darkness of a value: 0 for nothing, then 1 and up. */
function levelOf(value, bounds) {
  return value > 0 ? 1 + bounds.filter((bound) => value >= bound).length : 0;
}

/** Shade the nodes of a picture; `valueOf` gives a box's value by the name of its node. */
function shadePicture(picture, [, , unit, bounds], valueOf) {
  picture.querySelectorAll(".n").forEach((node) => {
    const value = valueOf(node.dataset.n) ?? 0;
    node.classList.add(`h${levelOf(value, bounds)}`);
    if (!value) return;
    const box = [...node.querySelectorAll(".b")].pop();
    const [x, y, width] = ["x", "y", "width"].map((name) => Number(box.getAttribute(name)));
    const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
    text.setAttribute("class", "k");
    text.setAttribute("x", x + width);
    text.setAttribute("y", y - 3);
    text.textContent = amount(value, unit);
    node.append(text);
  });
}

/** The meaning of the levels, lightest first. */
function scaleItems([name, , , , levels]) {
  const item = (text, level) => el("li", {}, el("i", { class: `h${level}` }), text);
  return [el("li", {}, `${name}:`), item("none", 0),
    ...levels.map((text, i) => item(text, i + 1))];
}
