// The page of an entry, page.html#17: unpacks the file of pages/ that holds it and shows it. A page is markup that was made
// with all text escaped; the content security policy runs no script in it.
"use strict";
const memscope = (() => {
  const main = document.querySelector("main");
  const size = Number(document.documentElement.dataset.group);
  const pages = {};  // group -> its pages by entry, or null while they are loaded

  function show() {
    const entry = location.hash.slice(1);
    const group = Math.floor(Number(entry) / size);
    if (!(group in pages)) load(group);
    if (pages[group] === null) return;
    document.querySelector("body > nav").hidden = entry in pages[group];
    main.innerHTML = pages[group][entry] ?? "<h1>There is no page of this number</h1>";
    document.title = main.querySelector("h1").textContent;
    scrollTo(0, 0);
  }

  function load(group) {
    pages[group] = null;
    const script = document.createElement("script");
    script.src = `pages/${String(group).padStart(4, "0")}.js`;
    script.addEventListener("error", () => { pages[group] = {}; show(); });
    document.head.append(script);
  }

  addEventListener("hashchange", show);
  addEventListener("DOMContentLoaded", show);
  return {
    async unpack(group, packed) {
      const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      pages[group] = await new Response(stream).json();
      show();
    },
  };
})();
