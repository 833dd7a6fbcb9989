// --- Charts: lines with bands, and points with intervals, as wide as their place. ---

const COLOURS = 7, DASHES = ["", "6 3", "6 2 1.5 2", "1.5 2.5"];
const MARKS = [ // paths of radius 4 around 0, 0, in the order of the figures' markers
  "M4,0A4,4 0 1,1 -4,0A4,4 0 1,1 4,0Z", "M-3.5,-3.5H3.5V3.5H-3.5Z", "M0,-5L5,0L0,5L-5,0Z", "M0,-4.5L4.3,3.2H-4.3Z",
  "M0,4.5L4.3,-3.2H-4.3Z", "M-1.5,-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",
  "M-4,-2L-2,-4L0,-2L2,-4L4,-2L2,0L4,2L2,4L0,2L-2,4L-4,2L-2,0Z", "M0,-5L1.3,-1.6H4.8L2,0.7L3,4.2L0,2.1L-3,4.2L-2,0.7L-4.8,-1.6H-1.3Z",
  "M-4.5,0L3.2,-4.3V4.3Z", "M4.5,0L-3.2,-4.3V4.3Z",
];
const styleOf = (place) => ({ colour: `var(--line${place % COLOURS})`, mark: MARKS[place % MARKS.length], dash: DASHES[Math.floor(place / COLOURS) % DASHES.length] });

function markOf(style, attributes) {
  return svg("path", { d: style.mark, fill: style.colour, ...attributes });
}

const swatch = (style) => svg("svg", { class: "swatch", viewBox: "-12 -6 24 12", width: 24, height: 12, "aria-hidden": "true" },
  svg("line", { x1: -12, x2: 12, y1: 0, y2: 0, stroke: style.colour, "stroke-width": 1.8, "stroke-dasharray": style.dash || null }), markOf(style, {}));

/** A number beside an axis. */
function tick(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e15 || size < 1e-3) return value.toExponential(0).replace("e+", "e");
  for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return `${Number((value / unit).toPrecision(3))}${name}`;
  }
  return String(Number(value.toPrecision(3)));
}
const precise = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(4))));

function linear(low, high, from, to, count) {
  if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const ticks = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) ticks.push(Number(at.toPrecision(12)));
  return { at: (value) => from + (to - from) * (value - low) / (high - low), ticks };
}

function logarithmic(low, high, from, to) {
  const inner = linear(Math.log10(low), Math.log10(high), from, to, 5);
  let ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) ticks.push(10 ** power, 2 * 10 ** power, 5 * 10 ** power);
  ticks = ticks.filter((one) => one >= low * 0.999 && one <= high * 1.001);
  while (ticks.length > 7) ticks = ticks.filter((_, i) => i % 2 === 0);
  return { at: (value) => inner.at(Math.log10(value)), ticks };
}

const finite = (values) => values.filter((value) => value !== null && value !== undefined && Number.isFinite(value));
const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const greatest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

/** Axes with their names; returns the drawing, both scales and the size. */
function frame(width, height, xs, ys, options) {
  const left = 54, right = 14, top = options.small ? 8 : 14, bottom = options.small ? 24 : 40;
  const pad = (greatest(ys) - least(ys)) * 0.05;
  const x = linear(least(xs) - (options.pad || 0) * (greatest(xs) - least(xs)), greatest(xs) + (options.pad || 0) * (greatest(xs) - least(xs)), left, width - right, Math.max(2, Math.min(7, width / 110)));
  const y = options.log ? logarithmic(least(ys), greatest(ys), height - bottom, top) : linear(least(ys) - pad, greatest(ys) + pad, height - bottom, top, options.small ? 3 : 6);
  const drawing = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": options.label, tabindex: options.small ? null : "0" });
  for (const value of y.ticks) {
    drawing.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y.at(value), y2: y.at(value) }),
      svg("text", { x: left - 7, y: y.at(value) + 4, "text-anchor": "end" }, tick(value)));
  }
  if (options.names) x.ticks = spaced(options.names.length, (width - left - right) / 62);
  for (const value of x.ticks) {
    drawing.append(svg("line", { class: "tick", x1: x.at(value), x2: x.at(value), y1: height - bottom, y2: height - bottom + 4 }),
      svg("text", { x: x.at(value), y: height - bottom + 16, "text-anchor": "middle" }, options.names ? options.names[value][0] : tick(value)));
  }
  drawing.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  if (!options.small) drawing.append(svg("text", { class: "name", x: width - right, y: height - 4, "text-anchor": "end" }, options.x));
  return { drawing, x, y, left, right, top, bottom };
}

