/** The stepper in a notebook: what stands before this is the same script that the page runs. */

/** Lab's shortcuts act on plain keys (d d deletes a cell), and must not while the keys are ours. */
function guardKeys(box) {
  const guard = (event) => {
    const plain = !(event.altKey || event.ctrlKey || event.metaKey);
    box.toggleAttribute("data-lm-suppress-shortcuts", plain);
  };
  // Lab listens on the document before the widget hears anything, so this listens before Lab.
  window.addEventListener("keydown", guard, true);
  box.addEventListener("keydown", (event) => {
    if (box.hasAttribute("data-lm-suppress-shortcuts")) event.stopPropagation();
  });
  return () => window.removeEventListener("keydown", guard, true);
}

async function render({ model, el: box }) {
  const free = guardKeys(box);
  const app = mount(box, await unpack(model.get("data")));
  const shown = { index: 0, chosen: "" };
  const tell = (name) => ({ detail }) => {
    shown[name] = detail;
    model.set(name, detail);
    model.save_changes();
  };
  const follow = (name, act) => () => {
    if (model.get(name) !== shown[name]) act(model.get(name));
  };
  const follows = {
    "change:index": follow("index", app.go),
    "change:chosen": follow("chosen", (name) => app.choose(name ? [name] : [])),
  };
  box.addEventListener("mlalab:step", tell("index"));
  box.addEventListener("mlalab:choose", tell("chosen"));
  for (const [event, act] of Object.entries(follows)) {
    act();
    model.on(event, act);
  }
  return () => {
    free();
    app.stop();
    for (const [event, act] of Object.entries(follows)) model.off(event, act);
  };
}

export default { render };
