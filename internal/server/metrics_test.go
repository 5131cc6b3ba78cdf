package server

import (
	"strings"
	"testing"
)

func TestSettingsOfTheMetricsStoreAreCheckedWithoutTellingSecrets(t *testing.T) {
	c := Config{MetricsStore: "http://prometheus:9090", MetricsHeaders: []string{"x-scope-orgid: fleet", "Authorization: Bearer a:b"}}
	got, err := c.metricsStore()
	if err != nil || got.URL != c.MetricsStore || got.Header.Get("X-Scope-OrgID") != "fleet" || got.Header.Get("Authorization") != "Bearer a:b" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := (Config{}).metricsStore(); got != nil || err != nil {
		t.Errorf("without a store: %+v, %v", got, err)
	}
	for _, bad := range []Config{
		{MetricsWrite: "http://x"}, {MetricsHeaders: []string{"a: b"}}, {MetricsStore: "http://x", MetricsHeaders: []string{"secret"}},
		{MetricsStore: "http://x", MetricsHeaders: []string{"se cret: x"}}, {MetricsStore: "http://x", MetricsHeaders: []string{"a: secret\r\nb: c"}},
	} {
		if _, err := bad.metricsStore(); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
