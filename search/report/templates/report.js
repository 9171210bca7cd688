// The page is complete without this script: it sorts tables, and compares two pictures of a frame by a slider.
const number = (cell) => parseFloat(cell.textContent.trim().replace("\u2212", "-"));

function compareCells(one, other) {
  const [a, b] = [number(one), number(other)];
  if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
  return Number.isNaN(a) ? one.textContent.localeCompare(other.textContent) : b - a;
}

function sortBy(table, head, column) {
  const again = head.getAttribute("aria-sort") === "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", again ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  const [means, others] = [rows.filter((r) => r.className === "strong"), rows.filter((r) => r.className !== "strong")];
  others.sort((a, b) => compareCells(a.cells[column], b.cells[column]) * (again ? -1 : 1));
  table.tBodies[0].append(...others, ...means);
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.tabIndex = 0;
    head.title = "sort by this column";
    head.addEventListener("click", () => sortBy(table, head, column));
    head.addEventListener("keydown", (event) => event.key === "Enter" && sortBy(table, head, column));
  });
}

function choice(label, names, selected) {
  const select = document.createElement("select");
  select.setAttribute("aria-label", label);
  select.append(...names.map((name) => new Option(name, name, false, name === selected)));
  return select;
}

for (const frame of document.querySelectorAll(".frame")) {
  const pictures = new Map([...frame.querySelectorAll("img")].map((image) => [image.dataset.name, image.src]));
  const names = [...pictures.keys()];
  const box = document.createElement("div");
  box.className = "compare";
  const [under, over] = [new Image(), new Image()];
  const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 100, value: 50 });
  slider.setAttribute("aria-label", "share of the left picture");
  const left = choice("left picture", names, pictures.has("checkpoint") ? "checkpoint" : "start");
  const right = choice("right picture", names, "best");
  const update = () => {
    over.src = pictures.get(left.value);
    under.src = pictures.get(right.value);
    [over.alt, under.alt] = [left.value, right.value];
    over.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
  };
  for (const control of [left, right, slider]) control.addEventListener("input", update);
  const stack = document.createElement("div");
  stack.append(under, over, slider);
  const choices = document.createElement("p");
  choices.append(left, right);
  box.append(stack, choices);
  frame.querySelector("p").after(box);
  update();
}
