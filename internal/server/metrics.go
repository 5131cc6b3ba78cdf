package server

import (
	"fmt"
	"net/http"
	"net/textproto"
	"strings"

	"steward/internal/monitoring/series"
)

// metricsStore reads the settings of a store of metrics outside; nil without one.
func (c Config) metricsStore() (*series.RemoteConfig, error) {
	if c.MetricsStore == "" {
		if c.MetricsWrite != "" || len(c.MetricsHeaders) > 0 {
			return nil, fmt.Errorf("an address for writes or headers of a metrics store are given, and no store")
		}
		return nil, nil
	}
	header := http.Header{}
	for i, line := range c.MetricsHeaders {
		name, value, found := strings.Cut(line, ":")
		name = textproto.TrimString(name)
		if !found || name == "" || strings.ContainsAny(name, " \t\r\n") || strings.ContainsAny(value, "\r\n") {
			return nil, fmt.Errorf("header %d of the metrics store: want \"Name: value\"", i+1) // it may hold a secret
		}
		header.Add(name, textproto.TrimString(value))
	}
	return &series.RemoteConfig{URL: c.MetricsStore, WriteURL: c.MetricsWrite, Header: header}, nil
}

// partialMetrics names this node when others are there that keep metrics of their own.
func (r *rooms) partialMetrics() string {
	if len(r.aliveNodes()) < 2 {
		return ""
	}
	return r.cfg.nodeName()
}
