package httpapi_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

const (
	goodThing = `{"name":"a","quantity":1}`
	key       = "Idempotency-Key"
)

func eachEngine(t *testing.T, test func(t *testing.T, s *sample)) {
	sqldbtest.Each(t, []sqldb.Migration{httpapi.Migration()}, func(t *testing.T, db *sqldb.DB) {
		test(t, newSample(t, func(c *httpapi.Config) { c.DB = db }))
	})
}

func TestRepeatedRequestGetsTheFirstAnswer(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sample) {
		first := s.send(t, "POST", "/api/v1/things", "operator", goodThing, key, "key-00001")
		again := s.send(t, "POST", "/api/v1/things", "operator", goodThing, key, "key-00001")
		if first.StatusCode != 200 || again.StatusCode != 200 || first.body != again.body || s.made.Load() != 1 {
			t.Errorf("got %d %s, then %d %s; made %d", first.StatusCode, first.body, again.StatusCode, again.body, s.made.Load())
		}
		if first.Header.Get("Idempotent-Replayed") != "" || again.Header.Get("Idempotent-Replayed") != "true" {
			t.Error("only the second is a replay")
		}
		if again.Header.Get("Content-Type") != first.Header.Get("Content-Type") {
			t.Errorf("content type %q, then %q", first.Header.Get("Content-Type"), again.Header.Get("Content-Type"))
		}
		other := s.send(t, "POST", "/api/v1/things", "admin", goodThing, key, "key-00001")
		if other.StatusCode != 200 || other.body == first.body {
			t.Errorf("another principal got %d %s", other.StatusCode, other.body)
		}
		csv := []string{"Content-Type", "text/csv", key, "key-00002"}
		one := s.send(t, "POST", "/api/v1/import", "operator", "a,b", csv...)
		two := s.send(t, "POST", "/api/v1/import", "operator", "a,b", csv...)
		if one.StatusCode != 200 || one.body != two.body {
			t.Errorf("stream: %q, then %q", one.body, two.body)
		}
	})
}

func TestKeyOfAnotherRequestIsRefused(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sample) {
		s.send(t, "POST", "/api/v1/things", "operator", goodThing, key, "key-00001")
		for name, a := range map[string]answer{
			"other body": s.send(t, "POST", "/api/v1/things", "operator", `{"name":"b","quantity":1}`, key, "key-00001"),
			"other path": s.send(t, "POST", "/api/v1/settled", "operator", goodThing, key, "key-00001"),
			"too short":  s.send(t, "POST", "/api/v1/things", "operator", goodThing, key, "1"),
			"a blank":    s.send(t, "POST", "/api/v1/things", "operator", goodThing, key, "0000 00000"),
		} {
			if a.StatusCode != 422 || a.problem.Errors[0].Location != "header.Idempotency-Key" {
				t.Errorf("%s: got %d %s", name, a.StatusCode, a.body)
			}
		}
		if s.made.Load() != 1 {
			t.Errorf("made %d", s.made.Load())
		}
	})
}

func TestRefusalFreesTheKey(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sample) {
		for _, how := range []string{"done", "later", "fields"} {
			for range 2 {
				before := s.made.Load()
				s.send(t, "POST", "/api/v1/fail/"+how, "operator", "", key, "key-"+how+"-0")
				if s.made.Load() != before+1 {
					t.Errorf("%s did not run again", how)
				}
			}
		}
		if a := s.send(t, "POST", "/api/v1/things", "operator", `{"name":"","quantity":1}`, key, "key-00009"); a.StatusCode != 422 {
			t.Fatalf("got %d", a.StatusCode)
		}
		if a := s.send(t, "POST", "/api/v1/things", "operator", goodThing, key, "key-00009"); a.StatusCode != 200 {
			t.Errorf("the corrected request with the same key: %d %s", a.StatusCode, a.body)
		}
	})
}

func TestInternalErrorIsKeptSinceItsEffectIsUnknown(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sample) {
		s.send(t, "POST", "/api/v1/fail/internal", "operator", "", key, "key-00001")
		a := s.send(t, "POST", "/api/v1/fail/internal", "operator", "", key, "key-00001")
		if a.StatusCode != 500 || s.made.Load() != 1 {
			t.Errorf("got %d, ran %d times", a.StatusCode, s.made.Load())
		}
	})
}

