package access

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

func TestFirstStartMakesOneAdministratorForever(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		if len(h.password) < 20 {
			t.Fatalf("password %q", h.password)
		}
		name, password, created, err := h.s.EnsureAdmin(t.Context())
		if err != nil || created || password != "" || name != firstAdmin {
			t.Errorf("second start: %q %q %v %v", name, password, created, err)
		}
		h.signIn(t, firstAdmin, h.password)
		r := h.mustCall(t, 201, "POST", "/login", "", fmt.Sprintf(`{"name":" Admin","password":%q}`, h.password))
		me := h.mustCall(t, 200, "GET", "/whoami", r.json["secret"].(string), "")
		if me.json["role"] != "admin" || me.json["tenant"] != "default" || me.json["installation"] != true {
			t.Errorf("whoami: %s", me.text)
		}
	})
}

func TestConcurrentFirstStartsMakeOneAdministrator(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		h.exec(t, "DELETE FROM access_account")
		var wg sync.WaitGroup
		var mu sync.Mutex
		made := 0
		for range 4 {
			wg.Go(func() {
				_, _, created, err := New(Config{DB: h.db, Ledger: h.ledger, Now: h.clock.Now}).EnsureAdmin(t.Context())
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				if created {
					made++
				}
			})
		}
		wg.Wait()
		if n, err := countAdmins(t.Context(), h.db, device.DefaultTenant); made != 1 || n != 1 || err != nil {
			t.Errorf("%d said they made one, %d are there, %v", made, n, err)
		}
	})
}

func TestRolesDecideWhatAnAccountMayCall(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		secrets := map[httpapi.Role]string{}
		for r := httpapi.Viewer; r <= httpapi.Admin; r++ {
			secrets[r] = h.token(t, h.person(t, h.admin(t), NewAccount{Name: "p-" + r.String(), Role: r}))
		}
		for _, c := range []struct {
			method, path, body string
			least              httpapi.Role
			ok                 int
		}{
			{"GET", "/whoami", "", httpapi.Viewer, 200},
			{"GET", "/tokens", "", httpapi.Viewer, 200},
			{"POST", "/tokens", `{"name":"x"}`, httpapi.Viewer, 201},
			{"GET", "/tenants", "", httpapi.Viewer, 200},
			{"GET", "/accounts", "", httpapi.Admin, 200},
			{"POST", "/accounts", `{"name":"","role":"viewer"}`, httpapi.Admin, 422},
			{"PATCH", "/accounts/acc-none", `{"role":"viewer"}`, httpapi.Admin, 404},
			{"DELETE", "/accounts/acc-none", "", httpapi.Admin, 404},
			{"POST", "/accounts/acc-none/password", "", httpapi.Admin, 404},
			{"POST", "/tenants", `{"id":"Not Good"}`, httpapi.Admin, 422},
		} {
			for r := httpapi.Viewer; r <= httpapi.Admin; r++ {
				want := c.ok
				if r < c.least {
					want = 403
				}
				if got := h.call(t, c.method, c.path, secrets[r], c.body); got.StatusCode != want {
					t.Errorf("%s %s as %s: %d %s, want %d", c.method, c.path, r, got.StatusCode, got.text, want)
				}
			}
			if got := h.call(t, c.method, c.path, "", c.body); got.StatusCode != 401 {
				t.Errorf("%s %s as nobody: %d", c.method, c.path, got.StatusCode)
			}
		}
	})
}

