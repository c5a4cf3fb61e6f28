// The tokens that an entry started from beside those that it decodes to now, differences marked.
export default function ({ data, parentElement }) {
  const box = parentElement.querySelector(".box")
  if (data.slots.length) {
    box.replaceChildren(within(make("div", "slots"), ...data.slots.map(slot => {
      const cell = make("div", slot.from === slot.to ? "" : "moved")
      cell.title = `slot ${slot.slot}: cosine ${slot.cosine}, drift ${slot.drift}`
      cell.append(make("span", slot.from === slot.to ? "number" : "number gone", slot.from === null ? "\u2013" : visible(slot.from)))
      if (slot.from !== slot.to) cell.append(" \u2192 ", make("b", "number", visible(slot.to)))
      return cell
    })))
    return
  }
  const line = make("div", "side")
  if (data.original.length) line.append(make("span", "quiet", "said at first"),
    within(make("div", ""), ...data.original.map(([text, kept]) => chip(text, kept, kept ? "among the nearest tokens now" : "no longer near"))))
  line.append(make("span", "quiet", "says now"),
    within(make("div", ""), ...data.now.map(([text, own, cosine]) => chip(text, own, `cosine ${cosine}${own ? ", in the init sentence" : ", new"}`))))
  box.replaceChildren(line)
}
