// --- The figures that compare arms. What is shown is looked up among what Python computed. ---

const distinct = (values) => [...new Set(values)];

/** Selects for the parts of `by`; `draw` gets the one of `all` that was chosen. Later selects offer what is there. */
function choices(id, labels, all, draw) {
  const place = el("div", { class: "controls" });
  function fill() {
    let left = all;
    place.replaceChildren(...labels.map((label, i) => {
      const values = distinct(left.map((one) => one.by[i]));
      const name = `${id}-${i}`;
      const control = select(name, label, values, () => { fill(); document.getElementById(name).focus(); });
      left = left.filter((one) => one.by[i] === chosen.get(name));
      return control;
    }));
    draw(left[0]);
  }
  fill();
  return place;
}

// --- The heat map of a pivot. ---

function pivotCard(content) {
  const place = el("div");
  const controls = choices("pivot", ["rows", "columns", "metric"], content.pivots, (found) => place.replaceChildren(...heatMap(found, content)));
  return card("scores", "Scores", controls, place);
}

function heatMap(found, content) {
  const heads = found.columns.map((name, i) => {
    const [first, ...rest] = name.split("\n");
    return el("th", { scope: "col", class: i < found.labels ? "label" : null }, first, rest.length ? el("small", {}, rest.join(" ")) : null);
  });
  const rows = found.rows.map((row, y) => el("tr", {}, row.map((cell, i) => {
    if (i < found.labels) return el("th", { scope: "row" }, textOf(cell));
    const x = i - found.labels, shade = found.shades[y][x], arm = content.arms[found.arms[y][x]];
    const heading = arm ? `${arm.name}: ${said(cell) || textOf(cell)}, ${arm.seeds.toLowerCase()}` : textOf(cell);
    const shown = arm ? el("button", { click: () => openRun(arm.runs[0]), title: heading }, heatText(cell)) : textOf(cell);
    return el("td", { class: shade === null ? "blank" : `shade shade${shade}` }, shown);
  })));
  const table = el("table", { class: "heat", id: "heat" }, el("caption", {}, found.title), el("thead", {}, el("tr", {}, heads)), el("tbody", {}, rows));
  const legend = el("div", { class: "legend", "aria-hidden": "true" }, `worst of ${found.line === "table" ? "the" : "its"} ${found.line} `, el("span", { class: "ramp" }, Array.from({ length: 9 }, (_, i) => el("i", { class: `shade${i}` }))), " best");
  return [el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": found.title }, table), legend, notes(found)];
}

function heatText(cell) {
  const text = textOf(cell), place = text.search(/[[(]/);
  const [main, rest] = place < 0 ? [text, ""] : [text.slice(0, place), text.slice(place)];
  return [el(Array.isArray(cell) && cell[5] ? "b" : "span", {}, main.trim()), rest ? el("small", {}, rest) : null];
}

// --- Differences. ---

function differenceCard(content) {
  const place = el("div");
  const controls = choices("difference", ["metric"], content.differences, (found) => {
    place.replaceChildren(...dataTable(found, { id: "differences-table" }).filter(Boolean));
  });
  return card("differences", "Differences to the baseline", el("p", { class: "lead" }, "Filled: better, corrected p < 0.05. The line at zero: no difference."), controls, place);
}

// --- Curves. ---

function curveCard(content) {
  const place = el("div"), controls = el("div", { class: "controls" });
  const all = content.curves.flatMap((group) => group.metrics.map((metric) => ({ by: [group.group, metric], group, metric })));
  const chosenOne = { seeds: () => chosen.get("curve-seeds"), log: () => chosen.get("curve-log") };
  let now = all[0];
  const draw = () => place.replaceChildren(...curveFigure(now, content, chosenOne));
  controls.append(choices("curve", ["trained on", "metric"], all, (found) => { now = found; if (place.isConnected || place.childNodes.length) draw(); }),
    checkbox("curve-seeds", "each seed", false, draw), checkbox("curve-log", "logarithmic", false, draw));
  draw();
  return card("curves", "Learning curves", controls, place);
}

function curveFigure({ group, metric }, content, options) {
  const lines = group.lines.filter((line) => line.curves[metric]).map((line) => {
    const arm = content.arms[line.arm];
    const name = line.label || arm.label, style = styleOf(arm ? arm.style : group.lines.indexOf(line));
    return { name, style, curve: line.curves[metric], seeds: line.curves[metric].seeds || {} };
  });
  const [legend, place] = withLegend("curve", lines, (width, seen) => {
    const positive = seen.every((line) => finite(line.curve.y).every((value) => value > 0));
    const seeds = options.seeds() ? seen.flatMap((line) => Object.entries(line.seeds).map(([seed, curve]) => ({ name: `${line.name}, seed ${seed}`, style: line.style, curve, thin: true }))) : [];
    return lineChart(width, [...seeds, ...seen], { x: "step", label: `${metric} by step`, height: Math.max(260, Math.min(400, width * 0.45)), log: options.log() && positive });
  });
  return [legend, el("h3", {}, metric), place, notes({ notes: [...group.notes, "Thinned to their least and greatest values; the arrow keys move from step to step."] })];
}

/** A legend that hides lines and shows them again, and the figure that `draw` makes of those that are seen. */
function withLegend(id, lines, draw) {
  const hidden = chosen.get(`${id}-hidden`) || new Set();
  chosen.set(`${id}-hidden`, hidden);
  const place = figure((width) => draw(width, lines.filter((line) => !hidden.has(line.name))));
  const legend = el("div", { class: "keys", role: "group", "aria-label": "Lines" }, lines.map((line) => el("button", {
    "aria-pressed": String(!hidden.has(line.name)),
    click: (event) => {
      if (!hidden.delete(line.name)) hidden.add(line.name);
      event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(line.name)));
      place.redraw();
    },
  }, swatch(line.style), line.name)));
  return [legend, place];
}

// --- By position. ---

function positionCard(content) {
  const place = el("div");
  const controls = choices("position", ["trained on", "read in", "metric"], content.positions, (found) => place.replaceChildren(...positionFigure(found, content)));
  return card("positions", "By position", controls, place);
}

function positionFigure(found, content) {
  const lines = found.lines.map(({ arm, curve }) => ({ name: content.arms[arm].label, style: styleOf(content.arms[arm].style), curve }));
  const title = found.by[2];
  const [legend, place] = withLegend("position", lines, (width, seen) => lineChart(width, seen, { x: "position", names: found.positions, pad: 0.04, label: `${title} by position`, height: Math.max(260, Math.min(360, width * 0.4)) }));
  return [legend, el("h3", {}, title), place, notes(found)];
}

// --- Score against cost. ---

function frontCard(content) {
  const place = el("div");
  const controls = choices("front", ["trained on", "metric", "cost"], content.fronts, (found) => place.replaceChildren(...frontFigure(found, content)));
  return card("cost", "Score against cost", controls, place);
}

function frontFigure(found, content) {
  const points = found.points.map((one) => ({ ...one, name: content.arms[one.arm].label, style: styleOf(content.arms[one.arm].style), open: () => openRun(content.arms[one.arm].runs[0]) }));
  const place = figure((width) => scatter(width, points, { x: found.x, y: found.y, label: `${found.y} against ${found.x}`, height: Math.max(260, Math.min(380, width * 0.42)) }));
  const keys = el("div", { class: "keys" }, points.slice(0, 40).map((one) => el("span", {}, swatch({ ...one.style, dash: "" }), one.name, one.front ? el("i", {}, "on the front") : null)));
  return [keys, el("h3", {}, `${found.y} against ${found.x}`), place, notes(found)];
}
