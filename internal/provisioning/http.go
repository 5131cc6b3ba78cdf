package provisioning

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
)

const tag = "provisioning"

// Routes adds the room's operations.
func (s *Service) Routes(a *httpapi.API) {
	s.tokenRoutes(a)
	s.certificateRoutes(a)
	httpapi.Register(a, httpapi.Op{ID: "get-enrollment-policy", Method: http.MethodGet, Path: "/enrollment-policy", Tag: tag, Role: httpapi.Viewer,
		Summary: "Show what happens with devices that nobody bought"}, s.apiPolicy)
	httpapi.Register(a, httpapi.Op{ID: "set-enrollment-policy", Method: http.MethodPut, Path: "/enrollment-policy", Tag: tag, Role: httpapi.Admin,
		Summary: "Say what happens with devices that nobody bought"}, s.apiSetPolicy)
	httpapi.Register(a, httpapi.Op{ID: "list-authorities", Method: http.MethodGet, Path: "/authorities", Tag: tag, Role: httpapi.Viewer,
		Summary: "List the certificates of the tenant's and the link's authorities"}, s.apiAuthorities)
}

func (s *Service) tokenRoutes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "create-enrollment-token", Method: http.MethodPost, Path: "/enrollment-tokens", Tag: tag, Role: httpapi.Operator,
		Status: http.StatusCreated, Summary: "Make an enrollment token",
		Detail: "For a device in stock, which becomes staged; for one in service that has lost its key; or for a serial number that is not in stock. " +
			"The token is in the answer and nowhere else. An older open token of the same serial number is revoked."}, s.apiCreateToken)
	httpapi.Register(a, httpapi.Op{ID: "create-enrollment-tokens", Method: http.MethodPost, Path: "/enrollment-tokens/bulk", Tag: tag, Role: httpapi.Operator,
		Status: http.StatusCreated, Summary: "Make many enrollment tokens, all or none"}, s.apiCreateTokens)
	a.Stream(httpapi.Op{ID: "create-enrollment-tokens-csv", Method: http.MethodPost, Path: "/enrollment-tokens/bulk.csv", Tag: tag, Role: httpapi.Operator,
		Status: http.StatusCreated, Summary: "Make many enrollment tokens and get them as CSV",
		Accept: "application/json", Produce: "text/csv"}, s.apiCreateTokensCSV)
	httpapi.Register(a, httpapi.Op{ID: "list-enrollment-tokens", Method: http.MethodGet, Path: "/enrollment-tokens", Tag: tag, Role: httpapi.Viewer,
		Summary: "List enrollment tokens, newest first"}, s.apiTokens)
	httpapi.Register(a, httpapi.Op{ID: "revoke-enrollment-token", Method: http.MethodDelete, Path: "/enrollment-tokens/{id}", Tag: tag, Role: httpapi.Operator,
		Status: http.StatusNoContent, Summary: "Revoke an open enrollment token"}, s.apiRevokeToken)
}

func (s *Service) certificateRoutes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "list-device-certificates", Method: http.MethodGet, Path: "/devices/{id}/certificates", Tag: tag, Role: httpapi.Viewer,
		Summary: "List what a device was issued, and whether its identity was seen twice"}, s.apiCertificates)
	httpapi.Register(a, httpapi.Op{ID: "list-expiring-certificates", Method: http.MethodGet, Path: "/certificates/expiring", Tag: tag, Role: httpapi.Viewer,
		Summary: "List devices whose newest certificate ends soon or has ended"}, s.apiExpiring)
	httpapi.Register(a, httpapi.Op{ID: "revoke-device", Method: http.MethodPost, Path: "/devices/{id}/revoke", Tag: tag, Role: httpapi.Operator,
		Status: http.StatusNoContent, Summary: "Revoke all certificates and open tokens of a device",
		Detail: "Its open connections are closed at once. To come back it needs a new enrollment token."}, s.apiRevoke)
	httpapi.Register(a, httpapi.Op{ID: "clear-clone-flag", Method: http.MethodPost, Path: "/devices/{id}/clear-clone-flag", Tag: tag, Role: httpapi.Operator,
		Status: http.StatusNoContent, Summary: "Clear the flag that two machines use a device's identity"}, s.apiClearClone)
}

