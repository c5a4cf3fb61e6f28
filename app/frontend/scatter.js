// The bank as points: drag to move, wheel to zoom, lasso to select, hover to read. The data is one block of bytes, made by
// memscope/query/charts/map_points.py. The sentence of a hovered point is requested alone and arrives in a "memscope-tip" event.
const live = new WeakMap()
const SHADES = Array.from({ length: 16 }, (_, step) => 0.3 + 0.7 * step / 15)  // opacity of a cell by its weight

function unpack(data) {
  const bytes = data instanceof Uint8Array ? data : new Uint8Array(data)
  const block = bytes.slice().buffer  // aligned
  const length = new DataView(block).getUint32(0, true)
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(block, 4, length)))
  const start = 4 + length, n = head.points
  return { head, ids: new Uint32Array(block, start, n), x: new Uint16Array(block, start + 4 * n, n),
           y: new Uint16Array(block, start + 6 * n, n), level: new Uint8Array(block, start + 8 * n, n),
           weight: new Uint8Array(block, start + 9 * n, n) }
}

function floats(values, scale, shift) {  // a loop: Float32Array.from with a function takes ten times as long
  const out = new Float32Array(values.length)
  for (let i = 0; i < out.length; i++) out[i] = values[i] * scale + shift
  return out
}

const near = values => floats(values, 2 / 32767.5, -2)

function start(parentElement, send) {
  const stage = parentElement.querySelector(".stage"), canvas = stage.querySelector("canvas")
  const plot = memscopeScatter.default({
    canvas, width: stage.clientWidth, height: stage.clientHeight, lassoMinDelay: 8, lassoMinDist: 3,
    pointSizeSelected: 3, pointOutlineWidth: 2, showReticle: false, actionKeyMap: { lasso: ["shift"] }, deselectOnDblClick: false,
  })
  const tip = parentElement.querySelector(".tip")
  const state = { plot, send, over: -1, drawn: "", focus: null, drawing: Promise.resolve() }
  let wait = 0
  const onTip = event => { if (event.detail.entry === state.over) tip.textContent = event.detail.text }
  window.addEventListener("memscope-tip", onTip)
  plot.subscribe("pointOver", number => {
    const id = state.over = state.ids[number]
    const [x, y] = plot.getScreenPosition(number)
    tip.textContent = `entry ${id}`
    tip.style.left = Math.min(x + 14, Math.max(0, stage.clientWidth - 370)) + "px"
    tip.style.top = Math.min(y + 14, stage.clientHeight - 90) + "px"
    clearTimeout(wait)
    wait = setTimeout(() => state.send("hovered", id), 90)
  })
  plot.subscribe("pointOut", () => { clearTimeout(wait); state.over = -1; tip.textContent = "" })
  plot.subscribe("select", ({ points }) => { if (!state.quiet && points.length === 1 && !state.lassoing) { state.clicked = state.ids[points[0]]; state.send("clicked", state.clicked) } })
  plot.subscribe("lassoStart", () => { state.lassoing = true })
  plot.subscribe("lassoEnd", ({ coordinates }) => {
    setTimeout(() => { state.lassoing = false }, 50)
    const many = coordinates.length, step = Math.max(1, Math.ceil(many / 48))
    const kept = coordinates.filter((_, i) => i % step === 0).map(([x, y]) => [Math.round(1000 * x), Math.round(1000 * y)])
    if (kept.length > 2) state.send("lassoed", kept)
  })
  const lasso = parentElement.querySelector(".lasso")
  lasso.onclick = () => {
    const on = lasso.getAttribute("aria-pressed") !== "true"
    lasso.setAttribute("aria-pressed", String(on))
    plot.set({ mouseMode: on ? "lasso" : "panZoom" })
  }
  parentElement.querySelector(".home").onclick = () => plot.zoomToOrigin({ transition: true })
  parentElement.querySelector(".closer").onclick = () => zoom(plot, 0.6)
  parentElement.querySelector(".wider").onclick = () => zoom(plot, 1 / 0.6)
  const watch = new ResizeObserver(() => plot.set({ width: stage.clientWidth, height: stage.clientHeight }))
  watch.observe(stage)
  state.stop = () => { watch.disconnect(); window.removeEventListener("memscope-tip", onTip); plot.destroy(); live.delete(parentElement) }
  return state
}

function zoom(plot, factor) {
  const [x, y] = plot.get("cameraTarget")
  plot.zoomToLocation([x, y], plot.get("cameraDistance") * factor, { transition: true })
}

export default function ({ data, parentElement, setTriggerValue }) {
  if (!live.has(parentElement)) live.set(parentElement, start(parentElement, setTriggerValue))
  const state = live.get(parentElement), { plot } = state
  state.send = setTriggerValue
  const stage = parentElement.querySelector(".stage")
  const page = getComputedStyle(stage).getPropertyValue("--st-background-color").trim()
  const { head, ids, x, y, level, weight } = unpack(data)
  if (state.drawn !== head.version + page) {
    state.drawn = head.version + page
    state.ids = ids
    stage.querySelector("canvas").setAttribute("aria-label", head.label)
    plot.set({ backgroundColor: page, colorBy: "valueA", pointColor: head.palette, pointColorActive: head.mark,
               pointColorHover: head.mark, sizeBy: "valueA", pointSize: head.sizes,
               ...(head.dense ? { opacityBy: "valueB", opacity: SHADES } : { opacityBy: null, opacity: head.opacity }) })
    const points = { x: near(x), y: near(y), valueA: floats(level, 1, 0), valueB: floats(weight, 1 / 255, 0) }
    // A draw that comes while another is under way is refused, so it waits; the page may be gone by then.
    const isThere = () => live.get(parentElement) === state
    const drawing = state.drawing.then(() => isThere() && plot.draw(points, { zDataType: "categorical", wDataType: "continuous", preventFilterReset: true }))
    state.drawing = drawing.catch(() => {})
    drawing.then(() => {
      if (!isThere()) return
      stage.dataset.points = ids.length
      plot.drawAnnotations(head.lasso.length ? [{ vertices: [...head.lasso, head.lasso[0]], lineColor: head.mark, lineWidth: 2 }] : [])
      const at = head.focus < 0 ? -1 : ids.indexOf(head.focus)
      state.quiet = true
      if (at >= 0) plot.select([at], { preventEvent: true })
      else plot.deselect({ preventEvent: true })
      setTimeout(() => { state.quiet = false }, 50)
      if (at >= 0 && state.focus !== head.focus && state.clicked !== head.focus) {
        plot.zoomToLocation([2 * (x[at] / 32767.5 - 1), 2 * (y[at] / 32767.5 - 1)], 0.5, { transition: false })
      }
      state.focus = head.focus
      stage.dataset.ready = head.version
    })
  }
  return () => live.get(parentElement)?.stop()
}
