// The pictures of the chosen view, and the table that chooses it. Text reaches the page as textContent only.
const { labels, views } = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const body = element("views").tBodies[0];
const [pair, under, over] = [element("pair"), element("under"), element("over")];
const modes = [...element("modes").children];
let [current, mode] = [0, "slider"];

function show() {
  const view = views[current];
  const [left, right] = [Number(element("left").value), Number(element("right").value)];
  const [first, second] = [view.pictures[left], view.pictures[right]];
  const shown = mode === "map" && view.error_map ? "map" : mode === "map" ? "slider" : mode;
  element("name").textContent = view.name;
  element("left-name").textContent = shown === "map" ? "FLIP: brighter is a larger error" : labels[left];
  element("right-name").textContent = shown === "map" ? "" : labels[right];
  element("message").textContent = first && second ? "" : "The pictures of this view are not in this page.";
  element("frame").hidden = !(first && second);
  pair.className = shown;
  if (first && second) {
    [under.src, over.src] = shown === "map" ? [view.error_map, view.error_map] : [first, second];
    [under.alt, over.alt] = shown === "map" ? ["Error map of " + view.name, ""] : [labels[left] + " of " + view.name, labels[right]];
  }
  for (const button of modes) {
    button.setAttribute("aria-pressed", String(button.dataset.mode === shown));
    if (button.dataset.mode === "map") button.hidden = !view.error_map;
  }
  for (const row of body.rows) {
    const chosen = Number(row.dataset.view) === current;
    row.tabIndex = chosen ? 0 : -1;
    row.classList.toggle("chosen", chosen);
    row.setAttribute("aria-current", String(chosen));
  }
}

function choose(row) {
  current = Number(row.dataset.view);
  show();
}

// Portraits stay lower than the window.
under.addEventListener("load", () => element("frame").style.setProperty("--aspect", under.naturalWidth / under.naturalHeight));
element("divider").addEventListener("input", (event) => pair.style.setProperty("--x", event.target.value + "%"));
for (const button of modes) button.addEventListener("click", () => { mode = button.dataset.mode; show(); });
for (const [index, id] of ["left", "right"].entries()) {
  const select = element(id);
  labels.forEach((label, number) => select.add(new Option(label, number)));
  // Two runs, where there are two; else the photo and the render.
  select.value = String(index + (labels.length > 2 ? 1 : 0));
  element(id + "-label").hidden = labels.length < 3;
  select.addEventListener("change", show);
}

body.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row) choose(row);
});
body.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const row = event.target.closest("tr");
  if (!step || !row) return;
  event.preventDefault();
  const next = body.rows[[...body.rows].indexOf(row) + step];
  if (!next) return;
  choose(next);
  next.focus();
});

const headings = [...element("views").tHead.rows[0].cells];
const value = (row, column) => {
  const cell = row.cells[column];
  return column ? parseFloat(cell.dataset.v ?? "NaN") : cell.textContent;
};
for (const [column, heading] of headings.entries()) {
  heading.firstChild.addEventListener("click", () => {
    const falling = heading.getAttribute("aria-sort") === "ascending";
    for (const each of headings) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const sign = falling ? -1 : 1;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      if (column === 0) return sign * x.localeCompare(y, "en", { numeric: true });
      // Views without the figure come last.
      return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || 0;
    });
    body.append(...rows);
  });
}
element("viewer").hidden = !views.some((view) => view.pictures.some(Boolean));
show();
