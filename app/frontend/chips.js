// A table of texts and of lists of tokens, whose cells wrap.
export default function ({ data, parentElement }) {
  const cell = (kind, value) => Array.isArray(value)
    ? within(make(kind, ""), ...value.map(text => make("span", "chip", text)))
    : make(kind, "", value)
  const table = within(make("table", ""),
    within(make("tr", ""), ...data.heads.map(head => make("th", "quiet", head))),
    ...data.rows.map(row => within(make("tr", ""), ...row.map(value => cell("td", value)))))
  table.setAttribute("aria-label", data.label)
  parentElement.querySelector(".box").replaceChildren(table)
}
