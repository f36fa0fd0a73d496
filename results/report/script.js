"use strict";
// Draws the figures in the reader's colours, sorts and filters the table, and shows a trial's own trace. It fetches nothing.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot[data-figure]")];
  const figures = new Map(data.figures.map((figure) => [figure.id, figure]));
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
  const canHover = matchMedia("(hover: hover)").matches;
  const unpainted = new Set(["x", "y", "z", "text", "name", "customdata"]);
  const touch = matchMedia("(pointer: coarse)").matches;
  const narrow = () => innerWidth < 560;
  const radios = [...document.querySelectorAll('input[name="view"]')];
  let view = Number(radios.find((radio) => radio.checked)?.value ?? 0);

  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const hover = (id) => (data.trials[id] ? data.trials[id].lines.map((line) => wrap(escape(line))).join("<br>") : "");
  const wrap = (line) => line.replace(/(.{46,70}?)[ ,]/g, "$1<br>");

  // "@name" in a figure is the page's colour --name.
  function painter() {
    const style = getComputedStyle(root);
    const known = new Map();
    const color = (name) => {
      if (!known.has(name)) known.set(name, style.getPropertyValue(`--${name}`).trim());
      return known.get(name);
    };
    const paint = (value) => {
      if (typeof value === "string") return value[0] === "@" ? color(value.slice(1)) : value;
      if (Array.isArray(value)) return value.map(paint);
      if (value === null || typeof value !== "object") return value;
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, unpainted.has(key) ? item : paint(item)]));
    };
    return paint;
  }

  function layoutOf(layout) {
    const axis = { gridcolor: "@grid", zerolinecolor: "@grid", linecolor: "@line", tickfont: { color: "@muted" }, automargin: true, fixedrange: touch };
    const merged = {
      margin: { l: narrow() ? 44 : 62, r: 12, t: 14, b: 40 },
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "@ink" },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: "@card", bordercolor: "@line", font: { color: "@ink", size: 12 }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "@muted", activecolor: "@ink" },
      dragmode: touch ? false : "zoom",
      ...layout,
    };
    merged.legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, bgcolor: "rgba(0,0,0,0)", ...layout.legend };
    for (const key of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name)).concat("xaxis", "yaxis")) {
      merged[key] = { ...axis, ...layout[key] };
    }
    return merged;
  }

  function draw(node, figure) {
    const paint = painter();
    const traces = figure.traces
      .filter((trace) => trace.view === undefined || trace.view === view)
      .map(({ view: _, hover: kind, ...trace }) =>
        kind === "trial" ? { ...trace, text: trace.customdata.map(hover), hovertemplate: "%{text}<extra></extra>" } : trace);
    const bar = canHover && node.clientHeight > 300 && "hover";
    const size = { width: node.clientWidth, height: node.clientHeight };
    Plotly.react(node, paint(traces), paint({ ...layoutOf(figure.layout), ...(root.classList.contains("print") ? size : {}) }), { ...config, displayModeBar: bar });
    if (!node.dataset.drawn) {
      node.dataset.drawn = "yes";
      node.on("plotly_click", (event) => {
        const id = event.points[0].customdata;
        if (id !== undefined && id !== null) location.hash = `trial-${id}`;
      });
    }
  }

  const drawAll = () => {
    for (const node of plots) draw(node, figures.get(node.dataset.figure));
    if (shown !== null) drawTrace(shown);
  };
  // One figure a turn, so that the first screen answers at once.
  function drawInTurns(left) {
    if (!left.length) { root.dataset.ready = "yes"; return; }
    draw(left[0], figures.get(left[0].dataset.figure));
    setTimeout(drawInTurns, 0, left.slice(1));
  }

  // --- the table -----------------------------------------------------------------------------------------------------
  const table = document.getElementById("trial-table");
  const body = table ? table.tBodies[0] : null;
  const rows = body ? [...body.rows] : [];
  const cellValue = (row, column) => row.cells[column].dataset.value;
  function sortBy(column, direction) {
    const numeric = rows.every((row) => cellValue(row, column) === "" || Number.isFinite(Number(cellValue(row, column))));
    const compare = (a, b) => {
      const [x, y] = [cellValue(a, column), cellValue(b, column)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return direction * (numeric ? x - y : x.localeCompare(y));
    };
    rows.sort((a, b) => compare(a, b) || cellValue(a, 0) - cellValue(b, 0));
    body.append(...rows);
  }
  function startTable() {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        sortBy(column, up ? 1 : -1);
      });
    });
    heads[0].setAttribute("aria-sort", "ascending");
    const input = document.getElementById("filter");
    const boxes = [...document.querySelectorAll(".ending")];
    const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const endings = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
      let count = 0;
      for (const row of rows) {
        row.hidden = !(endings.has(row.dataset.status) && words.every((word) => texts.get(row).includes(word)));
        count += !row.hidden;
      }
      document.getElementById("shown").textContent = `${count} of ${rows.length} shown`;
    };
    [input, ...boxes].forEach((control) => control.addEventListener("input", filter));
    document.querySelector(".filters").hidden = false;
    filter();
  }

  // --- a trial's own trace -------------------------------------------------------------------------------------------
  let shown = null;
  const stretched = (trace, values, perBucket) => ({
    x: values.map((_, index) => trace.at[perBucket ? index : Math.floor(index / (trace.pairs ? 2 : 1))]),
    y: values,
  });
  function traceOf(id, name, color, strong) {
    const trace = data.traces[id];
    const trial = data.trials[id];
    const scale = trial.tokens_per_step;
    const line = (values, axis, label, extra, perBucket) => {
      const { x, y } = stretched(trace, values, perBucket);
      return {
        type: "scatter", mode: "lines", name: `${name}: ${label}`, x: x.map((step) => step * scale), y, xaxis: "x", yaxis: axis,
        line: { color, width: strong ? 1.4 : 1 }, opacity: strong ? 1 : 0.45, showlegend: false,
        hovertemplate: `${name}, ${label} %{y:.4g} at %{x:,} tokens<extra></extra>`, ...extra,
      };
    };
    const drawn = [{
      type: "scatter", mode: "lines+markers", name: `${name}: val loss`, x: trial.eval_tokens, y: trial.eval_loss, xaxis: "x", yaxis: "y",
      line: { color, width: strong ? 2 : 1.2, dash: "dot" }, marker: { color, size: strong ? 8 : 5, symbol: strong ? "circle" : "diamond" },
      opacity: strong ? 1 : 0.6, hovertemplate: `${name}, val loss %{y:.4f} at %{x:,} tokens<extra></extra>`,
    }];
    if (trace) {
      drawn.push(line(trace.loss, "y", "train loss", { showlegend: true }), line(trace.grad, "y2", "gradient norm"),
        line(trace.lr, "y3", "learning rate", {}, true));
    }
    return drawn;
  }
  function drawTrace(id) {
    const others = data.baseline !== null && id !== data.baseline ? traceOf(data.baseline, "baseline", "@baseline", false) : [];
    const color = id === data.baseline ? "@baseline" : "@ink";
    const shapes = [];
    const trace = data.traces[id];
    if (trace && trace.nonfinite_at !== null) {
      const x = trace.nonfinite_at * data.trials[id].tokens_per_step;
      shapes.push({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: "@unstable", width: 1.5, dash: "dot" } });
    }
    const layout = {
      shapes,
      xaxis: { title: { text: "training tokens seen" }, anchor: "y3", rangemode: "tozero" },
      yaxis: { domain: [0.46, 1], title: { text: "loss" } },
      yaxis2: { domain: [0.21, 0.42], title: { text: "grad norm" }, type: "log", nticks: 3 },
      yaxis3: { domain: [0, 0.17], title: { text: "LR" }, rangemode: "tozero", exponentformat: "e", nticks: 3 },
    };
    draw(document.getElementById("trace-plot"), { traces: [...others, ...traceOf(id, `trial ${id}`, color, true)], layout });
  }
  function show(id, scroll) {
    const row = document.getElementById(`trial-${id}`);
    if (!data.trials[id] || !row) return;
    shown = id;
    rows.forEach((other) => other.classList.toggle("chosen", other === row));
    document.getElementById("trace").hidden = false;
    document.getElementById("trace-title").textContent = `Trial ${id}${id === data.baseline ? ", the baseline" : ""}`;
    document.getElementById("trace-words").textContent = data.trials[id].lines.slice(1).join("; ");
    const trace = data.traces[id];
    const thin = "Long runs are thinned: each stretch of steps keeps its lowest and highest value, so no spike is lost.";
    const bad = trace && trace.nonfinite_at !== null ? ` The loss or gradient norm was not finite at step ${trace.nonfinite_at}.` : "";
    document.getElementById("trace-note").textContent = trace ? (trace.pairs ? thin : "Every step is drawn.") + bad : "No steps of this trial are on disk.";
    drawTrace(id);
    if (scroll) {
      document.getElementById("trace").scrollIntoView();
      document.getElementById("trace-title").focus({ preventScroll: true });
    }
  }
  const fromHash = () => {
    const found = /^#trial-(\d+)$/.exec(location.hash);
    if (found) show(Number(found[1]), true);
  };
  const byRank = () => [...rows].sort((a, b) => cellValue(a, 0) - cellValue(b, 0));
  const move = (by) => {
    const order = byRank();
    const at = order.findIndex((row) => row.id === `trial-${shown}`);
    const next = order[Math.min(order.length - 1, Math.max(0, at + by))];
    history.replaceState(null, "", `#${next.id}`);
    show(Number(next.id.slice(6)), false);
  };

  // --- start ---------------------------------------------------------------------------------------------------------
  const copy = document.getElementById("copy");
  if (copy) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      const text = document.getElementById("export").textContent;
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        getSelection().selectAllChildren(document.getElementById("export"));
        document.execCommand("copy");
      }
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
  }
  radios.forEach((radio) => radio.addEventListener("change", () => {
    view = Number(radio.value);
    for (const node of plots) {
      const figure = figures.get(node.dataset.figure);
      if (figure.traces.some((trace) => trace.view !== undefined)) draw(node, figure);
    }
  }));
  if (table) {
    startTable();
    document.getElementById("trace-before").addEventListener("click", () => move(-1));
    document.getElementById("trace-after").addEventListener("click", () => move(1));
    addEventListener("hashchange", fromHash);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((part) => { part.open = true; });
    root.classList.add("print");
    drawAll();
  });
  addEventListener("afterprint", () => {
    closed.forEach((part) => { part.open = false; });
    root.classList.remove("print");
    drawAll();
  });
  drawInTurns(plots);
  if (table && data.first !== null) {
    show(data.first, false);
    fromHash();
  }
})();
