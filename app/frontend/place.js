// What a page is of, and a button that copies its address.
export default function ({ data, parentElement }) {
  parentElement.querySelector(".what").textContent = data.parts.join(" \u00b7 ")
  const link = parentElement.querySelector("button")
  link.title = "Copy the address of this view: it opens again as it is"
  link.onclick = async () => {
    try {
      await navigator.clipboard.writeText(window.location.href)
      link.textContent = "Copied"
    } catch {
      link.textContent = "Copy the address bar: this browser lets no page copy"
    }
    setTimeout(() => { link.textContent = "Copy link" }, 2000)
  }
}
