// An extension of JupyterLab, written by hand so that nothing needs to be built: what a bundler's container would offer
// (init, get) stands at the end. Where JupyterLab changes so that it fails, figures lack their alternative text, the
// start page is as old as its tab, narrow windows begin at the list of files and words break; nothing else is lost.
(() => {
  const NAME = "interpretability-course";
  const START = "my/start.md"; // course_utils/lesson/start.py
  let shared; // modules of JupyterLab: name -> version -> {get}

  const module = async name => (await Object.values(shared[name])[0].get())();

  // JupyterLab leaves out what a figure's metadata say of it.
  function describeFigures(rendermime) {
    const plain = rendermime.getFactory("image/png");
    const createRenderer = options => {
      const renderer = plain.createRenderer(options);
      const render = renderer.renderModel.bind(renderer);
      renderer.renderModel = async model => {
        await render(model);
        const said = (model.metadata[options.mimeType] || {}).alt;
        renderer.node.querySelectorAll("img").forEach(img => (img.alt = said || "A figure"));
      };
      return renderer;
    };
    rendermime.addFactory({ ...plain, createRenderer }, 0);
  }

  // The server writes the page anew with each notebook that is saved, `course check` with each exercise.
  function keepStartFresh(app) {
    const fresh = widget => {
      if (widget && widget.context && widget.context.path === START) widget.context.revert().catch(() => {});
    };
    app.serviceManager.contents.fileChanged.connect((_, change) => {
      if (change.type === "save") for (const widget of app.shell.widgets("main")) fresh(widget);
    });
    app.shell.currentChanged.connect((_, change) => fresh(change.newValue));
  }

  // On a phone, or magnified, the list of files would leave the page no room.
  function makeRoom(app) {
    if (window.innerWidth < 700) app.restored.then(() => app.shell.collapseLeft());
  }

  // JupyterLab breaks long lines of text in the middle of a word.
  function breakBetweenWords() {
    const style = document.createElement("style");
    style.textContent = ".jp-OutputArea-output pre { word-break: normal; }";
    document.head.append(style);
  }

  async function extension() {
    const { IRenderMimeRegistry } = await module("@jupyterlab/rendermime");
    const activate = (app, rendermime) => {
      describeFigures(rendermime);
      keepStartFresh(app);
      makeRoom(app);
      breakBetweenWords();
    };
    const plugin = { id: `${NAME}:plugin`, autoStart: true, requires: [IRenderMimeRegistry], activate };
    return () => ({ __esModule: true, default: plugin });
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB[NAME] = { init: scope => void (shared = scope), get: extension };
})();
