package access

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

func (h *house) try(t *testing.T, name, password, from string) error {
	t.Helper()
	_, _, err := h.s.SignIn(t.Context(), SignIn{Name: name, Password: password, Client: netip.MustParseAddr(from)})
	return err
}

func TestGuessingIsSlowedDownPerAccountAndAddress(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Viewer})
		for i := range 5 {
			if err := h.try(t, "anna", "wrong", "192.0.2.1"); !errors.Is(err, fault.Unauthorized) {
				t.Fatalf("guess %d: %v", i, err)
			}
		}
		var later *httpapi.Later
		err := h.try(t, "anna", goodPassword, "192.0.2.1")
		if !errors.Is(err, fault.TooMany) || !errors.As(err, &later) || later.After != 30*time.Second {
			t.Fatalf("the sixth: %v, want to wait 30 s", err)
		}
		if err := h.try(t, "anna", goodPassword, "192.0.2.2"); err != nil {
			t.Errorf("anna herself, from elsewhere: %v", err)
		}
		h.clock.Add(30 * time.Second)
		if err := h.try(t, "anna", goodPassword, "192.0.2.1"); err != nil {
			t.Errorf("after the wait: %v", err)
		}
		for i := range 5 { // the right password filled the bucket
			if err := h.try(t, "anna", "wrong", "192.0.2.1"); !errors.Is(err, fault.Unauthorized) {
				t.Fatalf("guess %d afterwards: %v", i, err)
			}
		}
	})
}

func TestGuessingFromManyAddressesAndOfManyNamesIsSlowedDown(t *testing.T) {
	g := newGuesses((&clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}).Now)
	passed := 0
	for i := range 500 {
		if g.begin(newAttempt("anna", netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i % 250)}))) == nil {
			passed++
		}
	}
	if passed != 50 {
		t.Errorf("%d guesses of one account from 500 addresses, want 50", passed)
	}
	passed = 0
	for i := range 500 { // a customer's /64
		addr := netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i))
		if g.begin(newAttempt(fmt.Sprintf("name-%d", i), addr)) == nil {
			passed++
		}
	}
	if passed != 30 {
		t.Errorf("%d guesses of 500 names from one network, want 30", passed)
	}
}

func TestFailuresDoNotFloodTheLedger(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Viewer})
		h.ledger.kinds()
		for range 20 {
			_ = h.try(t, "anna", "wrong", "192.0.2.1")
		}
		_ = h.try(t, "My-Secret-Passw0rd", "x", "192.0.2.9")
		h.clock.Add(time.Minute)
		_ = h.try(t, "anna", "wrong", "192.0.2.1")
		events := h.ledger.events()
		if len(events) != 3 {
			t.Fatalf("%d events: %+v", len(events), events)
		}
		if events[0].Kind != kindSignInFailed || events[0].Subject != anna.ID || !strings.Contains(string(events[0].Data), "192.0.2.1") {
			t.Errorf("first: %+v", events[0])
		}
		if events[1].Subject != "" || strings.Contains(strings.ToLower(string(events[1].Data)), "my-secret") {
			t.Errorf("the name that was typed is kept: %s", events[1].Data)
		}
		if !strings.Contains(string(events[1].Data), `"left_out":19`) || strings.Contains(string(events[2].Data), "left_out") {
			t.Errorf("19 were left out before the second: %s, then %s", events[1].Data, events[2].Data)
		}
	})
}

func TestUnknownAccountLooksLikeAWrongPassword(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		h.person(t, h.admin(t), NewAccount{Name: "bot", Role: httpapi.Viewer, Program: true})
		h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Viewer})
		off := h.person(t, h.admin(t), NewAccount{Name: "off", Role: httpapi.Viewer})
		yes := true
		if _, err := h.s.ChangeAccount(t.Context(), h.admin(t), off.ID, AccountChange{Disabled: &yes}, ""); err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, c := range [][2]string{{"anna", "wrong"}, {"nobody", "wrong"}, {"bot", ""}, {"off", goodPassword}, {"", ""}, {"a\x00\xff", strings.Repeat("x", 5000)}} {
			err := h.try(t, c[0], c[1], "192.0.2.1")
			if !errors.Is(err, fault.Unauthorized) {
				t.Errorf("%q: %v", c[0], err)
				continue
			}
			texts = append(texts, err.Error())
		}
		if len(slices.Compact(slices.Clone(texts))) != 1 {
			t.Errorf("different texts: %q", texts)
		}
	})
}

