// The keys of a page, in a dialog that its button opens

function keysDialog(keys, words) {
  const dialog = el("dialog", { "aria-labelledby": "keys-title" }, el("h2", { id: "keys-title" }, "Keys"),
    el("dl", {}, ...keys.flatMap(([key, does]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, does)])),
    el("p", { class: "muted" }, words),
    el("form", { method: "dialog" }, el("button", {}, "close")));
  const opener = document.getElementById("help");
  opener.hidden = false;
  opener.addEventListener("click", () => dialog.showModal());
  return dialog;
}
