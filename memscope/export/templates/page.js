// The page of an entry, page.html#17, drawn from packed data: site_pages.py says what each file holds. Rows of the list tell
// its texts and its rank. Text of the corpus becomes text nodes, never markup.
"use strict";
const memscope = (() => {
  const main = document.querySelector("main");
  const rows = new Map();  // entry -> its row of the list, as in site.js, and its rank
  const order = [];  // entries, most used first
  const files = {}, taken = {};  // name -> promise of what the file holds, and how to keep it
  let site;

  function load(name) {
    return files[name] ??= new Promise(resolve => {
      taken[name] = resolve;
      const script = document.createElement("script");
      script.src = `${name}.js`;
      script.addEventListener("error", () => resolve({}));
      document.head.append(script);
    });
  }

  const file = (folder, number) => load(`${folder}/${String(number).padStart(4, "0")}`);
  const count = number => number.toLocaleString("en");
  const percent = (share, digits) => `${(100 * share).toFixed(digits)}%`;
  const capital = word => word[0].toUpperCase() + word.slice(1);

  // An element; children are elements, texts and lists of them, and nothing where there is none.
  function make(kind, values, ...children) {
    const [tag, ...classes] = kind.split(".");
    const made = document.createElement(tag);
    if (classes.length) made.className = classes.join(" ");
    for (const [name, value] of Object.entries(values ?? {})) made.setAttribute(name, value);
    made.append(...children.flat(2).filter(child => child !== null && child !== undefined && child !== false));
    return made;
  }

  const note = (...children) => make("p.soft.small", null, ...children);
  const link = (entry, text) => make("a", { href: `page.html#${entry}` }, text);
  const nameOf = entry => rows.get(entry)[9] ?? String(entry);

  function table(heads, lines) {
    const head = heads.map(([kind, text]) => make("th." + kind, { scope: "col" }, text));
    const body = lines.map(cells => make("tr", null, cells.map((cell, at) => make("td." + heads[at][0], null, cell))));
    return make("div.scroll", null, make("table", null, make("thead", null, make("tr", null, head)), make("tbody", null, body)));
  }

  // --- text ---

  // A token for readers: spaces at its ends, line ends and tabs become signs.
  function visible(text) {
    const inner = text.replace(/^ +| +$/g, "");
    if (!inner) return "␣".repeat(text.length) || "∅";
    const start = text.indexOf(inner);
    const shown = inner.replaceAll("\n", "↵").replaceAll("\t", "⇥");
    return "␣".repeat(start) + shown + "␣".repeat(text.length - start - inner.length);
  }

  const flat = text => text.replaceAll("\n", " ↵ ").replaceAll("\t", " ");
  const token = (number, values, own) => [make("span.token" + (own ? ".own" : ""), values, visible(site.texts[number])), " "];

  // The document of a row, by its first row.
  function documentOf(row) {
    let low = 0, high = site.documents.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (site.documents[middle][0] <= row) low = middle; else high = middle - 1;
    }
    return low;
  }

  // Text before, of and behind the token of a row, and its place; of a character of several tokens, the whole one.
  function around(row, at) {
    const number = documentOf(row);
    const [start, title] = site.documents[number];
    const end = site.documents[number + 1]?.[0] ?? site.tokens;
    const window = start + Math.floor((row - start) / site.window) * site.window;
    const pieces = (first, last) => {
      let text = "";
      for (let place = first; place < last; place++) if (at(place) >= 0) text += site.texts[at(place)];
      return text;
    };
    const first = row + Math.min(0, at(row));
    let behind = row + 1, begin = Math.max(window, row - site.before), stop = Math.min(end, row + site.after + 1);
    while (behind < end && at(behind) < 0) behind++;
    while (begin < first && at(begin) < 0) begin++;
    while (stop > behind && stop < end && at(stop) < 0) stop--;
    const whole = site.texts[at(first)];
    const word = whole.replace(/^ +/, "") || whole;
    const before = pieces(begin, first) + whole.slice(0, whole.length - word.length);
    return { title, pos: row - start, before, token: word, after: pieces(behind, stop) };
  }

  // --- the parts of a page ---

  function top(entry, page) {
    const [, total, , , , title, words, sentence] = rows.get(entry), rank = rows.get(entry).rank;
    const own = Object.values(site.sites).filter(one => one.own[0] <= entry && entry < one.own[1]);
    const has = new Set(own.flatMap(one => one.has));
    const started = sentence === null ? make("span.soft", null, "started random") : sentence;
    const facts = [["Selections", `${count(total)} of ${count(site.all_selections)} in all layers (rank ${count(rank + 1)} of the ${count(order.length)} ${site.words} listed here)`]];
    if (page.drift !== null) facts.push(["Drift", `${page.drift.toFixed(4)} (1 − cosine to the initial entry)`]);
    if (page.kept !== null) facts.push(["Kept", `${percent(page.kept[0], 0)} of the nearest tokens stand in the init sentence; ${percent(page.kept[1], 0)} before training`]);
    return [
      make("nav", { "aria-label": capital(site.words) },
        make("a", { href: "index.html" }, `All ${site.words}`),
        rank > 0 && link(order[rank - 1], `← more used (${nameOf(order[rank - 1])})`),
        rank + 1 < order.length && link(order[rank + 1], `less used (${nameOf(order[rank + 1])}) →`)),
      make("h1", { tabindex: "-1" }, capital(rows.get(entry)[9] ?? `${site.word} ${entry}`)),
      title && make("p", null, `Fires on: ${title}`),
      title && words && make("p.soft", null, `Words that set it apart: ${words}`),
      has.has("starts") && make("p.lead", null, started),
      make("dl", null, facts.flatMap(([name, value]) => [make("dt", null, name), make("dd", null, value)])),
      page.triples.length && [make("h2", null, "Triples"), table([["prose", "Subject"], ["prose", "Relation"], ["prose", "Object"]], page.triples)],
      usage(page, own, has),
      page.nearest[0].length || page.lens.length ? make("h2", null, "What it says") : null,
      page.nearest[0].length ? nearest(own[0].slots, ...page.nearest) : null,
      page.lens.length ? lens(page.lens, own[0].kind) : null,
    ].flat(2).filter(part => part);
  }

  function bar(share) {
    const space = "http://www.w3.org/2000/svg";
    const picture = document.createElementNS(space, "svg"), box = document.createElementNS(space, "rect");
    for (const [name, value] of [["viewBox", "0 0 100 8"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) picture.setAttribute(name, value);
    box.setAttribute("width", (100 * share).toFixed(1));
    box.setAttribute("height", "8");
    picture.append(box);
    return picture;
  }

  function usage(page, own, has) {
    const shares = page.usage.map(([layer, selections]) => selections / Math.max(1, site.sites[layer].d));
    const largest = Math.max(...shares) || 1;
    const heads = [["n", "Layer"], ["n", "Selections"], ["n", "Share of D"], ["bar", make("span.hide", null, "of its largest share")]];
    if (has.has("scores")) heads.push(["n.hide", site.gate === "gate" ? "Summed gate" : `Summed ${site.gate}s`]);
    if (has.has("reads")) heads.push(["n.hide", "Summed read"]);
    const number = (value, digits) => (value ?? 0).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
    const lines = page.usage.map(([layer, selections, gate, read], at) => [
      String(layer), count(selections), percent(shares[at], 3), bar(shares[at] / largest),
      ...(has.has("scores") ? [number(gate, 1)] : []), ...(has.has("reads") ? [number(read, 2)] : []),
    ]);
    const d = own.map(one => one.d), low = Math.min(...d), high = Math.max(...d);
    return [make("h2", null, "Usage per layer"), table(heads, lines), note(`D = ${count(low)}${low === high ? "" : ` to ${count(high)}`} selections a layer.`)];
  }

  function nearest(slots, tokens, cosines, owns) {
    const which = slots > 1 ? `The nearest token of each of the ${slots} slots` : "Nearest first";
    return [
      make("h3", null, "Nearest tokens"),
      make("p.tokens.mono", null, tokens.map((number, at) => token(number, { title: `cosine ${cosines[at].toFixed(3)}` }, owns[at]))),
      note(`${which}, by cosine in the space the bank was initialised in (best ${Math.max(...cosines).toFixed(2)}); framed ones stand in the init sentence.`),
    ];
  }

  function lens(lines, kind) {
    const said = {
      memory: "Tokens that the entry points to when a layer reads it, all read heads alike, without the output gate.",
      experts: "Tokens that the mean output of the expert points to, over tokens of the text that selected it: an expert has no output of its own.",
    };
    return [
      make("h3", null, "Logit lens"),
      table([["n", "Layer"], ["tokens.mono.prose", "Raises"], ["tokens.mono.prose", "Lowers"]],
        lines.map(([layer, raised, lowered]) => [String(layer), raised.map(each => token(each)), lowered.map(each => token(each))])),
      note(said[kind] ?? `Tokens that what the ${site.word} adds points to.`),
    ];
  }

  function layer([number, selections, docs, on, gates, typical, places, beside], at) {
    const one = site.sites[number];
    const titles = ["after the token", "on the token", "where the model predicts", "where the text goes on with"];
    const short = value => String(Number(value.toPrecision(3)));
    const scores = gates.length ? `; ${one.score}s ${short(gates[0])} to ${short(gates[2])}, median ${short(gates[1])}` : "";
    const scored = one.has.includes("scores");
    const context = (row, gate, read, fifth) => {
      const found = around(row, at);
      const said = [fifth >= 0 && scored && `fifth ${fifth + 1} of 5`, gates.length && `${site.gate} ${short(gate)}`, one.has.includes("reads") && `read ${read < 0 ? "" : "+"}${short(read)}`, `${found.title}, token ${found.pos}`];
      return make("p.context", null, make("span.soft.small", null, said.filter(part => part).join(" · ")),
        (found.pos > site.before ? "…" : "") + flat(found.before), make("mark", null, visible(found.token)), `${flat(found.after)}…`);
    };
    const all = places[0].map((row, place) => [row, places[1][place], places[2][place], places[3][place]]);
    const highest = all.filter(each => each[3] < 0), fifths = all.filter(each => each[3] >= 0);
    return [
      make("h2", null, `Layer ${number}: where it fires`),
      note(`${count(selections)} of D = ${count(one.d)} selections, in ${docs} of ${site.documents.length} documents${scores}.`),
      make("p.tokens", null, make("span.soft.small", null, "fires on"), ` ${on ?? ""}`),
      ...typical.map(([kind, tokens, counts, lifts]) => make("p.tokens", null, make("span.soft.small", null, titles[kind]), " ",
        tokens.map((each, place) => token(each, { title: `${count(counts[place])} times, ${lifts[place].toFixed(1)} times as often as in the text` })))),
      make("h3", null, scored ? `Highest ${one.score}s` : "Some of its tokens"),
      ...highest.map(each => context(...each)),
      ...(fifths.length ? [make("h3", null, scored ? `Samples over all its ${one.score}s, highest fifth first` : "More of its tokens")] : []),
      ...fifths.map(each => context(...each)),
      ...(beside[0].length ? neighbours(...beside) : []),
    ];
  }

  function neighbours(others, tokens, npmi) {
    const line = (other, at) => {
      const row = rows.get(other), [name, title, sentence] = row ? [nameOf(other), row[5], row[7]] : site.others[other];
      return [row ? link(other, name) : name, count(tokens[at]), npmi[at].toFixed(2),
        [title && make("strong", null, title), " ", site.starts && (sentence ?? "started random")]];
    };
    return [
      make("h3", null, "Selected together with"),
      table([["n", capital(site.word)], ["n", "Tokens"], ["n", "NPMI"], ["prose", site.starts ? `Fires on, and ${site.starts}` : "Fires on"]], others.map(line)),
      note(`Tokens that select both; NPMI is 1 for ${site.words} always selected together and 0 for independent ones.`),
    ];
  }

  // --- showing ---

  async function show() {
    const asked = location.hash, entry = Number(asked.slice(1));
    const found = asked.length > 1 && rows.has(entry);
    site ??= await load("shared");
    const page = found ? (await file("pages", Math.floor(entry / site.pages_per_file)))[entry] : undefined;
    const numbers = new Map();
    for (const one of page?.layers ?? []) {
      for (const row of one[6][0]) {
        for (const place of [row - 2 * site.before, row + 2 * site.after]) {
          const number = Math.floor(Math.min(Math.max(place, 0), site.tokens - 1) / site.rows_per_file);
          if (!numbers.has(number)) numbers.set(number, file("text", number));
        }
      }
    }
    const texts = new Map();
    for (const [number, text] of numbers) texts.set(number, await text);
    if (location.hash !== asked) return;  // another page was asked for in the meantime
    const at = row => texts.get(Math.floor(row / site.rows_per_file))[row % site.rows_per_file];
    document.querySelector("body > nav").hidden = Boolean(page);
    if (page) main.replaceChildren(...top(entry, page), ...page.layers.flatMap(one => layer(one, at)));
    else main.replaceChildren(make("h1", { tabindex: "-1" }, "There is no page of this number"));
    document.title = main.querySelector("h1").textContent;
    scrollTo(0, 0);
  }

  addEventListener("hashchange", async () => { await show(); main.querySelector("h1").focus(); });
  addEventListener("DOMContentLoaded", show);
  return {
    add(more) {
      for (const row of more) {
        row.rank = order.length;
        rows.set(row[0], row);
        order.push(row[0]);
      }
    },
    async unpack(name, packed) {
      const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      taken[name](await new Response(stream).json());
    },
  };
})();