func TestBadAccountsAreRefusedWithEachField(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		admin := h.token(t, mustAccount(t, h, firstAdmin))
		for _, c := range []struct{ body, field string }{
			{`{"name":"a b","role":"viewer"}`, "body.name"},
			{`{"name":"-a","role":"viewer"}`, "body.name"},
			{`{"name":"ä","role":"viewer"}`, "body.name"},
			{`{"name":"anna","role":"nobody"}`, "body.role"},
			{`{"name":"anna"}`, "body"},
			{`{"name":"anna","role":"viewer","email":"anna"}`, "body.email"},
			{`{"name":"anna","role":"viewer","email":"Anna <a@example.com>"}`, "body.email"},
			{`{"name":"anna","role":"viewer","password":"short"}`, "body.password"},
			{`{"name":"anna","role":"viewer","password":"aaaaaaaaaaaaaaaa"}`, "body.password"},
			{`{"name":"annabell","role":"viewer","password":"annabell-annabell"}`, "body.password"},
			{`{"name":"bot","role":"viewer","program":true,"password":"horse battery staple"}`, "body.password"},
			{`{"name":"anna","role":"admin","selector":"site=x"}`, "body.selector"},
			{`{"name":"anna","role":"viewer","selector":"site=="}`, ""},
			{`{"name":"anna","role":"viewer","selector":"site in x"}`, "body"},
		} {
			r := h.call(t, "POST", "/accounts", admin, c.body)
			if c.field == "" {
				if r.StatusCode == 201 { // an empty value is a valid selector
					h.exec(t, "DELETE FROM access_account WHERE name = 'anna'")
				}
				continue
			}
			if r.StatusCode != 422 || !strings.Contains(r.text, `"location":"`+c.field+`"`) {
				t.Errorf("%s: %d %s, want 422 at %s", c.body, r.StatusCode, r.text, c.field)
			}
		}
		h.mustCall(t, 201, "POST", "/accounts", admin, `{"name":"anna","role":"viewer"}`)
		if r := h.call(t, "POST", "/accounts", admin, `{"name":"ANNA","role":"viewer"}`); r.StatusCode != 409 {
			t.Errorf("the same name: %d %s", r.StatusCode, r.text)
		}
	})
}

func mustAccount(t *testing.T, h *house, name string) Account {
	t.Helper()
	a, err := readAccount(t.Context(), h.db, "a.name = $1", name)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestLastAdministratorStaysOne(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		first := mustAccount(t, h, firstAdmin)
		admin := h.token(t, first)
		bot := h.person(t, h.admin(t), NewAccount{Name: "bot", Role: httpapi.Admin, Program: true})
		for name, r := range map[string]reply{
			"demote":  h.call(t, "PATCH", "/accounts/"+first.ID, admin, `{"role":"operator"}`),
			"disable": h.call(t, "PATCH", "/accounts/"+first.ID, admin, `{"disabled":true}`),
			"delete":  h.call(t, "DELETE", "/accounts/"+first.ID, admin, ""),
			// A program can't sign in, so it doesn't count.
			"delete by the bot": h.call(t, "DELETE", "/accounts/"+first.ID, h.token(t, bot), ""),
		} {
			if r.StatusCode != 409 || !strings.Contains(r.text, "last administrator") {
				t.Errorf("%s: %d %s", name, r.StatusCode, r.text)
			}
		}
		h.mustCall(t, 200, "GET", "/whoami", admin, "")
		second := h.person(t, h.admin(t), NewAccount{Name: "second", Role: httpapi.Admin})
		h.mustCall(t, 204, "DELETE", "/accounts/"+first.ID, h.token(t, second), "")
		h.mustCall(t, 401, "GET", "/whoami", admin, "")
	})
}

func TestTwoAdministratorsCannotDemoteEachOther(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		one := mustAccount(t, h, firstAdmin)
		two := h.person(t, h.admin(t), NewAccount{Name: "second", Role: httpapi.Admin})
		viewer := httpapi.Viewer
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i, pair := range [][2]Account{{one, two}, {two, one}} {
			wg.Go(func() {
				_, errs[i] = h.s.ChangeAccount(t.Context(), principalOf(pair[0]), pair[1].ID, AccountChange{Role: &viewer}, "")
			})
		}
		wg.Wait()
		if n, err := countAdmins(t.Context(), h.db, device.DefaultTenant); n != 1 || err != nil {
			t.Errorf("%d administrators are left (%v); answers %v", n, err, errs)
		}
	})
}

