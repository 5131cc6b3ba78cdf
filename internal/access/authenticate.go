package access

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

// TenantHeader is how operators of the installation say in which tenant a request acts.
const TenantHeader = "Steward-Tenant"

// Names of the session's cookie. The prefix makes browsers keep it to this host and to HTTPS.
const (
	secureCookie = "__Host-steward"
	plainCookie  = "steward"
)

var (
	errNoCredentials = fault.New(fault.Unauthorized, "sign in, or send an API token: Authorization: Bearer %s…", tokenPrefix)
	errBadToken      = fault.New(fault.Unauthorized, "this API token is not valid: it was revoked, has expired or never existed")
	errSessionOver   = fault.New(fault.Unauthorized, "your session has ended; sign in again")
	errMustChange    = fault.New(fault.Unauthorized, "choose a new password first, on the page /account/password")
)

// Authenticate implements httpapi.Authenticator.
func (s *Service) Authenticate(r *http.Request) (httpapi.Principal, error) {
	g, err := s.grantOf(r)
	if err != nil {
		return httpapi.Principal{}, err
	}
	if g.session != "" && g.account.MustChange {
		return httpapi.Principal{}, errMustChange
	}
	return s.principal(r, g)
}

// grantOf finds the token or session of a request. A request with an Authorization header is judged by
// that alone.
func (s *Service) grantOf(r *http.Request) (grant, error) {
	if header := r.Header.Get("Authorization"); header != "" {
		scheme, secret, _ := strings.Cut(header, " ")
		secret = strings.TrimSpace(secret)
		if !strings.EqualFold(scheme, "bearer") || !plausible(secret, tokenPrefix) {
			return grant{}, errBadToken
		}
		return s.lookup(r.Context(), hashSecret(secret), readTokenGrant, errBadToken)
	}
	secret := s.sessionSecret(r)
	if secret == "" {
		return grant{}, errNoCredentials
	}
	return s.lookup(r.Context(), hashSecret(secret), readSessionGrant, errSessionOver)
}

// sessionSecret returns the session's cookie, or "".
func (s *Service) sessionSecret(r *http.Request) string {
	c, err := r.Cookie(s.cookieName(r))
	if err != nil || !plausible(c.Value, "") {
		return ""
	}
	return c.Value
}

func (s *Service) overTLS(r *http.Request) bool { return s.secure || r.TLS != nil }

func (s *Service) cookieName(r *http.Request) string {
	if s.overTLS(r) {
		return secureCookie
	}
	return plainCookie
}

type readGrant func(ctx context.Context, q sqldb.Reader, hash string) (grant, error)

// lookup returns the grant of a hash when it is still good, else refused.
func (s *Service) lookup(ctx context.Context, hash string, read readGrant, refused error) (grant, error) {
	g, era, ok := s.cache.get(hash)
	if !ok {
		var err error
		g, err = read(ctx, s.db, hash)
		if errors.Is(err, fault.NotFound) {
			return grant{}, refused
		}
		if err != nil {
			return grant{}, err
		}
		s.cache.put(hash, g, era)
	}
	if !g.goodAt(s.now()) {
		return grant{}, refused
	}
	if s.cache.touch(hash, g) {
		s.storeUse(ctx, g)
	}
	return g, nil
}

func (g grant) goodAt(now time.Time) bool {
	idle := g.session != "" && now.Sub(g.seen) >= SessionIdle
	return !g.account.Disabled && now.Before(g.expires) && !idle
}

// storeUse notes the time of the last use. That it can't be stored, as on a full disk, keeps nobody
// from working.
func (s *Service) storeUse(ctx context.Context, g grant) {
	query, key := "UPDATE access_token SET used = $1 WHERE id = $2", g.token.ID
	if g.session != "" {
		query, key = "UPDATE access_session SET seen = $1 WHERE hash = $2", g.session
	}
	err := s.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, query, sqldb.Micros(s.clock()), key)
		return err
	})
	if err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "last use not stored", "error", err, "account", g.account.ID)
	}
}

// principal puts role and scope together and chooses the tenant.
func (s *Service) principal(r *http.Request, g grant) (httpapi.Principal, error) {
	who := httpapi.Principal{
		Actor: device.Actor{Kind: device.ActorAccount, ID: g.account.ID, Name: g.account.Name},
		Role:  g.account.Role,
		Scope: device.Scope{Tenant: g.account.Tenant, Selector: g.account.Selector},
		Token: g.token.ID,
	}
	if g.session == "" {
		who.Actor.Name += " (token " + g.token.Name + ")"
		who.Role = min(who.Role, g.token.Role)
		who.Scope.Selector = who.Scope.Selector.And(g.token.Selector)
	}
	who.Installation = g.account.Tenant == device.DefaultTenant && who.Role == httpapi.Admin && who.Scope.Selector.Empty()
	if who.Installation && g.tenant != "" {
		who.Scope.Tenant = device.TenantID(g.tenant)
	}
	wanted := r.Header.Get(TenantHeader)
	if wanted == "" || wanted == string(who.Scope.Tenant) {
		return who, nil
	}
	if !who.Installation {
		return httpapi.Principal{}, fault.New(fault.Forbidden, "you may act in the tenant %s only", who.Scope.Tenant)
	}
	t, err := readTenant(r.Context(), s.db, device.TenantID(wanted))
	if err != nil {
		return httpapi.Principal{}, err
	}
	who.Scope.Tenant = t.ID
	return who, nil
}
