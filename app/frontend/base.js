// Texts of corpora and prompts are untrusted: they are set with textContent or title alone, never read as markup.
const make = (name, kind, text) => Object.assign(document.createElement(name), { className: kind, textContent: text ?? "" })
const within = (element, ...children) => { element.append(...children); return element }
const visible = text => text === "" ? "\u2205" : text.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5").replace(/^ +| +$/g, s => "\u2423".repeat(s.length))
const chip = (text, own, tip) => Object.assign(make("span", own ? "chip own" : "chip", visible(text)), { title: tip ?? "" })
const button = (kind, text, tip, act) => Object.assign(make("button", kind, text), { type: "button", title: tip, onclick: act })