func TestDisabledAccountLosesSessionsAndTokensAtOnce(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Operator})
		token, cookie := h.token(t, anna), h.signIn(t, "anna", goodPassword)
		h.mustCall(t, 200, "GET", "/whoami", token, "") // now they are cached
		h.mustCall(t, 200, "GET", "/whoami", cookie, "")
		admin := h.token(t, mustAccount(t, h, firstAdmin))
		h.ledger.kinds()
		h.mustCall(t, 200, "PATCH", "/accounts/"+anna.ID, admin, `{"disabled":true}`)
		h.mustCall(t, 401, "GET", "/whoami", token, "")
		h.mustCall(t, 401, "GET", "/whoami", cookie, "")
		if _, _, err := h.s.SignIn(t.Context(), SignIn{Name: "anna", Password: goodPassword}); !errors.Is(err, errWrong) {
			t.Errorf("signing in: %v", err)
		}
		h.mustCall(t, 200, "PATCH", "/accounts/"+anna.ID, admin, `{"disabled":false}`)
		h.mustCall(t, 401, "GET", "/whoami", token, "") // what was lost stays lost
		h.mustCall(t, 401, "GET", "/whoami", cookie, "")
		h.signIn(t, "anna", goodPassword)
		want := []string{kindAccountDisabled, kindSignInFailed, kindAccountEnabled, kindSignedIn}
		if got := h.ledger.kinds(); !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	})
}

func TestDemotionTakesEffectOnNextRequest(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Admin})
		token, cookie := h.token(t, anna), h.signIn(t, "anna", goodPassword)
		h.mustCall(t, 200, "GET", "/accounts", token, "")
		h.mustCall(t, 200, "GET", "/accounts", cookie, "")
		viewer, sel := httpapi.Viewer, device.MustSelector("site=berlin")
		if _, err := h.s.ChangeAccount(t.Context(), h.admin(t), anna.ID, AccountChange{Role: &viewer, Selector: &sel}, ""); err != nil {
			t.Fatal(err)
		}
		h.mustCall(t, 403, "GET", "/accounts", token, "")
		h.mustCall(t, 403, "GET", "/accounts", cookie, "")
		if me := h.mustCall(t, 200, "GET", "/whoami", token, ""); me.json["selector"] != "site=berlin" || me.json["role"] != "viewer" {
			t.Errorf("whoami: %s", me.text)
		}
	})
}

func TestOldRevisionIsRefused(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		admin := h.token(t, mustAccount(t, h, firstAdmin))
		anna := h.person(t, h.admin(t), NewAccount{Name: "anna", Role: httpapi.Viewer})
		tag := h.mustCall(t, 200, "GET", "/accounts/"+anna.ID, admin, "").Header.Get("ETag")
		h.mustCall(t, 200, "PATCH", "/accounts/"+anna.ID, admin, `{"email":"anna@example.com"}`, "If-Match", tag)
		h.mustCall(t, 412, "PATCH", "/accounts/"+anna.ID, admin, `{"role":"operator"}`, "If-Match", tag)
		h.mustCall(t, 412, "DELETE", "/accounts/"+anna.ID, admin, "", "If-Match", tag)
	})
}

func TestTenantsDoNotSeeEachOther(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		operator := h.token(t, mustAccount(t, h, firstAdmin))
		h.mustCall(t, 201, "POST", "/tenants", operator, `{"id":"acme","name":"Acme"}`)
		h.mustCall(t, 409, "POST", "/tenants", operator, `{"id":"acme"}`)
		h.mustCall(t, 201, "POST", "/accounts", operator, `{"name":"anna","role":"admin"}`, TenantHeader, "acme")
		anna := mustAccount(t, h, "anna")
		h.exec(t, "UPDATE access_account SET must_change = 0 WHERE id = $1", anna.ID)
		if anna.Tenant != "acme" {
			t.Fatalf("anna belongs to %s", anna.Tenant)
		}
		secret := h.token(t, anna)
		admin := mustAccount(t, h, firstAdmin)
		for _, c := range []struct {
			method, path, body string
			header             string
			status             int
		}{
			{"GET", "/accounts/" + admin.ID, "", "", 404},
			{"PATCH", "/accounts/" + admin.ID, `{"disabled":true}`, "", 404},
			{"DELETE", "/accounts/" + admin.ID, "", "", 404},
			{"POST", "/accounts/" + admin.ID + "/password", "", "", 404},
			{"POST", "/tokens", `{"name":"x","account":"` + admin.ID + `"}`, "", 404},
			{"GET", "/tokens?account=" + admin.ID, "", "", 404},
			{"POST", "/tenants", `{"id":"evil"}`, "", 403},
			{"GET", "/whoami", "", "default", 403},
			{"GET", "/whoami", "", "acme", 200},
			{"GET", "/accounts", "", "", 200},
		} {
			r := h.call(t, c.method, c.path, secret, c.body, TenantHeader, c.header)
			if r.StatusCode != c.status {
				t.Errorf("%s %s in %q: %d %s, want %d", c.method, c.path, c.header, r.StatusCode, r.text, c.status)
			}
			if strings.Contains(r.text, `"name":"admin"`) {
				t.Errorf("%s %s shows the other tenant: %s", c.method, c.path, r.text)
			}
		}
		if list := h.mustCall(t, 200, "GET", "/tenants", secret, ""); len(list.json["items"].([]any)) != 1 {
			t.Errorf("anna sees the tenants %s", list.text)
		}
		tokens := h.mustCall(t, 200, "GET", "/tokens", operator, "").json["items"].([]any)
		h.mustCall(t, 404, "DELETE", "/tokens/"+tokens[0].(map[string]any)["id"].(string), secret, "")
		h.mustCall(t, 404, "GET", "/whoami", operator, "", TenantHeader, "nowhere")
	})
}