func TestConcurrentRepetitionWaits(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sample) {
		done := make(chan answer, 1)
		go func() { done <- s.send(t, "POST", "/api/v1/slow", "operator", goodThing, key, "key-00001") }()
		<-s.started
		a := s.send(t, "POST", "/api/v1/slow", "operator", goodThing, key, "key-00001")
		if a.StatusCode != http.StatusConflict || a.Header.Get("Retry-After") == "" {
			t.Errorf("got %d, Retry-After %q, want 409", a.StatusCode, a.Header.Get("Retry-After"))
		}
		close(s.release)
		first := <-done
		if a := s.send(t, "POST", "/api/v1/slow", "operator", goodThing, key, "key-00001"); a.body != first.body || s.made.Load() != 1 {
			t.Errorf("got %s, want %s", a.body, first.body)
		}
	})
}

func TestKilledServerDoesNotDoItTwice(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sample) {
		// A panic leaves the row as a kill does: claimed, with no answer.
		s.send(t, "POST", "/api/v1/fail/panic", "operator", "", key, "key-00001")
		if a := s.send(t, "POST", "/api/v1/fail/panic", "operator", "", key, "key-00001"); a.StatusCode != 409 || a.Header.Get("Retry-After") == "" {
			t.Errorf("while the lease lasts: %d %s", a.StatusCode, a.body)
		}
		s.clock.Add(2 * time.Minute)
		a := s.send(t, "POST", "/api/v1/fail/panic", "operator", "", key, "key-00001")
		if a.StatusCode != 409 || !strings.Contains(a.body, "unknown") || s.made.Load() != 1 {
			t.Errorf("afterwards: %d %s, ran %d times", a.StatusCode, a.body, s.made.Load())
		}
	})
}

func TestSettledAnswerSurvivesTheKill(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sample) {
		s.crash.Store(true)
		if a := s.send(t, "POST", "/api/v1/settled", "operator", goodThing, key, "key-00001"); a.StatusCode != 500 {
			t.Fatalf("got %d, want the crash", a.StatusCode)
		}
		s.crash.Store(false)
		a := s.send(t, "POST", "/api/v1/settled", "operator", goodThing, key, "key-00001")
		if a.StatusCode != 200 || !strings.Contains(a.body, `"settled-1"`) || s.made.Load() != 1 {
			t.Errorf("got %d %s, ran %d times", a.StatusCode, a.body, s.made.Load())
		}
		if a := s.send(t, "POST", "/api/v1/settled", "operator", goodThing); a.StatusCode != 200 {
			t.Errorf("without a key: %d", a.StatusCode)
		}
	})
}

func TestKeyIsForgottenAfterADay(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sample) {
		s.send(t, "POST", "/api/v1/things", "operator", goodThing, key, "key-00001")
		s.clock.Add(24*time.Hour + time.Second)
		s.send(t, "POST", "/api/v1/things", "operator", goodThing, key, "key-00001")
		if s.made.Load() != 2 {
			t.Errorf("made %d, want 2", s.made.Load())
		}
		var rows int
		if err := s.db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM httpapi_idempotency").Scan(&rows); err != nil || rows != 1 {
			t.Errorf("%d rows are left (%v), want 1", rows, err)
		}
	})
}

func TestDatabaseHoldsNoAnswerInTheClear(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sample) {
		s.send(t, "POST", "/api/v1/things", "operator", `{"name":"hunter2","quantity":1}`, key, "key-00001")
		var row string
		var kept []byte
		if err := s.db.QueryRowContext(t.Context(), "SELECT key || principal || fingerprint, answer FROM httpapi_idempotency").Scan(&row, &kept); err != nil {
			t.Fatal(err)
		}
		if len(kept) == 0 || strings.Contains(row+string(kept), "hunter2") || strings.Contains(row+string(kept), "key-00001") {
			t.Errorf("row %s with %d bytes of answer", row, len(kept))
		}
	})
}
