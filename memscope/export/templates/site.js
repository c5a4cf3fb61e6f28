// The index of entries: searches, sorts and pages rows that the files in data/ hand over through memscope.add().
// Rows are [entry, selections, drift, layers, main layer, title, words, sentence, triples], and, where layers have entries
// of their own, its label and its number in the layer. Texts are set as textContent.
"use strict";
const memscope = (() => {
  const PAGE = 100;
  const COLUMNS = { entry: 0, count: 1, drift: 2, layers: 3, layer: 4 };
  const find = id => document.getElementById(id);
  const rows = [];
  const page = document.documentElement.dataset;
  const state = { q: "", sort: "count", down: true, page: 0 };
  let shown = [];
  let waiting = false;

  function readAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    state.q = wanted.get("q") || "";
    state.sort = wanted.get("sort") in COLUMNS ? wanted.get("sort") : "count";
    state.down = wanted.get("order") !== "up";
    state.page = Math.max(0, (parseInt(wanted.get("page"), 10) || 1) - 1);
  }

  function writeAddress() {
    const now = new URLSearchParams();
    if (state.q) now.set("q", state.q);
    if (state.sort !== "count") now.set("sort", state.sort);
    if (!state.down) now.set("order", "up");
    if (state.page) now.set("page", state.page + 1);
    history.replaceState(null, "", "#" + now);
  }

  // Every word must occur; a single number also finds the entry of that number.
  function search() {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const number = words.length === 1 && /^\d+$/.test(words[0]) ? Number(words[0]) : -1;
    const hit = row => (row[10] ?? row[0]) === number || words.every(word => row.text.includes(word));
    shown = words.length ? rows.filter(hit) : rows.slice();
    const column = COLUMNS[state.sort], sign = state.down ? -1 : 1;
    shown.sort((a, b) => sign * (a[column] - b[column]) || a[0] - b[0]);
  }

  function cell(kind, text) {
    const made = document.createElement("td");
    made.className = kind;
    made.textContent = text;
    return made;
  }

  function line(row) {
    const made = document.createElement("tr");
    const link = document.createElement("a");
    link.href = memscope.path(row[0]);
    link.textContent = row[9] ?? row[0];
    const number = cell("n", "");
    number.append(link);
    const text = cell("prose", "");
    if (row[5]) {
      const title = document.createElement("strong");
      title.textContent = row[5];
      text.append(title);
    }
    const sentence = document.createElement("span");
    sentence.className = row[7] === null ? "sentence soft" : "sentence";
    sentence.textContent = row[7] === null ? "started random" : row[7];
    if (!("startless" in page)) text.append(sentence);
    const drift = row[2] === null ? "" : row[2].toFixed(3);
    made.append(number, cell("n", row[1].toLocaleString("en")), cell("n hide", row[4] + (row[3] > 1 ? " +" + (row[3] - 1) : "")));
    if (document.querySelector("th[data-sort=drift]")) made.append(cell("n", drift));
    made.append(text);
    return made;
  }

  function draw() {
    waiting = false;
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const first = state.page * PAGE;
    find("rows").replaceChildren(...shown.slice(first, first + PAGE).map(line));
    const last = Math.min(first + PAGE, shown.length);
    const loading = rows.length < memscope.expected ? ` (loading: ${rows.length.toLocaleString("en")} of ${memscope.expected.toLocaleString("en")})` : "";
    find("found").textContent = shown.length ? `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${shown.length.toLocaleString("en")} ${page.words}${loading}` : `no ${page.words} found${loading}`;
    find("back").disabled = state.page === 0;
    find("on").disabled = state.page === pages - 1;
    for (const head of document.querySelectorAll("th[data-sort]")) {
      if (head.dataset.sort === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      head.querySelector("i").textContent = head.dataset.sort === state.sort ? (state.down ? " ▾" : " ▴") : "";
    }
  }

  function update() {
    search();
    draw();
    if (rows.length >= memscope.expected) writeAddress();
  }

  function turn(step) {
    state.page += step;
    draw();
    writeAddress();
    find("table").scrollIntoView();
  }

  document.addEventListener("DOMContentLoaded", () => {
    const box = find("search");
    box.value = state.q;
    box.addEventListener("input", () => { state.q = box.value; state.page = 0; update(); });
    find("back").addEventListener("click", () => turn(-1));
    find("on").addEventListener("click", () => turn(1));
    for (const head of document.querySelectorAll("th[data-sort] button")) {
      head.addEventListener("click", () => {
        const name = head.parentElement.dataset.sort;
        state.down = name === state.sort ? !state.down : name !== "entry" && name !== "layer";
        state.sort = name;
        state.page = 0;
        update();
      });
    }
    addEventListener("hashchange", () => { readAddress(); box.value = state.q; update(); });
    update();
  });
  readAddress();

  return {
    expected: Number(page.entries),
    path: entry => `page.html#${entry}`,
    add(more) {
      for (const row of more) {
        const tokens = (row[5] || "").match(/“.*?”/g) || [];  // not the numbers and words around them
        row.text = [...tokens, row[6], row[7], row[8]].join(" ").toLowerCase();
        rows.push(row);
      }
      if (!waiting && document.readyState !== "loading") {
        waiting = true;
        requestAnimationFrame(update);
      }
    },
  };
})();
