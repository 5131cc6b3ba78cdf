// Returns what is wrong with the page as sentences. See Tab.Check.
(() => {
  const found = [];
  const path = (el) => {
    let p = el.tagName.toLowerCase();
    if (el.id) p += `#${el.id}`;
    else if (el.className?.baseVal ?? el.className) p += "." + String(el.className.baseVal ?? el.className).trim().split(/\s+/).join(".");
    return `<${p}> "${(el.textContent || "").trim().replace(/\s+/g, " ").slice(0, 40)}"`;
  };
  const visible = (el) => el.checkVisibility({ visibilityProperty: true }) && !el.closest(".hidden, .skip, dialog:not([open])");

  // no sideways scrolling of the page; wide tables scroll in their own box
  const doc = document.documentElement;
  if (doc.scrollWidth > doc.clientWidth) {
    found.push(`the page is ${doc.scrollWidth} px wide in a window of ${doc.clientWidth}`);
    for (const el of document.querySelectorAll("body *")) {
      if (visible(el) && el.getBoundingClientRect().right > doc.clientWidth + 1 && !el.closest(".table-wrap, pre, .tabs, svg, .copy")) {
        found.push(`  reaches beyond the window: ${path(el)}`);
        if (found.length > 6) break;
      }
    }
  }

  // names
  const nameOf = (el) => (el.getAttribute("aria-label")
    || (el.getAttribute("aria-labelledby") || "").split(/\s+/).map((id) => document.getElementById(id)?.textContent || "").join(" ")
    || [...(el.labels || [])].map((l) => l.textContent).join(" ")
    || el.textContent || el.title || el.querySelector?.("svg title, img[alt]")?.textContent || "").trim();
  for (const el of document.querySelectorAll("input:not([type=hidden], [type=submit]), select, textarea")) {
    const own = (el.getAttribute("aria-label") || el.getAttribute("aria-labelledby") || [...el.labels].map((l) => l.textContent.trim()).join(""));
    if (!own) found.push(`field without a label: ${path(el)} ${el.name}`);
  }
  for (const el of document.querySelectorAll("a[href], button, summary")) {
    if (!nameOf(el)) found.push(`link or button without a name: ${path(el)}`);
  }
  for (const el of document.querySelectorAll("img:not([alt])")) found.push(`picture without a text: ${el.src}`);
  for (const el of document.querySelectorAll("svg")) {
    if (el.getAttribute("aria-hidden") !== "true" && !(el.getAttribute("role") === "img" && (el.getAttribute("aria-label") || el.getAttribute("aria-labelledby")))) {
      found.push(`drawing without a text: ${path(el.parentElement)}`);
    }
  }
  for (const el of document.querySelectorAll("[aria-labelledby], [aria-describedby]")) {
    for (const attr of ["aria-labelledby", "aria-describedby"]) {
      for (const id of (el.getAttribute(attr) || "").split(/\s+/).filter(Boolean)) {
        if (!document.getElementById(id)) found.push(`${attr} names a missing #${id}: ${path(el)}`);
      }
    }
  }
  const ids = new Set();
  for (const el of document.querySelectorAll("[id]")) {
    if (ids.has(el.id)) found.push(`the ID ${el.id} is there twice`);
    ids.add(el.id);
  }

  // headings and landmarks
  const headings = [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter(visible);
  if (headings.filter((h) => h.tagName === "H1").length !== 1) found.push("the page has not exactly one h1");
  headings.reduce((before, h) => {
    const level = Number(h.tagName[1]);
    if (level > before + 1) found.push(`h${level} follows h${before}: ${path(h)}`);
    return level;
  }, 0);
  if (document.querySelectorAll("main").length !== 1) found.push("the page has not exactly one main");
  if (!document.documentElement.lang) found.push("the page has no language");
  if (!document.title) found.push("the page has no title");
  for (const t of document.querySelectorAll("table")) {
    if (!t.querySelector("th")) found.push(`table without heads: ${path(t).slice(0, 60)}`);
  }
  for (const el of document.querySelectorAll("[style]")) found.push(`style attribute: ${path(el)}`);

  // contrast of texts on their grounds
  const parse = (c) => {
    const m = c.match(/rgba?\(([^)]+)\)/);
    if (!m) return null;
    const [r, g, b, a] = m[1].split(/[\s,/]+/).map(Number);
    return { r, g, b, a: a === undefined ? 1 : a };
  };
  const over = (top, under) => ({
    r: top.r * top.a + under.r * (1 - top.a), g: top.g * top.a + under.g * (1 - top.a), b: top.b * top.a + under.b * (1 - top.a), a: 1,
  });
  const ground = (el) => {
    const layers = [];
    for (let e = el; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c && c.a > 0) layers.push(c);
      if (c && c.a === 1) break;
    }
    return layers.reverse().reduce((under, c) => over(c, under), { r: 255, g: 255, b: 255, a: 1 });
  };
  const light = ({ r, g, b }) => {
    const f = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const el = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || seen.has(el) || !visible(el) || el.closest("title, desc, option, script, :disabled")) continue;
    seen.add(el);
    const style = getComputedStyle(el), under = ground(el);
    const ink = parse(el.closest("svg") ? style.fill : style.color);
    if (!ink) continue;
    const [a, b] = [light(over(ink, under)), light(under)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.push(`contrast ${ratio.toFixed(2)}:1 of ${path(el)}`);
  }

  // targets: links inside of a sentence are free of the rule
  for (const el of document.querySelectorAll("button, input:not([type=hidden]), select, .button, .nav a, .tabs a")) {
    if (!visible(el) || getComputedStyle(el).opacity === "0") continue;
    const box = el.getBoundingClientRect();
    if ((box.height < 24 || box.width < 24) && !["checkbox", "radio"].includes(el.type) && !el.matches(".linklike")) {
      found.push(`target of ${Math.round(box.width)}×${Math.round(box.height)} px: ${path(el)}`);
    }
  }
  return found;
})()
