package ui

import "html/template"

// iconPaths are line icons on a grid of 16, drawn for Steward.
var iconPaths = map[string]string{
	"fleet":    `<path d="M2 8 8 3l6 5M4 7v6h8V7"/>`,
	"devices":  `<rect x="2" y="3" width="12" height="4" rx="1"/><rect x="2" y="9" width="12" height="4" rx="1"/><path d="M4.5 5h.01M4.5 11h.01"/>`,
	"groups":   `<circle cx="5" cy="5" r="2"/><circle cx="11" cy="5" r="2"/><circle cx="8" cy="11" r="2"/>`,
	"orders":   `<path d="M2 4h2l1.5 7h6L13 6H4.6"/><circle cx="6.5" cy="13" r=".6"/><circle cx="10.5" cy="13" r=".6"/>`,
	"stock":    `<path d="M2 5l6-3 6 3v6l-6 3-6-3zM2 5l6 3 6-3M8 8v6"/>`,
	"key":      `<circle cx="5" cy="11" r="2.5"/><path d="M7 9l6-6M11 5l2 2"/>`,
	"release":  `<path d="M8 2v8M5 7l3 3 3-3M3 13h10"/>`,
	"update":   `<path d="M13 8a5 5 0 1 1-1.5-3.5M13 2v3h-3"/>`,
	"command":  `<path d="M3 4l4 4-4 4M8.5 12H13"/>`,
	"trash":    `<path d="M3 4h10M6 4V2.5h4V4M4.5 4l.5 9.5h6l.5-9.5"/>`,
	"ledger":   `<path d="M4 2h8v12H4zM6.5 5h3M6.5 8h3M6.5 11h3"/>`,
	"access":   `<circle cx="8" cy="5" r="2.5"/><path d="M3 14c0-3 2.2-4.5 5-4.5s5 1.5 5 4.5"/>`,
	"settings": `<circle cx="8" cy="8" r="2"/><path d="M8 2v2M8 12v2M2 8h2M12 8h2M3.8 3.8l1.4 1.4M10.8 10.8l1.4 1.4M12.2 3.8l-1.4 1.4M5.2 10.8l-1.4 1.4"/>`,
	"chart":    `<path d="M2 13h12M3 10l3-4 3 2 4-5"/>`,
	"search":   `<circle cx="7" cy="7" r="4"/><path d="M10 10l4 4"/>`,
	"menu":     `<path d="M2 4h12M2 8h12M2 12h12"/>`,
	"check":    `<path d="M3 8.5 6.5 12 13 4.5"/>`,
	"warn":     `<path d="M8 2 14.5 13.5H1.5zM8 6.5v3M8 11.5h.01"/>`,
	"theme":    `<circle cx="8" cy="8" r="5.5"/><path d="M8 2.5v11a5.5 5.5 0 0 0 0-11" class="solid"/>`,
	"dot":      `<circle cx="8" cy="8" r="2"/>`,
}

func icon(name string) template.HTML {
	path, ok := iconPaths[name]
	if !ok {
		path = iconPaths["dot"]
	}
	return template.HTML(`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true">` + path + `</svg>`)
}
