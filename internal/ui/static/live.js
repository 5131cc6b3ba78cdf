// Live pages: an event of the ledger has the page fetched again, and the parts marked data-live are
// replaced by their new selves, found by id. What the reader is doing stays: the focus and the caret, typed
// but unsent input, checked boxes, open details, scroll positions. A part in which somebody is
// selecting text waits for the next event.

const state = document.querySelector("[data-live-state]");
let source = null, timer = 0, running = false, again = false, lastFetch = 0;
const spacing = 2000; // ms between two fetches

function say(text) {
  if (!state) return;
  state.textContent = text;
  state.hidden = !text;
}

function connect() {
  if (source || document.hidden) return;
  source = new EventSource(document.body.dataset.liveUrl);
  source.addEventListener("ready", () => say(""));
  source.addEventListener("change", schedule);
  source.onerror = () => {
    say("Connection lost. This page may be old; trying again …");
    if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    source = null;
    setTimeout(connect, 10000);
    schedule(); // finds out whether the session has ended
  };
}
function disconnect() { source?.close(); source = null; }

// Tabs in the background hold no connection; they catch up when they are looked at.
let away = false;
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { away = true; disconnect(); return; }
  connect();
  if (away) schedule();
  away = false;
});
addEventListener("pagehide", disconnect);

function schedule() {
  if (running) { again = true; return; }
  if (timer) return;
  timer = setTimeout(refresh, Math.max(150, lastFetch + spacing - Date.now()));
}

async function refresh() {
  timer = 0; running = true; lastFetch = Date.now();
  try {
    const answer = await fetch(location.href, { headers: { "Steward-Live": "1" }, cache: "no-store" });
    if (answer.redirected && new URL(answer.url).pathname !== location.pathname) {
      say("Your session has ended. Reload the page to sign in.");
      disconnect();
      return;
    }
    if (!answer.ok) return; // say nothing of a short failure; the next event tries again
    replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch { /* offline: onerror of the stream says so */ } finally {
    running = false;
    if (again) { again = false; schedule(); }
  }
}

function replace(fresh) {
  for (const old of document.querySelectorAll("[data-live][id]")) {
    const next = fresh.getElementById(old.id);
    if (!next || same(old, next) || selecting(old)) continue;
    if (old.querySelector("[data-live][id]")) continue; // its parts are replaced one by one
    const kept = remember(old);
    const here = document.importNode(next, true);
    old.replaceWith(here);
    restore(here, kept);
    here.dispatchEvent(new CustomEvent("steward:replaced", { bubbles: true }));
  }
  if (fresh.title) document.title = fresh.title;
}

// same tells whether a part says nothing new: what ticks by itself or was changed by the reader aside
function same(a, b) {
  const plain = (el) => {
    const copy = el.cloneNode(true);
    for (const t of copy.querySelectorAll("time[data-rel]")) t.textContent = "";
    for (const d of copy.querySelectorAll("details")) d.removeAttribute("open");
    for (const h of copy.querySelectorAll("[data-copy], [data-help], [data-selected-bar]")) h.hidden = true;
    for (const o of copy.querySelectorAll("[data-selected-bar] output, [data-copy]")) o.textContent = "";
    for (const r of copy.querySelectorAll("tr[class]")) r.removeAttribute("class");
    return copy.outerHTML;
  };
  return plain(a) === plain(b);
}

function selecting(el) {
  const s = getSelection();
  return s && !s.isCollapsed && el.contains(s.anchorNode);
}

// key finds the same element in the new part: by id, by name and value, else by tag and place
function key(el, root) {
  if (el.id) return `#${el.id}`;
  if (el.name) return `${el.tagName}:${el.name}:${el.type === "checkbox" || el.type === "radio" ? el.value : ""}`;
  if (el.href) return `${el.tagName}@${el.getAttribute("href")}`;
  const same = [...root.querySelectorAll(el.tagName)];
  return `${el.tagName}[${same.indexOf(el)}]`;
}

function remember(root) {
  const kept = { fields: new Map(), details: new Map(), scroll: new Map(), focus: null };
  for (const el of root.querySelectorAll("input, textarea, select")) {
    if (el.type === "file") continue;
    const changed = el.type === "checkbox" || el.type === "radio" ? el.checked !== el.defaultChecked
      : el.tagName === "SELECT" ? [...el.options].some((o) => o.selected !== o.defaultSelected)
        : el.value !== el.defaultValue;
    if (changed) kept.fields.set(key(el, root), { value: el.value, checked: el.checked });
  }
  for (const el of root.querySelectorAll("details")) kept.details.set(key(el, root), el.open);
  for (const el of root.querySelectorAll(".table-wrap, .code")) {
    if (el.scrollLeft || el.scrollTop) kept.scroll.set(key(el, root), [el.scrollLeft, el.scrollTop]);
  }
  const active = document.activeElement;
  if (active && root.contains(active) && active !== root) {
    kept.focus = { key: key(active, root) };
    try { kept.focus.start = active.selectionStart; kept.focus.end = active.selectionEnd; } catch { /* no text field */ }
  }
  return kept;
}

function restore(root, kept) {
  for (const el of root.querySelectorAll("input, textarea, select")) {
    const was = kept.fields.get(key(el, root));
    if (!was) continue;
    if (el.type === "checkbox" || el.type === "radio") el.checked = was.checked;
    else el.value = was.value;
  }
  for (const el of root.querySelectorAll("details")) el.open = kept.details.get(key(el, root)) ?? el.open;
  for (const el of root.querySelectorAll(".table-wrap, .code")) {
    const at = kept.scroll.get(key(el, root));
    if (at) [el.scrollLeft, el.scrollTop] = at;
  }
  if (!kept.focus) return;
  for (const el of root.querySelectorAll("a[href], button, input, textarea, select, summary, [tabindex]")) {
    if (key(el, root) !== kept.focus.key) continue;
    el.focus({ preventScroll: true });
    if (kept.focus.start != null) { try { el.setSelectionRange(kept.focus.start, kept.focus.end); } catch { /* no text field */ } }
    break;
  }
}

connect();