// The work is what takes the time, so its amount is compared and not a clock's reading.
func TestUnknownAccountCostsAsMuchWork(t *testing.T) {
	h := newHasher()
	real, err := h.hash(t.Context(), goodPassword)
	if err != nil {
		t.Fatal(err)
	}
	a, saltA, hashA, errA := decode(real)
	b, saltB, hashB, errB := decode(h.dummy)
	if errA != nil || errB != nil || a != b || a != currentCosts || len(saltA) != len(saltB) || len(hashA) != len(hashB) {
		t.Errorf("real %+v, dummy %+v, %v %v", a, b, errA, errB)
	}
	if ok, _, err := h.verify(t.Context(), "", goodPassword); ok || err != nil {
		t.Errorf("no stored password matched: %v %v", ok, err)
	}
}

func TestStoredPasswordOfOtherCostsIsStoredAnew(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Viewer})
		old := costs{memoryKiB: 8 << 10, passes: 1, lanes: 1}
		salt := randomBytes(saltBytes)
		h.exec(t, "UPDATE access_account SET password = $1 WHERE id = $2", encode(old, salt, derive(old, goodPassword, salt, hashBytes)), anna.ID)
		h.signIn(t, "anna", goodPassword)
		if c, _, _, err := decode(mustAccount(t, h, "anna").password); err != nil || c != currentCosts {
			t.Errorf("stored with %+v, %v", c, err)
		}
		h.signIn(t, "anna", goodPassword)
	})
}

func TestStoredPasswordCannotStopTheServer(t *testing.T) {
	for _, bad := range []string{
		"", "x", "$argon2i$v=19$m=19456,t=2,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=4294967295,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=19456,t=99999,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=19456,t=0,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=19456,t=2,p=1$$",
	} {
		if _, _, _, err := decode(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestManySignInsAtATimeAreBounded(t *testing.T) {
	h := newHasher()
	releases := []func(){}
	for range cap(h.slots) {
		release, err := h.slot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	var wg sync.WaitGroup
	for range maxWaiting {
		wg.Go(func() {
			release, err := h.slot(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			release()
		})
	}
	deadline := time.Now().Add(10 * time.Second)
	for h.waiting.Load() < maxWaiting && time.Now().Before(deadline) {
		<-time.After(time.Millisecond)
	}
	if _, err := h.slot(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("one more than may wait: %v", err)
	}
	for _, release := range releases {
		release()
	}
	wg.Wait()
}

func TestSignInMakesANewSessionAndEndsTheOneBroughtAlong(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		first := h.signIn(t, firstAdmin, h.password)
		second, _, err := h.s.SignIn(t.Context(), SignIn{Name: firstAdmin, Password: h.password, Previous: first})
		if err != nil || second == first {
			t.Fatalf("%v", err)
		}
		h.mustCall(t, 401, "GET", "/whoami", first, "")
		h.mustCall(t, 200, "GET", "/whoami", second, "")
		planted := strings.Repeat("0", len(second))
		third, _, err := h.s.SignIn(t.Context(), SignIn{Name: firstAdmin, Password: h.password, Previous: planted})
		if err != nil || third == planted {
			t.Fatalf("a planted cookie became the session: %v", err)
		}
		h.mustCall(t, 401, "GET", "/whoami", planted, "")
		if err := h.s.SignOut(t.Context(), third); err != nil {
			t.Fatal(err)
		}
		h.mustCall(t, 401, "GET", "/whoami", third, "")
		if err := h.s.SignOut(t.Context(), third); err != nil {
			t.Errorf("signing out twice: %v", err)
		}
	})
}

func TestSessionEndsWhenIdleAndAfterAWeek(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		idle, busy := h.signIn(t, firstAdmin, h.password), h.signIn(t, firstAdmin, h.password)
		h.clock.Add(SessionIdle - time.Minute)
		h.mustCall(t, 200, "GET", "/whoami", busy, "")
		h.clock.Add(time.Minute)
		h.mustCall(t, 401, "GET", "/whoami", idle, "")
		for passed := SessionIdle; passed+10*time.Hour < SessionLife; passed += 10 * time.Hour {
			h.mustCall(t, 200, "GET", "/whoami", busy, "")
			h.clock.Add(10 * time.Hour)
		}
		h.mustCall(t, 200, "GET", "/whoami", busy, "")
		h.clock.Add(10 * time.Hour)
		h.mustCall(t, 401, "GET", "/whoami", busy, "")
	})
}

func TestCookieAloneDoesNothingFromAnotherSite(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		cookie := h.signIn(t, firstAdmin, h.password)
		const body = `{"id":"acme"}`
		h.mustCall(t, 403, "POST", "/tenants", cookie, body, "Sec-Fetch-Site", "cross-site")
		h.mustCall(t, 403, "POST", "/tenants", cookie, body, "Sec-Fetch-Site", "same-site")
		h.mustCall(t, 403, "POST", "/tenants", cookie, body, "Origin", "https://evil.example")
		h.mustCall(t, 201, "POST", "/tenants", cookie, body, "Sec-Fetch-Site", "same-origin")
		token := h.token(t, mustAccount(t, h, firstAdmin))
		h.mustCall(t, 201, "POST", "/tenants", token, `{"id":"other"}`, "Origin", "https://dashboard.example")
		// A request with an Authorization header is never judged by its cookie.
		h.mustCall(t, 401, "GET", "/whoami", cookie, "", "Authorization", "Basic YTpi")
		h.mustCall(t, 401, "GET", "/whoami", cookie, "", "Authorization", "Bearer "+newTokenSecret())
	})
}