// tokenOrder is the wish for one token.
type tokenOrder struct {
	Device      string `json:"device,omitempty" maxLength:"40" doc:"ID of a device that has its serial number" example:"dev-0k3v9m2xq7ah5ptd"`
	Serial      string `json:"serial,omitempty" maxLength:"64" doc:"Instead of the device: a serial number that is not in stock"`
	LifeSeconds int64  `json:"life_seconds,omitempty" minimum:"60" maximum:"2592000" doc:"How long it can be used; 0 means a day, at most 30 days"`
	Note        string `json:"note,omitempty" maxLength:"200"`
}

func (o tokenOrder) order() NewToken {
	return NewToken{Device: device.ID(o.Device), Serial: o.Serial, Life: time.Duration(o.LifeSeconds) * time.Second, Note: o.Note}
}

type bulkOrder struct {
	Tokens []tokenOrder `json:"tokens" minItems:"1" maxItems:"1000" nullable:"false"`
}

func (b bulkOrder) orders() []NewToken {
	out := make([]NewToken, len(b.Tokens))
	for i, o := range b.Tokens {
		out[i] = o.order()
	}
	return out
}

type issuedOut struct{ Body IssuedToken }

func (s *Service) apiCreateToken(ctx context.Context, who httpapi.Principal, in *struct{ Body tokenOrder }) (*issuedOut, error) {
	out, err := s.IssueTokens(ctx, who.Actor, who.Scope, []NewToken{in.Body.order()})
	if err != nil {
		return nil, err
	}
	return &issuedOut{out[0]}, nil
}

type issuedListOut struct{ Body httpapi.List[IssuedToken] }

func (s *Service) apiCreateTokens(ctx context.Context, who httpapi.Principal, in *struct{ Body bulkOrder }) (*issuedListOut, error) {
	out, err := s.IssueTokens(ctx, who.Actor, who.Scope, in.Body.orders())
	if err != nil {
		return nil, err
	}
	return &issuedListOut{httpapi.List[IssuedToken]{Items: out}}, nil
}

