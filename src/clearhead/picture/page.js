// What all parts of the page's script share: its data, ways to make elements, and light and dark.
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const night = matchMedia("(prefers-color-scheme: dark)");
const paper = matchMedia("print");
const isDark = () => !paper.matches && (root.dataset.theme ? root.dataset.theme === "dark" : night.matches);
const quoted = (text) => `'${text}'`;
const shortened = (text, most = 16) => (text.length > most ? `${text.slice(0, most - 1)}…` : text.trim() ? text : "␣");
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function build(space, name, attributes, children) {
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const el = (name, attributes = {}, ...children) => build(null, name, attributes, children);
const svg = (name, attributes = {}, ...children) => build("http://www.w3.org/2000/svg", name, attributes, children);

// What is put in the place of a part of the page gets the focus where the old had it, at the same place among its like.
function keepingFocus(part, replace) {
  const like = () => [...part.querySelectorAll("button, input, summary, [tabindex]")];
  const at = like().indexOf(document.activeElement);
  replace();
  if (at >= 0) like()[at]?.focus({ preventScroll: true });
}

// ---- light and dark: pictures that a script drew are drawn again when the theme changes

const redraws = [];
const redraw = () => redraws.forEach((draw) => draw());
const toggle = document.getElementById("theme");
const label = () => (toggle.textContent = isDark() ? "light" : "dark");
toggle.hidden = false;
toggle.setAttribute("aria-label", "switch between light and dark");
toggle.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  redraw();
});
redraws.push(label);
label();
for (const query of [night, paper]) query.addEventListener("change", redraw);