/** Places from 0 to `count` - 1 at equal distances, `most` of them or fewer. */
function spaced(count, most) {
  const every = Math.ceil(count / most);
  return Array.from({ length: Math.ceil(count / every) }, (_, i) => i * every);
}

/** A path through the points that are there. */
function path(curve, key, x, y) {
  let text = "", gap = true;
  curve.x.forEach((step, i) => {
    const value = curve[key][i];
    if (value === null || !Number.isFinite(y.at(value))) { gap = true; return; }
    text += `${gap ? "M" : "L"}${x.at(step).toFixed(1)},${y.at(value).toFixed(1)}`;
    gap = false;
  });
  return text;
}

function bandPath(curve, x, y) {
  const kept = curve.x.map((_, i) => i).filter((i) => curve.low[i] !== null && curve.high[i] !== null && Number.isFinite(y.at(curve.low[i])));
  const at = (i, key) => `${x.at(curve.x[i]).toFixed(1)},${y.at(curve[key][i]).toFixed(1)}`;
  return kept.length < 2 ? "" : `M${kept.map((i) => at(i, "high")).join("L")}L${kept.reverse().map((i) => at(i, "low")).join("L")}Z`;
}

/** Lines over steps. `lines`: name, style, curve (x, y, low, high), thin. `options`: x, label, height, log, small; names: [text, more] of x = 0, 1, …. */
function lineChart(width, lines, options) {
  const used = lines.filter((line) => finite(line.curve.y).length);
  if (!used.length) return el("p", { class: "empty" }, "Nothing was logged here.");
  const ys = used.flatMap((line) => finite([...line.curve.y, ...(line.curve.low || []), ...(line.curve.high || [])])).filter((one) => !options.log || one > 0);
  const plot = frame(width, options.height, options.names ? [0, options.names.length - 1] : used.flatMap((line) => line.curve.x), ys, options);
  const { drawing, x, y } = plot;
  for (const { curve, style } of used) {
    if (curve.low && !options.log) drawing.append(svg("path", { d: bandPath(curve, x, y), fill: style.colour, class: "band" }));
  }
  for (const { name, curve, style, thin } of used) {
    drawing.append(svg("path", { d: path(curve, "y", x, y), class: "line", stroke: style.colour, "stroke-width": thin ? 1 : 2, "stroke-dasharray": style.dash || null, opacity: thin ? 0.65 : null }, svg("title", {}, name)));
    const every = Math.max(1, Math.ceil(curve.x.length / (options.small ? 1 : 9)));
    if (!thin && !options.small) curve.x.forEach((step, i) => {
      if (i % every === 0 && curve.y[i] !== null && Number.isFinite(y.at(curve.y[i]))) {
        drawing.append(markOf(style, { transform: `translate(${x.at(step)},${y.at(curve.y[i])})` }));
      }
    });
  }
  readable(plot, used, width, options);
  return drawing;
}

