// A report in a frame of its own, which runs no script (sandbox) and asks nobody for anything (the report's own policy). It
// has an address (blob) because links within a page that has none lead to the page around it.
const shown = new WeakMap()

export default function ({ data, parentElement }) {
  const frame = parentElement.querySelector("iframe")
  if (shown.get(frame)?.page !== data.page) {
    URL.revokeObjectURL(shown.get(frame)?.url)
    const url = URL.createObjectURL(new Blob([data.page], { type: "text/html;charset=utf-8" }))
    shown.set(frame, { page: data.page, url })
    frame.src = url
  }
}