func TestOwnPasswordChangeEndsEveryOldSession(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Viewer})
		old, other := h.signIn(t, "anna", goodPassword), h.signIn(t, "anna", goodPassword)
		change := PasswordChange{Account: anna.ID, Current: goodPassword, New: "correct horse battery", Client: netip.MustParseAddr("192.0.2.1")}
		for _, c := range []struct{ current, fresh, field string }{
			{"wrong", change.New, "current"}, {goodPassword, "short", "new"}, {goodPassword, goodPassword, "new"},
		} {
			var invalid *fault.Invalid
			_, err := h.s.ChangeOwnPassword(t.Context(), PasswordChange{Account: anna.ID, Current: c.current, New: c.fresh, Client: change.Client})
			if !errors.As(err, &invalid) || invalid.Fields[0].Location != c.field {
				t.Errorf("%s: %v", c.field, err)
			}
		}
		h.mustCall(t, 200, "GET", "/whoami", old, "")
		fresh, err := h.s.ChangeOwnPassword(t.Context(), change)
		if err != nil {
			t.Fatal(err)
		}
		h.mustCall(t, 401, "GET", "/whoami", old, "")
		h.mustCall(t, 401, "GET", "/whoami", other, "")
		h.mustCall(t, 200, "GET", "/whoami", fresh, "")
		if err := h.try(t, "anna", goodPassword, "192.0.2.1"); !errors.Is(err, fault.Unauthorized) {
			t.Errorf("the old password: %v", err)
		}
	})
}

func TestPasswordThatMustBeChangedOpensNothingElse(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		anna, password, err := h.s.CreateAccount(t.Context(), h.admin(t), NewAccount{Name: "anna", Role: httpapi.Viewer})
		if err != nil {
			t.Fatal(err)
		}
		cookie := h.signIn(t, "anna", password)
		if r := h.mustCall(t, 401, "GET", "/whoami", cookie, ""); !strings.Contains(r.text, "new password") {
			t.Errorf("got %s", r.text)
		}
		h.mustCall(t, 403, "POST", "/login", "", fmt.Sprintf(`{"name":"anna","password":%q}`, password))
		fresh, err := h.s.ChangeOwnPassword(t.Context(), PasswordChange{Account: anna.ID, Current: password, New: goodPassword, Client: netip.MustParseAddr("192.0.2.1")})
		if err != nil {
			t.Fatal(err)
		}
		h.mustCall(t, 200, "GET", "/whoami", fresh, "")
	})
}