/** Values at the step under the pointer, or at the one that the arrow keys chose. */
function readable(plot, lines, width, options) {
  const { drawing, x, left, right, top, bottom } = plot;
  const steps = [...new Set(lines.flatMap((line) => line.curve.x))].sort((a, b) => a - b);
  const rule = svg("line", { class: "rule", y1: top, y2: options.height - bottom, visibility: "hidden" });
  drawing.append(rule);
  let place = 0;
  function show(event) {
    const step = steps[place];
    rule.setAttribute("x1", x.at(step));
    rule.setAttribute("x2", x.at(step));
    rule.setAttribute("visibility", "visible");
    const rows = lines.filter((line) => !line.thin || lines.length < 12).map(({ name, curve, style }) => {
      const i = curve.x.indexOf(step);
      if (i < 0) return null;
      const range = curve.low && curve.low[i] !== null ? ` [${precise(curve.low[i])}, ${precise(curve.high[i])}]` : "";
      return [swatch(style), name, `${precise(curve.y[i])}${range}`];
    }).filter(Boolean).slice(0, 16);
    const [name, ...more] = options.names ? options.names[step] : [step];
    tip(event, [`${options.x || "step"} ${name}`, ...more].join(", "), rows);
  }
  const hide = () => { rule.setAttribute("visibility", "hidden"); hideTip(); };
  drawing.addEventListener("pointermove", (event) => {
    const at = (event.clientX - drawing.getBoundingClientRect().left) * width / drawing.getBoundingClientRect().width;
    if (at < left - 8 || at > width - right + 8) return hide();
    const away = steps.map((step) => Math.abs(x.at(step) - at));
    place = away.indexOf(least(away));
    show(event);
  });
  drawing.addEventListener("pointerleave", hide);
  drawing.addEventListener("blur", hide);
  drawing.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    place = Math.max(0, Math.min(steps.length - 1, place + move));
    const box = drawing.getBoundingClientRect();
    show({ clientX: box.left + x.at(steps[place]) * box.width / width, clientY: box.top + 20 });
  });
}

/** Points with intervals and the front. `points`: name, style, x, y, low, high, text, cost, front, open. */
function scatter(width, points, options) {
  const ys = points.flatMap((one) => finite([one.y, one.low, one.high]));
  const { drawing, x, y } = frame(width, options.height, points.map((one) => one.x), ys, { ...options, pad: 0.06 });
  drawing.append(svg("text", { class: "name", x: 6, y: 10 }, ""));
  for (const data of distinct(points.map((one) => one.data))) { // runs of other data have a front of their own
    const line = points.filter((one) => one.front && one.data === data).sort((a, b) => a.x - b.x);
    const steps = line.map((one, i) => (i ? `H${x.at(one.x).toFixed(1)}V${y.at(one.y).toFixed(1)}` : `M${x.at(one.x).toFixed(1)},${y.at(one.y).toFixed(1)}`));
    drawing.append(svg("path", { d: steps.join(""), class: "front" }));
  }
  for (const one of points) {
    const title = svg("title", {}, `${one.name}: ${one.text}; ${options.x} ${one.cost}${one.front ? "; on the front" : ""}`);
    const ends = one.low === null || one.high === null ? null : svg("line", { x1: x.at(one.x), x2: x.at(one.x), y1: y.at(one.low), y2: y.at(one.high), stroke: one.style.colour, "stroke-width": 1.4 });
    const show = (event) => tip(event, one.name, [[swatch(one.style), options.y, one.text], [null, options.x, one.cost]]);
    const mark = svg("g", {
      class: "mark", tabindex: "0", role: "button", "aria-label": title.textContent, click: one.open,
      keydown: (event) => { if (event.key === "Enter") one.open(); },
      pointermove: show, pointerleave: hideTip, blur: hideTip,
      focus: () => { const box = mark.getBoundingClientRect(); show({ clientX: box.right, clientY: box.top }); },
    }, title, ends, markOf(one.style, { transform: `translate(${x.at(one.x)},${y.at(one.y)}) scale(1.5)` }));
    drawing.append(mark);
  }
  return drawing;
}

/** A place that `draw(width)` fills, again whenever its width changes. */
function figure(draw) {
  const place = el("div", { class: "figure" });
  let width = 0;
  place.redraw = () => { if (width) { hideTip(); place.replaceChildren(draw(width)); } };
  new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now && Math.abs(now - width) > 1) { width = now; place.redraw(); }
  }).observe(place);
  return place;
}
