// Contexts in which an entry fires, with the firing token marked.
const flat = text => text.replace(/\s*\n\s*/g, " \u21b5 ")

export default function ({ data, parentElement, setTriggerValue }) {
  let number = 0
  parentElement.querySelector(".box").replaceChildren(...data.groups.flatMap(group => [
    make("h4", "", group.title),
    ...group.lines.map(line => {
      const row = number++
      const text = within(make("div", "text"), flat(line.before), make("mark", "", visible(line.token)), flat(line.after))
      return within(button("context", "", "Open this token on the prompts page", () => setTriggerValue("clicked", row)),
        make("div", "quiet", line.about), text)
    }),
  ]))
}