// apiCreateTokensCSV takes the body of the JSON operation and answers the columns that a labelling or
// flashing station wants.
func (s *Service) apiCreateTokensCSV(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	var in bulkOrder
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return fault.Bad("body", "want {\"tokens\": [{\"device\": …}, …]}: %s", err)
	}
	if dec.More() {
		return fault.Bad("body", "there is more behind the JSON value")
	}
	out, err := s.IssueTokens(r.Context(), who.Actor, who.Scope, in.orders())
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="enrollment-tokens.csv"`)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusCreated)
	return writeCSV(w, out)
}

func writeCSV(w io.Writer, tokens []IssuedToken) error {
	c := csv.NewWriter(w)
	rows := [][]string{{"device", "serial", "token", "expires"}}
	for _, t := range tokens {
		rows = append(rows, []string{string(t.Device), t.Serial, t.Secret, t.Expires.UTC().Format(time.RFC3339)})
	}
	return c.WriteAll(rows)
}

type tokensIn struct {
	httpapi.PageIn
	State  string `query:"state" enum:"open,used,expired,revoked"`
	Device string `query:"device" maxLength:"40"`
	Serial string `query:"serial" maxLength:"64"`
	Reused bool   `query:"reused" doc:"Only tokens that another key tried after their use"`
}

type tokensOut struct{ Body httpapi.List[Token] }

func (s *Service) apiTokens(ctx context.Context, who httpapi.Principal, in *tokensIn) (*tokensOut, error) {
	q := tokenQuery{scope: who.Scope, state: TokenState(in.State), reused: in.Reused, serial: in.Serial, limit: in.Limit}
	if err := httpapi.DecodeCursor(in.Cursor, &q.after); err != nil {
		return nil, err
	}
	if in.Device != "" {
		d, err := s.deviceInScope(ctx, s.cfg.DB, who.Scope, device.ID(in.Device))
		if err != nil {
			return nil, err
		}
		q.num = d.Num
	}
	page, next, err := s.Tokens(ctx, q)
	if err != nil {
		return nil, err
	}
	out := &tokensOut{httpapi.List[Token]{Items: page}}
	if next != nil {
		out.Body.Next = httpapi.EncodeCursor(*next)
	}
	return out, nil
}

func (s *Service) apiRevokeToken(ctx context.Context, who httpapi.Principal, in *struct {
	ID     string `path:"id" maxLength:"40"`
	Reason string `query:"reason" maxLength:"200"`
}) (*struct{}, error) {
	return nil, s.RevokeToken(ctx, who.Actor, who.Scope, in.ID, in.Reason)
}

type deviceIn struct {
	ID string `path:"id" maxLength:"40" example:"dev-0k3v9m2xq7ah5ptd"`
}

type certificatesOut struct {
	Body struct {
		Items []Certificate `json:"items" nullable:"false"`
		Clone *CloneFlag    `json:"clone,omitempty" doc:"Present while two machines are suspected to use this identity"`
	}
}

func (s *Service) apiCertificates(ctx context.Context, who httpapi.Principal, in *deviceIn) (*certificatesOut, error) {
	d, err := s.deviceInScope(ctx, s.cfg.DB, who.Scope, device.ID(in.ID))
	if err != nil {
		return nil, err
	}
	out := &certificatesOut{}
	if out.Body.Items, err = certificatesOf(ctx, s.cfg.DB, d.Num, s.cfg.Now()); err != nil {
		return nil, err
	}
	out.Body.Clone, err = s.CloneFlagOf(ctx, d.Num)
	return out, err
}

type expiringIn struct {
	httpapi.PageIn
	WithinSeconds int64 `query:"within_seconds" minimum:"0" maximum:"630720000" default:"2592000" doc:"How far ahead to look"`
}

type expiringOut struct{ Body httpapi.List[Certificate] }

func (s *Service) apiExpiring(ctx context.Context, who httpapi.Principal, in *expiringIn) (*expiringOut, error) {
	var after certificatePosition
	if err := httpapi.DecodeCursor(in.Cursor, &after); err != nil {
		return nil, err
	}
	before := s.cfg.Now().Add(time.Duration(in.WithinSeconds) * time.Second)
	page, err := s.expiring(ctx, who.Scope, before, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	out := &expiringOut{httpapi.List[Certificate]{Items: page}}
	if len(page) > in.Limit {
		out.Body.Items = page[:in.Limit]
		last := page[in.Limit-1]
		out.Body.Next = httpapi.EncodeCursor(certificatePosition{Expires: sqldb.Micros(last.Expires), Serial: last.Serial})
	}
	return out, nil
}

type reasonIn struct {
	ID   string `path:"id" maxLength:"40" example:"dev-0k3v9m2xq7ah5ptd"`
	Body struct {
		Reason string `json:"reason" minLength:"1" maxLength:"500" doc:"Kept in the ledger"`
	}
}

func (s *Service) apiRevoke(ctx context.Context, who httpapi.Principal, in *reasonIn) (*struct{}, error) {
	return nil, s.RevokeDevice(ctx, who.Actor, who.Scope, device.ID(in.ID), in.Body.Reason)
}

func (s *Service) apiClearClone(ctx context.Context, who httpapi.Principal, in *reasonIn) (*struct{}, error) {
	return nil, s.ClearClone(ctx, who.Actor, who.Scope, device.ID(in.ID), in.Body.Reason)
}

type policyOut struct{ Body Policy }

func (s *Service) apiPolicy(ctx context.Context, who httpapi.Principal, _ *struct{}) (*policyOut, error) {
	p, err := s.Policy(ctx, who.Scope.Tenant)
	return &policyOut{p}, err
}

func (s *Service) apiSetPolicy(ctx context.Context, who httpapi.Principal, in *struct {
	Body struct {
		Unpurchased Unpurchased `json:"unpurchased" enum:"quarantine,accept,refuse"`
	}
}) (*policyOut, error) {
	p, err := s.setPolicy(ctx, who, in.Body.Unpurchased)
	return &policyOut{p}, err
}

// setPolicy is for who sees the whole tenant: the policy is not about a part of it.
func (s *Service) setPolicy(ctx context.Context, who httpapi.Principal, choice Unpurchased) (Policy, error) {
	if !who.Scope.Selector.Empty() {
		return Policy{}, fault.New(fault.Forbidden, "the policy is the whole tenant's, and you see only a part of its fleet")
	}
	return s.SetPolicy(ctx, who.Actor, who.Scope.Tenant, choice)
}

type authoritiesOut struct{ Body httpapi.List[Authority] }

func (s *Service) apiAuthorities(ctx context.Context, who httpapi.Principal, _ *struct{}) (*authoritiesOut, error) {
	list, err := s.Authorities(ctx, who.Scope.Tenant)
	return &authoritiesOut{httpapi.List[Authority]{Items: list}}, err
}
