// Hands the text of a hovered point to the map; screen readers hear it from here.
export default function ({ data, parentElement }) {
  parentElement.querySelector("output").textContent = data.text
  window.dispatchEvent(new CustomEvent("memscope-tip", { detail: data }))
}
