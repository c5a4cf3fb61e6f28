// The entries that one token selected, layer by layer.
const opened = new WeakMap()
const show = ({ data, parentElement, setTriggerValue }) => {
  const box = parentElement.querySelector(".box")
  const open = opened.get(parentElement) ?? new Set()
  opened.set(parentElement, open)
  const bar = (kind, share, text, tip) => {
    if (text === null) return make("div", "bar")
    const drawn = within(make("div", "bar " + kind), make("span", "number", text), make("i", ""))
    drawn.style.setProperty("--share", Math.max(0, Math.min(100, 100 * share)).toFixed(1) + "%")
    drawn.title = tip
    return drawn
  }
  const sentence = entry => {
    const line = make("div", "text sentence")
    line.title = entry.sentence ?? ""
    if (!entry.known) return line
    if (entry.sentence === null) line.append(make("span", "quiet", "(started from random numbers)"))
    else if (entry.slots) entry.slots.forEach(([text, level, weight]) => {
      const word = Object.assign(make("span", "slot", text), { title: `read weight ${weight}` })
      word.style.setProperty("--level", (75 * level).toFixed(0) + "%")
      line.append(word)
    })
    else line.textContent = entry.sentence
    return line
  }
  const row = (layer, entry) => {
    const number = within(make("div", ""),
      button("link number", String(entry.name), `Open this ${data.word}: what is known of it and everywhere it fires`,
        () => setTriggerValue("acted", { act: "open", entry: entry.entry, layer: layer.layer })))
    const words = within(make("div", ""), sentence(entry))
    const now = make("div", "quiet")
    if (entry.decoded.length) now.append("says now ")
    entry.decoded.forEach(([text, own]) => now.append(chip(text, own, own ? "stands in the init sentence" : "not in the init sentence")))
    if (entry.title) now.append(`${entry.known ? " fires on " : ""}${entry.title}`)
    words.append(now)
    const lit = entry.entry === data.lit
    const act = (kind, text, tip, which = entry.entry) =>
      button("link", text, tip, () => setTriggerValue("acted", { act: kind, entry: which, layer: layer.layer }))
    const acts = make("div", "acts")
    if (data.lights) acts.append(act("light", lit ? "colour as before" : "colour text", `Colour this text by where this ${data.word} fires`, lit ? -1 : entry.entry))
    if (data.changes) acts.append(act("ablate", "ablate", `What if this ${data.word} were not selected?`))
    return within(make("div", entry.entry === data.lit ? "row lit" : "row"), number,
      bar("gate", entry.gate_share, entry.gate, `${layer.heads[1]}; the bar compares it with the largest of the layer`),
      bar("read", entry.read_share, entry.read, "read weight; the bar compares it with the largest of the layer"), words, acts)
  }
  box.replaceChildren(...data.layers.map(layer => {
    const part = make("section", layer.layer === data.chosen ? "layer chosen" : "layer")
    part.append(within(make("div", "head"), make("b", "", `Layer ${layer.layer}`), make("span", "quiet", layer.note)))
    part.append(within(make("div", "heads row quiet"), ...layer.heads.map(text => make("span", "", text))))
    const all = open.has(layer.layer) || layer.entries.length <= data.few
    layer.entries.slice(0, all ? undefined : data.few).forEach(entry => part.append(row(layer, entry)))
    if (layer.entries.length > data.few) part.append(button("link quiet more",
      all ? "fewer" : `all ${layer.entries.length} of layer ${layer.layer}`, "",
      () => {
        if (all) open.delete(layer.layer)
        else open.add(layer.layer)
        show({ data, parentElement, setTriggerValue })
      }))
    part.dataset.layer = layer.layer
    return part
  }))
}
export default show
