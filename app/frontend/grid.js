// Layers x positions, one cell per token and layer, coloured along viridis.
const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"]
const PALETTE = Array.from({ length: 256 }, (_, i) => {
  const at = i / 255 * (VIRIDIS.length - 1), low = Math.min(VIRIDIS.length - 2, Math.floor(at)), part = at - low
  const [a, b] = [VIRIDIS[low], VIRIDIS[low + 1]].map(hex => [1, 3, 5].map(k => parseInt(hex.slice(k, k + 2), 16)))
  return `rgb(${a.map((value, k) => Math.round(value + part * (b[k] - value))).join(",")})`
})
const GUTTER = 58
const live = new WeakMap()

export default function ({ data, parentElement, setTriggerValue }) {
  const canvas = parentElement.querySelector("canvas"), tip = parentElement.querySelector(".tip")
  const columns = data.texts.length, rows = data.rows.length
  const height = rows <= 12 ? 17 : rows <= 24 ? 11 : 7
  let cursor = { row: Math.max(0, data.row), column: Math.max(0, data.selected - data.first) }
  parentElement.querySelector(".low").textContent = data.low_text
  parentElement.querySelector(".high").textContent = data.high_text
  parentElement.querySelector(".meaning").textContent = data.meaning
  parentElement.querySelector(".scale i").style.background = `linear-gradient(to right, ${VIRIDIS.join(",")})`
  canvas.setAttribute("aria-label", data.label)

  const width = () => Math.min(22, (canvas.clientWidth - GUTTER) / columns)
  const draw = () => {
    const ratio = window.devicePixelRatio || 1, cell = width()
    canvas.style.height = rows * height + "px"
    canvas.width = Math.round(canvas.clientWidth * ratio)
    canvas.height = Math.round(rows * height * ratio)
    const pen = canvas.getContext("2d"), style = getComputedStyle(parentElement.querySelector(".grid"))
    pen.scale(ratio, ratio)
    pen.font = `11px ${style.fontFamily}`
    pen.textBaseline = "middle"
    for (let row = 0; row < rows; row++) {
      pen.fillStyle = style.color
      if (height > 8 || row % 4 === 0) pen.fillText(data.rows[row], 0, row * height + height / 2)
      for (let column = 0; column < columns; column++) {
        const value = data.values[row][column]
        if (value === null) continue
        const level = Math.max(0, Math.min(1, (value - data.low) / Math.max(1e-12, data.high - data.low)))
        pen.fillStyle = PALETTE[Math.round(255 * level)]
        pen.fillRect(GUTTER + column * cell, row * height, cell + (cell < 6 ? 0.3 : -1), height - 1)
      }
    }
    pen.strokeStyle = style.color
    pen.lineWidth = 1.5
    const left = GUTTER + (data.selected - data.first) * cell
    if (data.selected >= data.first && data.selected < data.first + columns) {
      pen.strokeRect(left - 1, 0.75, cell + 1, rows * height - 1.5)
      if (data.row >= 0) { pen.lineWidth = 3; pen.strokeRect(left - 1, data.row * height, cell + 1, height - 1) }
    }
  }
  const cellAt = event => {
    const edge = canvas.getBoundingClientRect()
    const column = Math.floor((event.clientX - edge.left - GUTTER) / width())
    const row = Math.floor((event.clientY - edge.top) / height)
    return column >= 0 && column < columns && row >= 0 && row < rows ? { row, column } : null
  }
  const tell = at => {
    if (!at) { tip.textContent = ""; return }
    const value = data.values[at.row][at.column]
    const word = data.texts[at.column].replaceAll("\n", "\u21b5")
    tip.textContent = `${data.rows[at.row]} \u00b7 token ${data.first + at.column} \u201c${word}\u201d \u00b7 ${value === null ? "none" : value.toPrecision(3)}`
    const x = GUTTER + at.column * width()
    tip.style.left = Math.min(x, canvas.clientWidth - 260) + "px"
    tip.style.top = (at.row + 1) * height + 30 + "px"
  }
  const select = at => at && setTriggerValue("clicked", { pos: data.first + at.column, row: at.row })
  canvas.onmousemove = event => tell(cellAt(event))
  canvas.onmouseleave = () => tell(null)
  canvas.onclick = event => { const at = cellAt(event); if (at) { cursor = at; select(at) } }
  canvas.onkeydown = event => {
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key]
    if (move) {
      cursor = { row: Math.max(0, Math.min(rows - 1, cursor.row + move[0])),
                 column: Math.max(0, Math.min(columns - 1, cursor.column + move[1])) }
      tell(cursor)
    } else if (event.key === "Enter" || event.key === " ") select(cursor)
    else return
    event.preventDefault()
  }
  canvas.onblur = () => tell(null)
  draw()
  live.get(parentElement)?.disconnect()
  const watch = new ResizeObserver(draw)
  watch.observe(canvas.parentElement)
  live.set(parentElement, watch)
  return () => live.get(parentElement)?.disconnect()
}
