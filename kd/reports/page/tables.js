// --- Tables: sorted, filtered, 500 rows at once. ---

const MOST_ROWS = 500;
const order = new Intl.Collator("en", { numeric: true });
const EMPTY = new Set(["", "–"]);

/** Places of `rows` sorted by a column; what is missing comes last, either way. */
function sorted(rows, column, direction) {
  const key = rows.map((row) => valueOf(row[column]) ?? textOf(row[column]));
  const missing = (one) => typeof one === "string" && EMPTY.has(one.trim());
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : order.compare(String(a), String(b)));
  return rows.map((_, place) => place).sort((a, b) => {
    if (missing(key[a]) || missing(key[b])) return missing(key[a]) - missing(key[b]) || a - b;
    return direction * compare(key[a], key[b]) || a - b;
  });
}

/** A table that sorts by its heads. `options`: id, filter (a box above), open (called with the place of a row). */
function dataTable(found, options) {
  if (!found.columns.length) return [notes(found)];
  const state = chosen.get(options.id) || { column: null, direction: 1, query: "", most: MOST_ROWS };
  chosen.set(options.id, state);
  const body = el("tbody");
  const count = el("span", { class: "count", "aria-live": "polite" });
  const more = el("button", { class: "more", click: () => { state.most += MOST_ROWS; draw(); } });
  const lower = found.rows.map((row) => row.map(textOf).join(" ").toLowerCase());
  const scale = found.bars === undefined ? null : barScale(found.rows.map((row) => row[found.bars]));
  const numeric = found.columns.map((_, i) => found.rows.some((row) => valueOf(row[i]) !== null));

  const heads = found.columns.map((name, i) => el("th", { scope: "col", class: i === found.bars ? "barred" : numeric[i] ? "number" : null },
    el("button", { click: () => sortBy(i) }, el("span", {}, name || "system"))));

  function sortBy(column) {
    const again = state.column === column;
    state.direction = again ? -state.direction : numeric[column] ? -1 : 1;
    state.column = column;
    draw();
  }

  function draw() {
    const wanted = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    const places = state.column === null ? found.rows.map((_, i) => i) : sorted(found.rows, state.column, state.direction);
    const kept = places.filter((place) => wanted.every((word) => lower[place].includes(word)));
    body.replaceChildren(...kept.slice(0, state.most).map((place) => row(place)));
    heads.forEach((head, i) => {
      if (i === state.column) head.setAttribute("aria-sort", state.direction > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const all = found.rows.length;
    count.textContent = kept.length === all ? `${all} rows` : `${kept.length} of ${all} rows`;
    more.hidden = kept.length <= state.most;
    more.textContent = `Show ${Math.min(MOST_ROWS, kept.length - state.most)} more of ${kept.length}`;
  }

  function row(place) {
    const open = options.open && (() => options.open(place));
    const cells = found.rows[place].map((cell, i) => {
      const shown = i === found.bars ? [bar(cell, scale), el("span", {}, textOf(cell))] : estimate(cell);
      const named = i === 0 && open ? el("button", { class: "link", click: (e) => { e.stopPropagation(); open(); } }, textOf(cell)) : shown;
      const kind = [i === found.bars ? "barred" : numeric[i] ? "number" : "", Array.isArray(cell) && cell[5] ? "best" : ""];
      return el(i < found.labels ? "th" : "td", { scope: i < found.labels ? "row" : null, class: kind.join(" ").trim() || null, title: said(cell) }, named);
    });
    return el("tr", { class: open ? "opens" : null, click: open || null }, cells);
  }

  const box = options.filter && el("input", {
    id: `${options.id}-filter`, type: "search", placeholder: "Filter, as in: fkl seed 1", value: state.query,
    "aria-label": `Filter the table ${found.title}`,
    input: (event) => { state.query = event.target.value; state.most = MOST_ROWS; draw(); },
  });
  draw();
  const table = el("table", { id: options.id }, el("caption", {}, found.title), el("thead", {}, el("tr", {}, heads)), body);
  return [
    options.filter ? el("div", { class: "controls" }, box, count) : null,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": found.title }, table),
    more, notes(found),
  ];
}

/** `value [low, high]`, or `value n=…` with the interval below: all but the value is smaller. */
function estimate(cell) {
  const text = textOf(cell);
  const place = Array.isArray(cell) ? text.search(/\[|n=/) : -1;
  if (place < 0) return text;
  return [text.slice(0, place), el("small", {}, text.slice(place))];
}

/** Value, interval and n of a cell in words, shown when the pointer rests on it. */
function said(cell) {
  if (!Array.isArray(cell) || cell.length < 3) return null;
  const [text, , low, high, n, best] = cell;
  const interval = low === null || low === undefined ? "no interval" : `95 % interval ${low} to ${high}`;
  return `${words(text).split(/ (?:\[|n=)/)[0]}, ${interval}${n ? `, n = ${n}` : ""}${best ? "; better, as the corrected test has it" : ""}`;
}

// --- Intervals drawn inside a table, on one scale with zero. ---

function barScale(cells) {
  const ends = cells.filter(Array.isArray).flatMap(([, value, low, high]) => [value, low ?? value, high ?? value]);
  const low = Math.min(0, ...ends), high = Math.max(0, ...ends), room = (high - low || 1) * 0.06;
  return (value) => 160 * (value - low + room) / (high - low + 2 * room);
}

function bar(cell, scale) {
  if (!Array.isArray(cell)) return null;
  const [, value, low, high, , best] = cell;
  const parts = [svg("line", { x1: scale(0), x2: scale(0), y1: 1, y2: 21, class: "zero" })];
  if (low !== null && low !== undefined) parts.push(svg("line", { x1: scale(low), x2: scale(high), y1: 11, y2: 11, class: "interval" }));
  parts.push(svg("circle", { cx: scale(value), cy: 11, r: 4.5, class: best ? "point best" : "point" }));
  return svg("svg", { class: "bar", viewBox: "0 0 160 22", width: 160, height: 22, "aria-hidden": "true" }, parts, svg("title", {}, said(cell) || textOf(cell)));
}
