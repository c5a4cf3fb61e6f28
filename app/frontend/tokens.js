// A stretch of text as tokens, coloured and clickable. A character of several tokens is drawn once, across them.
const shown = text => text === "" ? "\u2205" : text.replaceAll("\n", "\u21b5\n").replaceAll("\t", "\u21e5\t")
const SIZES = new WeakMap()

// Elements are reused where the tokens share characters as before, so that the focused one keeps the focus.
const cells = (box, tokens) => {
  const sizes = tokens.map(token => token.parts).join()
  if (SIZES.get(box) !== sizes) {
    box.replaceChildren(...tokens.flatMap(token => token.part ? [] : [token.parts === 1 ? make("span", "token") : unit(token.parts)]))
    SIZES.set(box, sizes)
  }
  return [...box.querySelectorAll(".token")]
}
const unit = parts => {
  const whole = within(make("span", "unit"), make("span", "glyph"))
  whole.style.setProperty("--parts", parts)
  for (let part = 0; part < parts; part++) {
    const cell = make("span", "token")
    cell.style.setProperty("--part", part)
    whole.append(cell)
  }
  return whole
}

export default function ({ data, parentElement, setTriggerValue }) {
  const find = name => parentElement.querySelector("." + name)
  find("low").textContent = data.low
  find("high").textContent = data.high
  find("meaning").textContent = data.meaning
  find("legend").classList.toggle("signed", data.signed)
  const box = find("tokens")
  box.setAttribute("aria-label", data.label)
  const spans = cells(box, data.tokens)
  const select = number => setTriggerValue("clicked", data.first + number)
  const focus = number => {
    const next = Math.max(0, Math.min(spans.length - 1, number))
    spans.forEach((span, i) => { span.tabIndex = i === next ? 0 : -1 })
    spans[next].focus()
  }
  spans.forEach((span, number) => {
    const token = data.tokens[number], chosen = data.first + number === data.selected
    span.className = ["token", token.control && "special", token.new && "new", token.less && "less"].filter(Boolean).join(" ")
    if (token.parts === 1) span.textContent = shown(token.text)
    else {
      if (token.part === 0) span.parentElement.firstChild.textContent = shown(token.text)
      span.setAttribute("aria-label", token.tip)
    }
    span.title = token.tip
    span.setAttribute("role", "option")
    span.setAttribute("aria-selected", String(chosen))
    span.style.setProperty("--level", (60 * token.level).toFixed(1) + "%")
    span.tabIndex = chosen ? 0 : -1
    span.onclick = () => { focus(number); select(number) }
  })
  const selected = spans.findIndex(span => span.tabIndex === 0)
  if (selected < 0 && spans.length) spans[0].tabIndex = 0
  else if (selected >= 0 && box.dataset.selected !== String(data.selected)) {
    const top = (spans[selected].closest(".unit") ?? spans[selected]).offsetTop
    if (top < box.scrollTop || top > box.scrollTop + box.clientHeight - 30) box.scrollTop = top - box.clientHeight / 2
  }
  box.dataset.selected = data.selected
  box.onkeydown = event => {
    const number = spans.indexOf(event.target)
    const step = { ArrowRight: number + 1, ArrowLeft: number - 1, Home: 0, End: spans.length - 1 }[event.key]
    const row = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    if (step !== undefined) focus(step)
    else if (row !== undefined) focus(neighbour(spans, number, row))
    else if (event.key === "Enter" || event.key === " ") select(number)
    else return
    event.preventDefault()
  }
}

// The token of the next or previous line that lies nearest below or above.
function neighbour(spans, number, direction) {
  const from = spans[number].getBoundingClientRect()
  let best = number, distance = Infinity
  for (let i = number + direction; i >= 0 && i < spans.length; i += direction) {
    const to = spans[i].getBoundingClientRect()
    const lines = direction * (to.top - from.top) / from.height
    if (lines < 0.5) continue
    if (lines > 2.5) break
    const away = Math.abs(to.left - from.left) + 1000 * Math.round(lines)
    if (away < distance) { best = i; distance = away }
  }
  return best
}