func TestNarrowedAccountCannotManageAccounts(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		admin := mustAccount(t, h, firstAdmin)
		_, secret, err := h.s.IssueToken(t.Context(), principalOf(admin), NewToken{Name: "narrow", Selector: device.MustSelector("site=berlin")})
		if err != nil {
			t.Fatal(err)
		}
		h.mustCall(t, 403, "POST", "/accounts", secret, `{"name":"anna","role":"admin"}`)
		h.mustCall(t, 403, "GET", "/accounts", secret, "")
		h.mustCall(t, 403, "POST", "/tenants", secret, `{"id":"acme"}`)
		if me := h.mustCall(t, 200, "GET", "/whoami", secret, ""); me.json["installation"] != false {
			t.Errorf("whoami: %s", me.text)
		}
	})
}

func TestAccountsComeInPages(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		admin := h.token(t, mustAccount(t, h, firstAdmin))
		for i := range 5 {
			h.person(t, h.admin(t), NewAccount{Name: fmt.Sprintf("bot-%d", i), Role: httpapi.Viewer, Program: true})
		}
		var names []string
		path := "/accounts?limit=2"
		for range 5 {
			r := h.mustCall(t, 200, "GET", path, admin, "")
			for _, item := range r.json["items"].([]any) {
				names = append(names, item.(map[string]any)["name"].(string))
			}
			next, more := r.json["next"].(string)
			if !more {
				break
			}
			path = "/accounts?limit=2&cursor=" + next
		}
		want := []string{"admin", "bot-0", "bot-1", "bot-2", "bot-3", "bot-4"}
		if !slices.Equal(names, want) {
			t.Errorf("got %v", names)
		}
		r := h.mustCall(t, 200, "GET", "/tokens?limit=1", admin, "")
		if _, more := r.json["next"]; more {
			t.Error("one token, but another page")
		}
	})
}

func TestResetByTheMachineOpensTheDoorAgain(t *testing.T) {
	eachEngine(t, func(t *testing.T, h *house) {
		cookie := h.signIn(t, firstAdmin, h.password)
		password, err := h.s.ResetPassword(t.Context(), "Admin")
		if err != nil {
			t.Fatal(err)
		}
		h.mustCall(t, 401, "GET", "/whoami", cookie, "")
		if _, _, err := h.s.SignIn(t.Context(), SignIn{Name: firstAdmin, Password: h.password}); !errors.Is(err, errWrong) {
			t.Errorf("the old password: %v", err)
		}
		if _, a, err := h.s.SignIn(t.Context(), SignIn{Name: firstAdmin, Password: password}); err != nil || !a.MustChange {
			t.Errorf("the new password: %+v, %v", a, err)
		}
		if _, err := h.s.ResetPassword(t.Context(), "nobody"); !errors.Is(err, fault.NotFound) {
			t.Errorf("unknown account: %v", err)
		}
	})
}
