// --- The page. ---

let CONTENT = JSON.parse(document.getElementById("content").textContent);

function header(content) {
  const facts = el("dl", { class: "facts" }, content.facts.map(([name, value]) => fact(name, value)));
  const made = el("p", { class: "made" }, `Made ${content.made}`, content.command ? [" by ", el("code", {}, content.command)] : null,
    document.documentElement.dataset.live === undefined ? null : el("span", { id: "live", role: "status" }, "live"));
  const warnings = [...content.versions.map((text) => `Versions differ. ${text}.`), ...content.problems];
  document.getElementById("header").replaceChildren(
    el("div", { class: "top" }, el("div", {}, el("p", { class: "kicker" }, "Distillation report"), el("h1", {}, content.title)), themeButton()),
    facts, made,
    ...(warnings.length ? [el("details", { class: "problem", open: warnings.length < 4 }, el("summary", {}, `${warnings.length} ${warnings.length === 1 ? "caution" : "cautions"}`), el("ul", {}, warnings.slice(0, 200).map((text) => el("li", {}, text))))] : []));
}

function themeButton() {
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => (dark() ? "Light" : "Dark");
  return el("button", { id: "theme", click: (event) => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    event.currentTarget.textContent = name();
  } }, name());
}

function sections(content) {
  const alone = content.details[content.only]; // of a page of one run
  const found = [
    alone ? card("run-scores", "Scores", runScores(content.only, alone)) : null,
    content.pivots.length ? pivotCard(content) : null,
    content.differences.length ? differenceCard(content) : null,
    alone && alone.answers ? card("answers", "Answers side by side", answers(alone.answers, "answers-alone")) : null,
    content.curves.length ? curveCard(content) : null,
    content.positions.length ? positionCard(content) : null,
    content.fronts.length ? frontCard(content) : null,
    alone ? card("run-facts", "The run", runFacts(content.only, content)) : null,
    content.runs.rows.length ? runsCard(content) : card("runs", "Runs", el("p", { class: "empty" }, "There is no run yet.")),
    ...content.tables.map((table) => card(table.name, table.title, dataTable(table, { id: `${table.name}-table`, filter: table.rows.length > 20 }))),
  ];
  return found.filter(Boolean);
}

function render(content) {
  CONTENT = content;
  const held = document.activeElement && document.activeElement.id, top = scrollY;
  header(content);
  const found = sections(content);
  document.getElementById("main").replaceChildren(...found, el("footer", {}, el("p", {}, content.rule)));
  document.getElementById("nav").replaceChildren(...found.map((one) => el("a", { href: `#${one.id}` }, one.querySelector("h2").textContent)));
  scrollTo({ top, behavior: "instant" });
  if (held) document.getElementById(held)?.focus({ preventScroll: true });
}

function fromAddress() {
  const found = /^#run-(\d+)$/.exec(location.hash);
  if (found && CONTENT.runs.rows[Number(found[1])]) openRun(Number(found[1]));
}

const dialog = document.getElementById("run");
dialog.addEventListener("close", () => { hideTip(); history.replaceState(null, "", location.pathname + location.search); });
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
addEventListener("hashchange", fromAddress);
addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hideTip();
    dialog.close(); // also from a filter box, which the first Escape would only empty
  }
  if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName) && !dialog.open) {
    event.preventDefault();
    document.getElementById("runs-table-filter")?.focus();
  }
});
addEventListener("beforeprint", () => document.querySelectorAll("main details").forEach((one) => { one.open = true; }));

render(CONTENT);
fromAddress();

// --- Live: the state names the content; another state, another content. ---

async function follow(state) {
  const sign = () => document.getElementById("live");
  for (;;) {
    await new Promise((later) => setTimeout(later, 2000));
    try {
      const now = await (await fetch("state", { cache: "no-store" })).text();
      if (now !== state) {
        render(await (await fetch("content.json", { cache: "no-store" })).json());
        state = now;
      }
      sign().textContent = "live";
      sign().classList.remove("lost");
    } catch {
      sign().textContent = "the server has ended; this is its last state";
      sign().classList.add("lost");
    }
  }
}

if (document.documentElement.dataset.live !== undefined) follow(document.documentElement.dataset.live);
