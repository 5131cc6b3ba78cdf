package disposal

import (
	"context"
	"fmt"
	"net/http"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

const tag = "disposal"

type (
	deviceIn struct {
		ID string `path:"id" maxLength:"40"`
	}
	previewOut struct{ Body Preview }
	retireIn   struct {
		ID   string `path:"id" maxLength:"40"`
		Body struct {
			Reason string `json:"reason" minLength:"1" maxLength:"300"`
		}
	}
	deviceOut struct {
		ETag string `header:"ETag"`
		Body device.Device
	}
	orderIn struct {
		ID   string `path:"id" maxLength:"40"`
		Body struct {
			Reason  string `json:"reason" minLength:"1" maxLength:"300"`
			Confirm string `json:"confirm" maxLength:"64" doc:"The device's serial number, or its ID when it has none"`
		}
	}
	attestIn struct {
		ID   string `path:"id" maxLength:"40"`
		Body struct {
			Reason      string      `json:"reason" minLength:"1" maxLength:"300"`
			Confirm     string      `json:"confirm" maxLength:"64" doc:"The device's serial number, or its ID when it has none"`
			Attestation Attestation `json:"attestation"`
		}
	}
	disposalOut struct{ Body Disposal }
	listIn      struct {
		httpapi.PageIn
		State string `query:"state" enum:"ordered,accepted,sanitized,failed,attested,superseded"`
	}
	listOut    struct{ Body httpapi.List[Disposal] }
	waitingIn  struct{ httpapi.PageIn }
	waitingOut struct{ Body httpapi.List[Waiting] }
	idIn       struct {
		ID string `path:"id" maxLength:"40"`
	}
	bulkIn struct {
		Selector string `query:"selector" maxLength:"2048" doc:"Label selector; empty means every retired device"`
	}
	bulkOut     struct{ Body Bulk }
	orderBulkIn struct {
		Body struct {
			Selector string `json:"selector" maxLength:"2048" doc:"Label selector; empty means every retired device"`
			Reason   string `json:"reason" minLength:"1" maxLength:"300"`
			Confirm  int64  `json:"confirm" minimum:"1" doc:"The preview's number of devices"`
		}
	}
	issuerOut struct {
		Body struct {
			Name      string `json:"name"`
			PublicKey string `json:"public_key" doc:"PEM; what steward verify --issuer-key takes"`
			LedgerKey string `json:"ledger_key" doc:"Verifier key of the ledger; what steward verify --ledger-key takes"`
		}
	}
)

// Routes adds the room's operations.
func (s *Service) Routes(a *httpapi.API) {
	s.routeDevice(a)
	s.routeLists(a)
	s.routeCertificates(a)
}

func deviceID(id string) (device.ID, error) {
	parsed, err := device.ParseID(id)
	if err != nil {
		return "", fault.New(fault.NotFound, "no device %s", id)
	}
	return parsed, nil
}

func (s *Service) routeDevice(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "preview-disposal", Method: http.MethodGet, Path: "/devices/{id}/disposal", Tag: tag, Role: httpapi.Viewer,
		Summary: "Show what retiring and disposing of a device would hit"},
		func(ctx context.Context, who httpapi.Principal, in *deviceIn) (*previewOut, error) {
			id, err := deviceID(in.ID)
			if err != nil {
				return nil, err
			}
			p, err := s.Preview(ctx, who, id)
			return &previewOut{p}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "retire-device", Method: http.MethodPost, Path: "/devices/{id}/retire", Tag: tag, Role: httpapi.Operator,
		Summary: "Take a device out of service"},
		func(ctx context.Context, who httpapi.Principal, in *retireIn) (*deviceOut, error) {
			id, err := deviceID(in.ID)
			if err != nil {
				return nil, err
			}
			d, err := s.Retire(ctx, who, id, in.Body.Reason)
			return &deviceOut{httpapi.ETag(d.Revision), d}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "order-sanitization", Method: http.MethodPost, Path: "/devices/{id}/disposal/order", Tag: tag, Role: httpapi.Operator, Status: http.StatusCreated,
		Summary: "Order a retired device to sanitize itself",
		Detail:  "The device destroys its key and all data that its agent manages, and proves it with a signed statement. It cannot be undone."},
		func(ctx context.Context, who httpapi.Principal, in *orderIn) (*disposalOut, error) {
			id, err := deviceID(in.ID)
			if err != nil {
				return nil, err
			}
			x, err := s.Order(ctx, who, id, in.Body.Reason, in.Body.Confirm)
			return &disposalOut{x}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "attest-disposal", Method: http.MethodPost, Path: "/devices/{id}/disposal/attest", Tag: tag, Role: httpapi.Operator, Status: http.StatusCreated,
		Summary: "Dispose of a retired device that can't sign, by the word of two people",
		Detail:  "For devices that never enrolled, are lost or broken. The certificate says that people attest it and the device did not. It cannot be undone."},
		func(ctx context.Context, who httpapi.Principal, in *attestIn) (*disposalOut, error) {
			id, err := deviceID(in.ID)
			if err != nil {
				return nil, err
			}
			x, err := s.Attest(ctx, who, id, in.Body.Attestation, in.Body.Reason, in.Body.Confirm)
			return &disposalOut{x}, err
		})
}

