package ui

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"steward/internal/httpapi"
)

func TestALiveStreamOfAnEndedSessionEndsThoughEventsNeverStop(t *testing.T) {
	events := newFeed()
	events.add("device")
	r := httptest.NewRequest("GET", "/live?topics=device", nil) // nobody's, by now
	rec := httptest.NewRecorder()
	s := &liveStream{
		c: &Console{cfg: Config{Auth: whoIs{}, Events: events}}, w: rec, rc: http.NewResponseController(rec), r: r,
		tenant: "default", topics: []string{"device"}, checked: time.Now().Add(-liveHeartbeat),
	}
	if err := s.step(t.Context()); httpapi.Status(err) != 401 || rec.Body.Len() != 0 {
		t.Errorf("went on: %v, %q", err, rec.Body)
	}
}
