package stewardtest_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"steward/internal/agent"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
)

// blocked starts the agent and expects that it stops with these words, that nobody is enrolled, and
// that a right token brings it in afterwards.
func blocked(t *testing.T, h *House, d *Device, says string) {
	t.Helper()
	a := d.Start()
	h.Until("the agent is told: "+says, func() bool {
		s := a.Status()
		return s.State != agent.StateOnline && strings.Contains(s.Detail, says)
	})
	if err := d.Stop(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	if s := a.Status(); s.Device != "" {
		t.Errorf("it is enrolled as %s", s.Device)
	}
}

// recovers gives the agent a right token.
func recovers(t *testing.T, h *House, d *Device, id string) {
	t.Helper()
	token := h.EnrollmentToken(id)
	d.Tune(func(c *agent.Config) { c.Token = token })
	a := d.Start()
	h.Until("the agent comes in with a right token", func() bool { return a.Status().State == agent.StateOnline && a.Status().Device == id })
}

func TestWrongTokensAreRefusedClearlyAndARightOneHelps(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	h := Start(t, Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	ids := h.Buy(h.Serials(0, 5)...)
	tokenOf := func(id string, life int) (secret, token string) {
		out := h.Send(http.MethodPost, "/enrollment-tokens", Object{"device": id, "life_seconds": life})
		secret, _ = out["token"].(string)
		token, _ = out["id"].(string)
		return secret, token
	}

	expired, _ := tokenOf(ids[0], 60)
	ahead.Store(int64(2 * time.Minute))
	d := h.Device(0, expired)
	blocked(t, h, d, "token")
	recovers(t, h, d, ids[0])

	revoked, name := tokenOf(ids[1], 3600)
	h.Send(http.MethodDelete, "/enrollment-tokens/"+name+"?reason=lost", nil)
	d = h.Device(1, revoked)
	blocked(t, h, d, "token")
	recovers(t, h, d, ids[1])

	ofAnother, _ := tokenOf(ids[3], 3600)
	d = h.Device(2, ofAnother)
	blocked(t, h, d, "token")
	recovers(t, h, d, ids[2])
	d = h.Device(3, ofAnother) // the attempt above has not used it up
	recovered := d.Start()
	h.Until("the token still lets its own device in", func() bool { return recovered.Status().Device == ids[3] })

	again := h.Device(3, ofAnother) // a second disk with the same token
	blocked(t, h, again, "used")
	if n := len(h.Events(ids[3], "provisioning.token_reused")); n != 1 {
		t.Errorf("%d events tell of the reuse", n)
	}
	if home := h.Page("/"); !strings.Contains(home, "used enrollment token was tried") {
		t.Error("the first page does not tell of the reuse")
	}
}

func TestTokenOfAnotherServerIsRefused(t *testing.T) {
	t.Parallel()
	h, other := Start(t, Options{}), Start(t, Options{})
	id := h.Buy(h.Serials(0, 1)...)[0]
	foreign := other.EnrollmentToken(other.Buy(other.Serials(0, 1)...)[0])
	d := h.Device(0, foreign)
	blocked(t, h, d, "trust")
	recovers(t, h, d, id)
}
