package access

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

func TestTokenNeverDoesMoreThanItsAccountAndItsMaker(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.ReleaseManager, Selector: device.MustSelector("site=berlin")})
		bot := h.person(t, h.admin(t), NewAccount{Name: "bot", Role: httpapi.Operator, Program: true})
		admin := h.token(t, mustAccount(t, h, firstAdmin))
		mine := h.token(t, anna)
		for _, c := range []struct {
			secret, body string
			status       int
			says         string
		}{
			{mine, `{"name":"x","role":"admin"}`, 422, "release-manager at most"},
			{mine, `{"name":"x","role":"nobody"}`, 422, "body.role"},
			{mine, `{"name":"","role":"viewer"}`, 422, "body.name"},
			{mine, `{"name":"x","expires_in_days":9999}`, 422, "body.expires_in_days"},
			{mine, `{"name":"x","account":"` + bot.ID + `"}`, 403, "role admin"},
			{admin, `{"name":"x","account":"` + bot.ID + `","role":"admin"}`, 422, "operator at most"},
			{admin, `{"name":"x","account":"acc-none"}`, 404, "no such account"},
		} {
			if r := h.call(t, "POST", "/tokens", c.secret, c.body); r.StatusCode != c.status || !strings.Contains(r.text, c.says) {
				t.Errorf("%s: %d %s, want %d %s", c.body, r.StatusCode, r.text, c.status, c.says)
			}
		}
		narrow := h.mustCall(t, 201, "POST", "/tokens", mine, `{"name":"narrow","role":"viewer","selector":"tier=lab"}`).json["secret"].(string)
		me := h.mustCall(t, 200, "GET", "/whoami", narrow, "")
		if me.json["role"] != "viewer" || me.json["selector"] != "site=berlin,tier=lab" || me.json["account"] != anna.ID {
			t.Errorf("whoami: %s", me.text)
		}
		child := h.mustCall(t, 201, "POST", "/tokens", narrow, `{"name":"child","selector":"ring=one"}`).json["secret"].(string)
		me = h.mustCall(t, 200, "GET", "/whoami", child, "")
		if me.json["role"] != "viewer" || me.json["selector"] != "site=berlin,tier=lab,ring=one" {
			t.Errorf("whoami of the child: %s", me.text)
		}
		botSecret := h.mustCall(t, 201, "POST", "/tokens", admin, `{"name":"x","account":"`+bot.ID+`"}`).json["secret"].(string)
		if me := h.mustCall(t, 200, "GET", "/whoami", botSecret, ""); me.json["role"] != "operator" || me.json["account"] != bot.ID {
			t.Errorf("whoami of the bot: %s", me.text)
		}
	})
}

func TestTokenMadeWithATokenDiesWithIt(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Operator})
		parent, secret, err := h.s.IssueToken(t.Context(), principalOf(anna), NewToken{Name: "parent", Life: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		child := h.mustCall(t, 201, "POST", "/tokens", secret, `{"name":"child","expires_in_days":90}`)
		if child.json["expires"] != parent.Expires.Format(time.RFC3339Nano) {
			t.Errorf("the child expires %v, the parent %v", child.json["expires"], parent.Expires)
		}
		grand := h.mustCall(t, 201, "POST", "/tokens", child.json["secret"].(string), `{"name":"grandchild"}`).json["secret"].(string)
		h.mustCall(t, 200, "GET", "/whoami", grand, "")
		h.mustCall(t, 204, "DELETE", "/tokens/"+parent.ID, h.token(t, anna), "")
		for name, s := range map[string]string{"parent": secret, "child": child.json["secret"].(string), "grandchild": grand} {
			if r := h.call(t, "GET", "/whoami", s, ""); r.StatusCode != 401 {
				t.Errorf("%s: %d", name, r.StatusCode)
			}
		}
	})
}

func TestTokenExpiresAndShowsItsLastUse(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Viewer})
		_, secret, err := h.s.IssueToken(t.Context(), principalOf(anna), NewToken{Name: "x", Life: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		used := func() *time.Time {
			list, _, err := h.s.Tokens(t.Context(), principalOf(anna), "", httpapi.PageIn{Limit: 10})
			if err != nil || len(list) != 1 {
				t.Fatalf("%v, %v", list, err)
			}
			return list[0].Used
		}
		if used() != nil {
			t.Error("used before its first use")
		}
		h.mustCall(t, 200, "GET", "/whoami", secret, "")
		first := h.clock.Now()
		if u := used(); u == nil || !u.Equal(first) {
			t.Errorf("used %v, want %v", u, first)
		}
		h.clock.Add(30 * time.Second)
		h.mustCall(t, 200, "GET", "/whoami", secret, "")
		if u := used(); !u.Equal(first) {
			t.Errorf("stored again within a minute: %v", u)
		}
		h.clock.Add(59*time.Minute + 30*time.Second)
		h.mustCall(t, 401, "GET", "/whoami", secret, "")
	})
}

func TestChangeOnAnotherNodeTakesEffectWithinFiveSeconds(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Viewer})
		secret := h.token(t, anna)
		h.mustCall(t, 200, "GET", "/whoami", secret, "")
		other := New(Config{DB: h.db, Ledger: h.ledger, Now: h.clock.Now})
		yes := true
		if _, err := other.ChangeAccount(t.Context(), h.admin(t), anna.ID, AccountChange{Disabled: &yes}, ""); err != nil {
			t.Fatal(err)
		}
		h.clock.Add(5 * time.Second)
		h.mustCall(t, 401, "GET", "/whoami", secret, "")
	})
}

