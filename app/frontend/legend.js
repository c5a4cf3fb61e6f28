// What the colours of the map mean: a scale, or a colour for each name.
export default function ({ data, parentElement }) {
  const box = parentElement.querySelector(".box")
  box.replaceChildren(make("div", "title", data.title))
  if (data.ramp.length) {
    const ramp = make("div", "ramp")
    ramp.style.background = `linear-gradient(to right, ${data.ramp.join(",")})`
    box.append(within(make("div", "scale"), ramp, within(make("div", "ends"), make("span", "", data.low), make("span", "", data.high))))
  }
  box.append(within(make("div", "names"), ...data.key.map(([color, text]) => {
    const dot = make("i", "")
    dot.style.background = color
    return within(make("div", "name"), dot, make("span", "", text))
  })))
}