func (s *Service) routeLists(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "list-disposals", Method: http.MethodGet, Path: "/disposals", Tag: tag, Role: httpapi.Viewer, Summary: "List disposals, newest first"},
		func(ctx context.Context, who httpapi.Principal, in *listIn) (*listOut, error) {
			list, next, err := s.List(ctx, who, Filter{State: State(in.State), Limit: in.Limit, Cursor: in.Cursor})
			return &listOut{httpapi.List[Disposal]{Items: list, Next: next}}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "get-disposal", Method: http.MethodGet, Path: "/disposals/{id}", Tag: tag, Role: httpapi.Viewer, Summary: "Show a disposal"},
		func(ctx context.Context, who httpapi.Principal, in *idIn) (*disposalOut, error) {
			x, err := s.Get(ctx, who, in.ID)
			return &disposalOut{x}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "list-waiting-for-disposal", Method: http.MethodGet, Path: "/disposal/waiting", Tag: tag, Role: httpapi.Viewer, Summary: "List retired devices that are not disposed of"},
		func(ctx context.Context, who httpapi.Principal, in *waitingIn) (*waitingOut, error) {
			list, next, err := s.Waiting(ctx, who, in.PageIn)
			return &waitingOut{httpapi.List[Waiting]{Items: list, Next: next}}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "preview-bulk-sanitization", Method: http.MethodGet, Path: "/disposal/bulk", Tag: tag, Role: httpapi.Operator, Summary: "Show which retired devices a bulk order would reach"},
		func(ctx context.Context, who httpapi.Principal, in *bulkIn) (*bulkOut, error) {
			sel, err := parseSelector("query.selector", in.Selector)
			if err != nil {
				return nil, err
			}
			b, err := s.PreviewBulk(ctx, who, sel)
			return &bulkOut{b}, err
		})
	httpapi.Register(a, httpapi.Op{ID: "order-bulk-sanitization", Method: http.MethodPost, Path: "/disposal/bulk", Tag: tag, Role: httpapi.Operator,
		Summary: "Order all retired devices of a selector to sanitize themselves", Detail: "Done only when as many devices match as the preview said. It cannot be undone."},
		func(ctx context.Context, who httpapi.Principal, in *orderBulkIn) (*bulkOut, error) {
			sel, err := parseSelector("body.selector", in.Body.Selector)
			if err != nil {
				return nil, err
			}
			b, err := s.OrderBulk(ctx, who, sel, in.Body.Reason, in.Body.Confirm)
			return &bulkOut{b}, err
		})
}

func parseSelector(location, text string) (device.Selector, error) {
	sel, err := device.ParseSelector(text)
	if err != nil {
		return sel, fault.Bad(location, "%v", err)
	}
	return sel, nil
}

func (s *Service) routeCertificates(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "get-disposal-keys", Method: http.MethodGet, Path: "/disposal/keys", Tag: tag, Role: httpapi.Viewer,
		Summary: "Show the public keys that disposal certificates are verified with", Detail: "Keep them outside of this server: a certificate that is verified only by keys from the file itself proves little."},
		func(context.Context, httpapi.Principal, *struct{}) (*issuerOut, error) {
			var out issuerOut
			var err error
			out.Body.Name = s.cfg.Issuer
			if out.Body.PublicKey, err = s.IssuerKey(); err != nil {
				return nil, err
			}
			out.Body.LedgerKey, err = s.cfg.Ledger.Verifier()
			return &out, err
		})
	for _, op := range []struct{ id, path, summary string }{
		{"get-disposal-certificate", "/disposals/{id}/certificate", "Download the certificate of a disposal"},
		{"get-device-disposal-certificate", "/devices/{id}/disposal/certificate", "Download the disposal certificate of a device"},
	} {
		a.Stream(httpapi.Op{ID: op.id, Method: http.MethodGet, Path: op.path, Tag: tag, Role: httpapi.Viewer, Summary: op.summary,
			Detail: "A DSSE envelope in JSON, for steward verify. Right after the disposal it may not be made yet (503).", Produce: "application/json"},
			func(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
				return s.serveCertificate(w, r, who, r.PathValue("id"))
			})
	}
}

// serveCertificate writes the certificate of a disposal or of a device as a download.
func (s *Service) serveCertificate(w http.ResponseWriter, r *http.Request, who httpapi.Principal, id string) error {
	get := func() ([]byte, error) { return s.Certificate(r.Context(), who.Scope, id) }
	if parsed, err := device.ParseID(id); err == nil {
		get = func() ([]byte, error) { return s.CertificateOf(r.Context(), who.Scope, parsed) }
	}
	document, err := get()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="disposal-%s.json"`, id))
	_, err = w.Write(append(document, '\n'))
	return err
}
