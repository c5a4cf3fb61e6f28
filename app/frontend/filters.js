// Linked histograms. Bars of a range are chosen by a click, by dragging over neighbours, or by Enter and Shift with Enter;
// names of a list are chosen one by one. Pale bars are all entries, strong ones those that the other choices leave.
const states = new WeakMap()

export default function ({ data, parentElement, setTriggerValue }) {
  const box = parentElement.querySelector(".box")
  const state = states.get(parentElement) ?? {}
  if (!states.has(parentElement)) {
    states.set(parentElement, state)
    box.open = window.innerWidth > 700 || data.panels.some(panel => panel.chosen.includes(true))
  }
  const focused = parentElement.getRootNode().activeElement?.dataset.at
  const send = (name, bins) => setTriggerValue("chosen", { name, bins })
  const chosenOf = panel => panel.chosen.flatMap((on, number) => on ? [number] : [])
  const some = data.panels.some(panel => panel.chosen.includes(true))
  const head = within(make("summary", ""), make("b", "", "Filter"), make("span", "quiet", data.said))
  if (some) head.append(button("link", "Clear all", "Leave all entries", event => { event.preventDefault(); send("", []) }))
  box.replaceChildren(head, within(make("div", "panels"), ...data.panels.map(panel => {
    const chosen = chosenOf(panel), top = within(make("div", "top"), make("span", "", panel.title))
    if (chosen.length) top.append(button("link quiet", "clear", `Leave all entries, whatever their ${panel.title}`, () => send(panel.name, [])))
    const most = Math.max(1, ...panel.counts), mostOfAll = Math.max(1, ...panel.every)
    const kind = number => (chosen.length && !panel.chosen[number] ? "off" : "")
    const part = number => {
      const one = button(kind(number), "", `${panel.title} ${panel.labels[number]}: ${panel.counts[number].toLocaleString()} of ${panel.every[number].toLocaleString()}`, null)
      one.setAttribute("aria-label", one.title)
      one.setAttribute("aria-pressed", String(panel.chosen[number]))
      one.dataset.at = `${panel.name} ${number}`
      one.style.setProperty("--left", (100 * panel.counts[number] / most).toFixed(1) + "%")
      one.style.setProperty("--all", (100 * panel.every[number] / mostOfAll).toFixed(1) + "%")
      return one
    }
    const parts = panel.labels.map((_, number) => part(number))
    if (panel.kind === "list") {
      parts.forEach((one, number) => {
        one.append(make("span", "name", panel.labels[number]), make("span", "number", panel.counts[number].toLocaleString()))
        one.onclick = () => send(panel.name, panel.chosen[number] ? chosen.filter(n => n !== number) : [...chosen, number])
      })
      return within(make("section", "panel"), top, within(make("div", "list"), ...parts))
    }
    const bars = within(make("div", "bars"), ...parts)
    range(bars, parts, panel, chosen, send)
    return within(make("section", "panel"), top, bars,
      within(make("div", "ends quiet"), make("span", "", panel.ends[0]), make("span", "", panel.ends[1])))
  })))
  if (focused) [...box.querySelectorAll("[data-at]")].find(one => one.dataset.at === focused)?.focus()
}

function range(bars, parts, panel, chosen, send) {
  const last = parts.length - 1, unknown = panel.labels[last] === "unknown" ? last : -1
  const between = (a, b) => a === unknown || b === unknown ? [b] : Array.from({ length: Math.abs(a - b) + 1 }, (_, step) => Math.min(a, b) + step)
  const choose = bins => send(panel.name, bins.length === chosen.length && bins.every((n, at) => n === chosen[at]) ? [] : bins)
  const at = event => {
    const x = event.clientX
    const hit = parts.findIndex(one => x < one.getBoundingClientRect().right)
    return hit < 0 ? last : hit
  }
  let from = -1
  bars.onpointerdown = event => { from = event.shiftKey && chosen.length ? chosen[0] : at(event); bars.setPointerCapture(event.pointerId); mark(event) }
  const mark = event => {
    const bins = between(from, at(event))
    parts.forEach((one, number) => { one.className = bins.includes(number) ? "" : "off" })
  }
  bars.onpointermove = event => { if (from >= 0) mark(event) }
  bars.onpointerup = event => { if (from >= 0) choose(between(from, at(event))); from = -1 }
  bars.onpointercancel = () => { from = -1 }
  parts.forEach((one, number) => {
    one.onkeydown = event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(event.shiftKey && chosen.length ? between(chosen[0], number) : [number]) }
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]
      if (step) { event.preventDefault(); parts[number + step]?.focus() }
    }
    one.tabIndex = number === (chosen[0] ?? 0) ? 0 : -1  // one stop of the Tab key for each histogram
  })
}
