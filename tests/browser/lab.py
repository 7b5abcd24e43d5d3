"""One page of a real JupyterLab, and what tests do with it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DRAWN = """
(path) => {
  const panel = jupyterapp.shell.currentWidget, cells = panel?.content?.widgets;
  if (panel?.context?.path !== path || !panel.context.isReady || !cells.length) return false;
  const drawn = (cell) => cell.model.type !== "code"
    || cell.outputArea.widgets.length >= cell.model.outputs.length;
  return cells.every((cell) => cell.isAttached && drawn(cell))
    && [...panel.node.querySelectorAll("figure img")].every((image) => image.complete);
}
"""
_CLOSE_ALL = """
async () => {
  const panels = [...jupyterapp.shell.widgets("main")].filter((panel) => panel.sessionContext);
  for (const { sessionContext } of panels) await sessionContext.ready;
  // A kernel that is up writes its name into the notebook, and Lab asks before it drops a change.
  for (const { context } of panels) context.model.dirty = false;
  await jupyterapp.commands.execute("application:close-all");
}
"""
_READY = """
async () => {
  const end = Date.now() + 120000;
  const wait = () => new Promise((resolve, reject) => {
    if (Date.now() > end) reject(new Error("the kernel is not idle after two minutes"));
    setTimeout(resolve, 50);
  });
  const panel = jupyterapp.shell.currentWidget, context = panel.sessionContext;
  await context.ready;
  const kernel = () => context.session?.kernel;
  while (kernel()?.connectionStatus !== "connected" || kernel().status !== "idle") await wait();
  await kernel().info;
}
"""
_ASK = """
async (source) => {
  const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const asked = { code: "", silent: true, user_expressions: { said: source } };
  const { said } = (await kernel.requestExecute(asked).done).content.user_expressions;
  return said.data ? said.data["text/plain"] : said.evalue;
}
"""
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"


@dataclass(slots=True)
class Lab:
    """A page of a running JupyterLab.

    Args:
        url: of the server, `http://127.0.0.1:PORT`.
        folder: what it serves.
        page: Playwright's page, with Lab loaded.
    """

    url: str
    folder: Path
    page: Any

    def open(self, name: str) -> None:
        """Open a notebook in place of what was open, and wait until all of it is drawn."""
        self.close_all()
        self.run_command("docmanager:open", path=name)
        self.page.wait_for_function(_DRAWN, arg=name)

    def close_all(self) -> None:
        """Close what is open and drop what was not saved."""
        self.page.evaluate(_CLOSE_ALL)

    def run_command(self, command: str, **arguments: Any) -> None:
        """Execute one of Lab's commands and wait for it."""
        self.page.evaluate(
            "async ([id, args]) => { await jupyterapp.commands.execute(id, args) }",
            [command, arguments],
        )

    def run_all(self) -> None:
        """Run every cell of the open notebook and wait until the kernel is idle again.

        By command: the menu's entry loses the execution when the kernel is not quite ready.
        """
        self.page.evaluate(_READY)
        self.run_command("notebook:run-all-cells")
        self.page.evaluate(_READY)

    def ask(self, source: str) -> str:
        """Return what the kernel shows for an expression, without touching a cell."""
        return self.page.evaluate(_ASK, source)

    def wait_until_kernel_says(self, source: str, said: str) -> None:
        """Wait until the kernel shows `said` for `source`: widgets send only to an idle kernel.

        Raises:
            AssertionError: it shows something else for ten seconds.
        """
        end = time.monotonic() + 10
        while (last := self.ask(source)) != said:
            assert time.monotonic() < end, f"{source} is {last}, not {said}"
            time.sleep(0.1)

    def theme(self, name: str) -> None:
        """Switch the theme: "JupyterLab Light" or "JupyterLab Dark"."""
        self.run_command("apputils:change-theme", theme=name)
        light = "true" if name.endswith("Light") else "false"
        self.page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def run(self, name: str, *cells: str) -> None:
        """Write a notebook of these code cells, in place of one of that name, open and run it."""
        import nbformat.v4 as v4

        # One that is open while its file changes would ask before it is saved.
        self.close_all()

        made = v4.new_notebook(cells=[v4.new_code_cell(source) for source in cells])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        (self.folder / name).write_text(v4.writes(made), encoding="utf-8")
        self.open(name)
        self.run_all()

    def show(self, name: str, *cells: str) -> None:
        """Run a notebook of these cells; one that is open already runs again, on its warm kernel.

        A name belongs to one list of cells.
        """
        if self.page.evaluate("() => jupyterapp.shell.currentWidget?.context?.path") != name:
            self.run(name, *cells)
        else:
            self.run_all()

    def copy(self, name: str, to: str) -> str:
        """Copy a notebook, for a test that runs it; returns the new name."""
        shutil.copy(self.folder / name, self.folder / to)
        return to

    def trusted(self) -> int:
        """Return how many cells of the open notebook are trusted, so that their HTML may be all."""
        return self.page.evaluate(
            "() => jupyterapp.shell.currentWidget.content.widgets"
            ".filter((cell) => cell.model.type === 'code' && cell.model.trusted).length"
        )

    def errors(self) -> list[str]:
        """Return what is shown in red in the open notebook: tracebacks and dead widgets."""
        found = self.page.locator(
            f"{PANEL} .jp-RenderedText[data-mime-type='application/vnd.jupyter.error'], "
            f"{PANEL} .jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'], "
            f"{PANEL} .jupyter-widgets-error-widget"
        )
        return found.all_text_contents()

    def screenshot(self, name: str) -> Path:
        """Save what is visible as NAME.png beside the served folder."""
        path = self.folder.parent / f"{name}.png"
        self.page.screenshot(path=path)
        return path
