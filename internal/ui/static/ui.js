// The console's small comforts. Every page works without this file: forms submit, links lead on.

// relative times: the same table as relText in funcs.go
const units = [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"], [Infinity, 86400, "d"]];
function duration(seconds) {
  const [, size, unit] = units.find(([limit]) => seconds < limit);
  const whole = Math.floor(seconds / size);
  let text = `${whole.toLocaleString("en")} ${unit}`;
  const rest = seconds - whole * size;
  if (unit === "h" && rest >= 60) text += ` ${Math.floor(rest / 60)} min`;
  if (unit === "d" && whole < 7 && rest >= 3600) text += ` ${Math.floor(rest / 3600)} h`;
  return text;
}
export function tick() {
  for (const el of document.querySelectorAll("time[data-rel]")) {
    const seconds = (Date.now() - Date.parse(el.dateTime)) / 1000;
    if (Number.isNaN(seconds)) continue;
    const text = Math.abs(seconds) < 5 ? "just now" : seconds < 0 ? `in ${duration(-seconds)}` : `${duration(seconds)} ago`;
    if (el.textContent !== text) el.textContent = text;
  }
}
setInterval(() => { if (!document.hidden) tick(); }, 5000);

// what needs script appears only where there is script; live.js calls it for new parts of the page
export function prepare(root) {
  for (const el of root.querySelectorAll("[data-copy], [data-help]")) el.hidden = false;
}
prepare(document);
document.addEventListener("steward:replaced", (e) => { prepare(e.target); tick(); });

// copy buttons
document.addEventListener("click", async (e) => {
  const button = e.target.closest("[data-copy]");
  if (!button) return;
  const source = button.parentElement.querySelector("code, pre");
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch { // no clipboard without HTTPS: select it, so that Ctrl-C does it
    getSelection().selectAllChildren(source);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

// confirm dialog for forms with data-confirm (on the form or on the button that sends it)
const confirmDialog = document.getElementById("confirm");
document.addEventListener("submit", (e) => {
  const form = e.target, button = e.submitter;
  const text = button?.dataset.confirm ?? form.dataset.confirm;
  if (!text || !confirmDialog || form.dataset.confirmed) { delete form.dataset.confirmed; return; }
  e.preventDefault();
  confirmDialog.querySelector("#confirm-text").textContent = text;
  confirmDialog.returnValue = "no";
  confirmDialog.addEventListener("close", () => {
    if (confirmDialog.returnValue !== "yes") return;
    form.dataset.confirmed = "1";
    form.requestSubmit(button);
  }, { once: true });
  confirmDialog.showModal();
});

// a form is sent once, however often it is clicked
document.addEventListener("submit", (e) => {
  if (e.defaultPrevented || e.target.method !== "post") return;
  const form = e.target;
  if (form.dataset.sent) { e.preventDefault(); return; }
  form.dataset.sent = "1";
  setTimeout(() => { delete form.dataset.sent; }, 3000); // a download leaves the page as it is
});
addEventListener("pageshow", () => document.querySelectorAll("form[data-sent]").forEach((f) => { delete f.dataset.sent; }));

// select-all checkboxes and the bar that counts
function boxes(name) { return [...document.querySelectorAll(`input[type=checkbox][name="${CSS.escape(name)}"]`)]; }
function countSelected(name) {
  const all = boxes(name), checked = all.filter((b) => b.checked);
  for (const head of document.querySelectorAll(`[data-select-all="${CSS.escape(name)}"]`)) {
    head.checked = all.length > 0 && checked.length === all.length;
    head.indeterminate = checked.length > 0 && checked.length < all.length;
  }
  for (const bar of document.querySelectorAll(`[data-selected-bar="${CSS.escape(name)}"]`)) {
    bar.hidden = checked.length === 0;
    const out = bar.querySelector("output");
    if (out) out.textContent = `${checked.length} selected`;
  }
  for (const b of all) b.closest("tr")?.classList.toggle("selected", b.checked);
}
document.addEventListener("change", (e) => {
  const el = e.target;
  if (el.dataset.selectAll) {
    for (const b of boxes(el.dataset.selectAll)) b.checked = el.checked;
    countSelected(el.dataset.selectAll);
  } else if (el.type === "checkbox" && document.querySelector(`[data-select-all="${CSS.escape(el.name)}"]`)) {
    countSelected(el.name);
  }
  if (el.dataset.submit !== undefined) el.form?.requestSubmit(); // filters that act at once
});
const selectAlls = () => document.querySelectorAll("[data-select-all]").forEach((el) => countSelected(el.dataset.selectAll));
selectAlls();
document.addEventListener("steward:replaced", selectAlls);

// theme: the form works without script, this spares the reload
document.addEventListener("submit", (e) => {
  if (!e.target.matches("[data-theme-form]") || !e.submitter) return;
  e.preventDefault();
  delete e.target.dataset.sent;
  const theme = e.submitter.value;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  for (const b of e.target.querySelectorAll("button[name=theme]")) b.setAttribute("aria-pressed", String(b.value === theme));
  fetch("/theme", { method: "POST", body: new URLSearchParams({ theme, next: "/" }), redirect: "manual" });
}, true);

// keyboard: "/" searches, "?" helps, "g" and a letter goes there
const help = document.getElementById("help");
let wentG = 0;
document.addEventListener("click", (e) => { if (e.target.closest("[data-help]")) help?.showModal(); });
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing) return;
  const typing = e.target.closest("input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable]");
  if (typing) { if (e.key === "Escape") e.target.blur(); return; }
  if (document.querySelector("dialog[open]")) return;
  if (e.key === "/") {
    const field = document.querySelector("input[type=search], [data-search]");
    if (field) { e.preventDefault(); field.focus(); field.select?.(); }
  } else if (e.key === "?") {
    help?.showModal();
  } else if (e.key === "g") {
    wentG = Date.now();
    return;
  } else if (Date.now() - wentG < 1500) {
    document.querySelector(`.nav a[data-key="${CSS.escape(e.key)}"]`)?.click();
  }
  wentG = 0;
});

// the summary of a form's errors gets the focus, so that it is read and seen
document.querySelector("[data-autofocus]")?.focus();
