// --- One run: its scores, curves, answers and settings. ---

function runsCard(content) {
  return card("runs", "Runs", el("p", { class: "lead" }, "Choose a run for its scores, curves, answers and settings."),
    dataTable(content.runs, { id: "runs-table", filter: true, open: openRun }));
}

/** Open the drill-down of the run with this place in the table. */
function openRun(place) {
  if (place === undefined || place === null) return;
  const dialog = document.getElementById("run");
  history.replaceState(null, "", `#run-${place}`);
  const name = textOf(CONTENT.runs.rows[place][0]);
  dialog.replaceChildren(
    el("div", { class: "bar-top" }, el("h2", { id: "run-title" }, name),
      el("button", { class: "close", "aria-label": "Close", click: () => dialog.close() }, "✕")),
    el("div", { class: "inside" }, runBody(place, CONTENT)));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function runBody(place, content) {
  const found = content.details[place];
  if (!found) return [rowFacts(place, content), el("p", { class: "empty" }, content.rule)];
  return [runScores(place, found), found.answers ? part("Answers side by side", answers(found.answers, `answers-${place}`)) : null, smallCurves(found.curves || {}), part("The run", runFacts(place, content))];
}

const part = (title, ...children) => el("section", { class: "part" }, el("h3", {}, title), children);

function runScores(place, found) {
  return [
    found.problems.map((text) => el("p", { class: "problem", role: "alert" }, text)),
    (found.tables || []).map((table, i) => part(table.title, dataTable(table, { id: `score-${place}-${i}` }))),
  ];
}

/** The run's row in the table, facts of its folder, and its settings. */
function runFacts(place, content) {
  const found = content.details[place];
  return [rowFacts(place, content), el("dl", { class: "facts wide" }, found.facts.map(([name, value]) => fact(name, value))), settings(found, content, place)];
}

const rowFacts = (place, content) => el("dl", { class: "facts" }, content.runs.columns.map((column, i) => fact(words(column), words(textOf(content.runs.rows[place][i])))));

const fact = (name, value) => (value === "" || value === "–" ? null : el("div", {}, el("dt", {}, name), el("dd", {}, value)));

function smallCurves(curves) {
  const names = Object.keys(curves);
  if (!names.length) return null;
  return part("Curves", el("div", { class: "small-charts" }, names.map((name) =>
    el("figure", {}, el("figcaption", {}, name), figure((width) => lineChart(width, [{ name, style: styleOf(0), curve: curves[name] }], { x: "step", label: `${name} by step`, height: 150, small: true }))))),
  notes({ notes: ["One run, one seed: lines have no interval."] }));
}

const SIGNS = { gained: "▲ gained", lost: "▼ lost", "as before": "as before" };

function answers(found, id) {
  const place = el("div", { class: "answers" }), count = el("span", { class: "count", "aria-live": "polite" });
  const kinds = distinct(found.items.map((one) => one.change)).filter(Boolean);
  function draw(kind) {
    const kept = found.items.filter((one) => kind === "all" || one.change === kind);
    count.textContent = `${kept.length} of ${found.items.length} shown here`;
    place.replaceChildren(...kept.map((one) => answered(one, found)));
  }
  const control = select(id, "score against before", ["all", ...kinds], draw);
  draw(chosen.get(id));
  return [el("div", { class: "controls" }, control, count), place, notes(found)];
}

function answered(one, { systems, before }) {
  return el("article", { class: "answer" },
    el("header", {}, el("span", { class: `change ${one.change.split(" ")[0]}` }, SIGNS[one.change] || ""), el("code", {}, one.id)),
    el("div", { class: "asked" }, el("div", {}, el("h4", {}, "prompt"), el("p", {}, one.prompt)), el("div", {}, el("h4", {}, "reference"), el("p", {}, one.reference))),
    el("div", { class: "given" }, systems.map((system, i) => given(system, one.answers[i], i === before ? "del" : "ins"))));
}

/** An answer of a system; of its pieces, those that are lists are changed: words that are gone (del) or new (ins). */
function given(system, answer, mark) {
  if (!answer) return el("div", {}, el("h4", {}, system), el("p", { class: "empty" }, "no answer"));
  const [pieces, score, value, more] = answer;
  const sign = value === 1 ? "✓ " : value === 0 ? "✗ " : "";
  return el("div", { class: value === 1 ? "right" : null }, el("h4", {}, system, el("span", { class: "score" }, `${sign}${score}`)),
    pieces.length ? el("p", {}, pieces.map((piece) => (Array.isArray(piece) ? el(mark, {}, piece) : piece))) : el("p", { class: "empty" }, "(empty)"), more ? el("small", {}, more) : null);
}

function settings(found, content, place) {
  const pairs = found.settings.flatMap((one) => content.settings[one]);
  if (!pairs.length) return null;
  const table = { title: "Settings", columns: ["setting", "value"], rows: pairs, labels: 1, notes: [], command: null };
  return el("details", {}, el("summary", {}, `Settings (${pairs.length})`), dataTable(table, { id: `settings-${place}`, filter: true }));
}