func TestAnswerReadBeforeAChangeIsNotCachedAfterIt(t *testing.T) {
	c := newCache((&clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}).Now)
	_, era, _ := c.get("hash")
	c.clear() // the change commits between the read and the put
	c.put("hash", grant{}, era)
	if _, _, ok := c.get("hash"); ok {
		t.Error("what was read before the change is served after it")
	}
	_, era, _ = c.get("hash")
	c.put("hash", grant{}, era)
	if _, _, ok := c.get("hash"); !ok {
		t.Error("nothing is cached")
	}
}

func TestPeopleSeeAndRevokeTheirOwnTokensOnly(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Operator})
		bert := h.person(t, h.admin(t), NewAccount{Name: "bert", Role: httpapi.Operator})
		a, b := h.token(t, anna), h.token(t, bert)
		list := h.mustCall(t, 200, "GET", "/tokens", a, "").json["items"].([]any)
		if len(list) != 1 || list[0].(map[string]any)["account_name"] != "anna" {
			t.Fatalf("anna sees %v", list)
		}
		id := list[0].(map[string]any)["id"].(string)
		h.mustCall(t, 404, "DELETE", "/tokens/"+id, b, "")
		h.mustCall(t, 403, "GET", "/tokens?account="+anna.ID, b, "")
		admin := h.token(t, mustAccount(t, h, firstAdmin))
		if all := h.mustCall(t, 200, "GET", "/tokens", admin, "").json["items"].([]any); len(all) != 3 {
			t.Errorf("the admin sees %d tokens", len(all))
		}
		h.mustCall(t, 204, "DELETE", "/tokens/"+id, admin, "")
		h.mustCall(t, 401, "GET", "/whoami", a, "")
	})
}

func TestLostTokenAnswerCanBeAskedForAgain(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		admin := h.token(t, mustAccount(t, h, firstAdmin))
		one := h.mustCall(t, 201, "POST", "/tokens", admin, `{"name":"ci"}`, "Idempotency-Key", "0123-4567-89ab")
		two := h.mustCall(t, 201, "POST", "/tokens", admin, `{"name":"ci"}`, "Idempotency-Key", "0123-4567-89ab")
		if one.json["secret"] != two.json["secret"] || one.text != two.text {
			t.Errorf("got %s, then %s", one.text, two.text)
		}
		acc := h.mustCall(t, 201, "POST", "/accounts", admin, `{"name":"anna","role":"viewer"}`, "Idempotency-Key", "0123-4567-89ac")
		again := h.mustCall(t, 201, "POST", "/accounts", admin, `{"name":"anna","role":"viewer"}`, "Idempotency-Key", "0123-4567-89ac")
		if acc.text != again.text || acc.json["password"] == "" {
			t.Errorf("got %s, then %s", acc.text, again.text)
		}
	})
}

func TestNumberOfTokensIsBounded(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		who := h.admin(t)
		var err error
		for i := 0; i <= maxTokensOfOne && err == nil; i++ {
			_, _, err = h.s.IssueToken(t.Context(), who, NewToken{Name: fmt.Sprint(i), Life: time.Hour})
		}
		if !errors.Is(err, fault.Conflict) {
			t.Fatalf("got %v", err)
		}
		h.clock.Add(32 * 24 * time.Hour)
		if _, _, err := h.s.IssueToken(t.Context(), who, NewToken{Name: "later"}); err != nil {
			t.Errorf("after they expired: %v", err)
		}
	})
}

func TestBootstrapTokenReplacesTheOneBefore(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		one, err := h.s.BootstrapToken(t.Context(), firstAdmin, "bootstrap")
		if err != nil {
			t.Fatal(err)
		}
		h.mustCall(t, 200, "GET", "/accounts", one, "")
		two, err := h.s.BootstrapToken(t.Context(), firstAdmin, "bootstrap")
		if err != nil {
			t.Fatal(err)
		}
		h.mustCall(t, 401, "GET", "/whoami", one, "")
		h.mustCall(t, 200, "GET", "/whoami", two, "")
	})
}

func TestEveryChangeIsAnEvent(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		admin := h.token(t, mustAccount(t, h, firstAdmin))
		h.ledger.kinds()
		h.mustCall(t, 201, "POST", "/tenants", admin, `{"id":"acme"}`)
		id := h.mustCall(t, 201, "POST", "/accounts", admin, `{"name":"anna","role":"viewer"}`).json["id"].(string)
		h.mustCall(t, 200, "PATCH", "/accounts/"+id, admin, `{"role":"operator"}`)
		h.mustCall(t, 200, "POST", "/accounts/"+id+"/password", admin, "")
		tok := h.mustCall(t, 201, "POST", "/tokens", admin, `{"name":"x","account":"`+id+`"}`).json["id"].(string)
		h.mustCall(t, 204, "DELETE", "/tokens/"+tok, admin, "")
		h.mustCall(t, 204, "DELETE", "/accounts/"+id, admin, "")
		events := h.ledger.events()
		want := []string{kindTenantCreated, kindAccountCreated, kindAccountChanged, kindPasswordReset, kindTokenCreated, kindTokenRevoked, kindAccountDeleted}
		if got := h.ledger.kinds(); !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		for _, e := range events {
			if e.Actor.Name != "admin (token test)" || e.Subject == "" {
				t.Errorf("%s by %+v about %q", e.Kind, e.Actor, e.Subject)
			}
		}
	})
}
