package monitoring

import "testing/fstest"

// panelFrame stands for the device page, which belongs to another room.
var panelFrame = fstest.MapFS{"panel_frame.html": {Data: []byte(
	`{{define "content"}}<section class="section" aria-labelledby="metrics-title"><h2 id="metrics-title">Metrics</h2>{{.Data.Inside}}</section>{{end}}`)}}