func TestOperatorOfTheInstallationChoosesATenantForTheSession(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		cookie := h.signIn(t, firstAdmin, h.password)
		h.mustCall(t, 201, "POST", "/tenants", cookie, `{"id":"acme"}`)
		if err := h.s.EnterTenant(t.Context(), h.admin(t), cookie, "acme"); err != nil {
			t.Fatal(err)
		}
		if me := h.mustCall(t, 200, "GET", "/whoami", cookie, ""); me.json["tenant"] != "acme" {
			t.Errorf("whoami: %s", me.text)
		}
		if me := h.mustCall(t, 200, "GET", "/whoami", cookie, "", TenantHeader, "default"); me.json["tenant"] != "default" {
			t.Errorf("the header comes before the choice: %s", me.text)
		}
		if err := h.s.EnterTenant(t.Context(), h.admin(t), cookie, "nowhere"); !errors.Is(err, fault.NotFound) {
			t.Errorf("unknown tenant: %v", err)
		}
		anna := h.person(t, in(h.admin(t), "acme"), NewAccount{Name: "anna", Role: httpapi.Admin})
		theirs := h.signIn(t, "anna", goodPassword)
		if err := h.s.EnterTenant(t.Context(), principalOf(anna), theirs, device.DefaultTenant); !errors.Is(err, fault.Forbidden) {
			t.Errorf("anna: %v", err)
		}
		// Who is no operator any more falls back to their own tenant.
		h.person(t, h.admin(t), NewAccount{Name: "second", Role: httpapi.Admin})
		operator := httpapi.Operator
		if _, err := h.s.ChangeAccount(t.Context(), h.admin(t), h.admin(t).Actor.ID, AccountChange{Role: &operator}, ""); err != nil {
			t.Fatal(err)
		}
		if me := h.mustCall(t, 200, "GET", "/whoami", cookie, ""); me.json["tenant"] != "default" {
			t.Errorf("after the demotion: %s", me.text)
		}
	})
}

func TestNoSecretReachesLogOrLedger(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		secrets := []string{h.password, goodPassword}
		cookie := h.signIn(t, firstAdmin, h.password)
		token := h.mustCall(t, 201, "POST", "/login", "", fmt.Sprintf(`{"name":"admin","password":%q}`, h.password)).json["secret"].(string)
		made := h.mustCall(t, 201, "POST", "/accounts", token, `{"name":"anna","role":"viewer"}`).json["password"].(string)
		reset := h.mustCall(t, 200, "POST", "/accounts/"+mustAccount(t, h, "anna").ID+"/password", token, "").json["password"].(string)
		h.mustCall(t, 201, "POST", "/accounts", token, fmt.Sprintf(`{"name":"bert","role":"viewer","password":%q}`, goodPassword))
		h.mustCall(t, 422, "POST", "/accounts", token, `{"name":"bert","role":"viewer","password":"shortsecret"}`)
		h.mustCall(t, 401, "POST", "/login", "", `{"name":"typedsecret","password":"guessedsecret"}`)
		h.mustCall(t, 401, "GET", "/whoami", tokenPrefix+strings.Repeat("z", 52), "")
		secrets = append(secrets, cookie, token, made, reset, "shortsecret", "typedsecret", "guessedsecret", strings.Repeat("z", 52))
		if !strings.Contains(h.log.String(), `"operation":"log-in"`) {
			t.Fatal("the log was not captured")
		}
		var rest strings.Builder
		for _, e := range h.ledger.events() {
			fmt.Fprintf(&rest, "%s %+v %s %s\n", e.Kind, e.Actor, e.Reason, e.Data)
		}
		for _, table := range []string{"SELECT hash FROM access_session", "SELECT hash FROM access_token", "SELECT password FROM access_account"} {
			rows, err := h.db.QueryContext(t.Context(), table)
			if err != nil {
				t.Fatal(err)
			}
			for rows.Next() {
				var v string
				if err := rows.Scan(&v); err != nil {
					t.Fatal(err)
				}
				rest.WriteString(v + "\n")
			}
			if err := rows.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for _, secret := range secrets {
			if strings.Contains(h.log.String(), secret) {
				t.Errorf("the log has %q", secret)
			}
			if strings.Contains(rest.String(), secret) {
				t.Errorf("ledger or database has %q", secret)
			}
		}
	})
}
