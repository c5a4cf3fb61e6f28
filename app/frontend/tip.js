// Passes the text of a hovered point to the map, and shows it to screen readers.
export default function ({ data, parentElement }) {
  parentElement.querySelector("output").textContent = data.text
  window.dispatchEvent(new CustomEvent("memscope-tip", { detail: data }))
}
