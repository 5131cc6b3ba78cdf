package httpapi

import (
	"context"
	"net/http"
	"reflect"
	"regexp"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// opKey is where the Op of ours travels in a huma operation's metadata.
const opKey = "op"

// adapter lets huma add its handlers to our table of paths, behind our admission.
type adapter struct{ *API }

// Handle is called by huma.Register.
func (d adapter) Handle(hop *huma.Operation, handler func(huma.Context)) {
	op := hop.Metadata[opKey].(Op)
	var accepts []string
	if hop.RequestBody != nil {
		for mediaType := range hop.RequestBody.Content {
			accepts = append(accepts, mediaType)
		}
	}
	d.handle(op, gate{accepts: accepts, timeout: d.cfg.Timeout, bodySlack: 1}, func(w http.ResponseWriter, r *http.Request) {
		handler(humago.NewContext(hop, r, w))
	})
}

var opIDPattern = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

// check panics on an Op that is a mistake in the code.
func (op Op) check() {
	if !opIDPattern.MatchString(op.ID) || op.Method == "" || op.Summary == "" || op.Tag == "" || len(op.Path) < 2 || op.Path[0] != '/' {
		panic("httpapi: operation " + op.ID + " " + op.Path + ": want ID, Method, Path, Summary and Tag")
	}
}

// checkEmbedded panics on an embedded struct of an unexported type, which huma silently leaves empty.
func checkEmbedded(op Op, t reflect.Type) {
	if t.Kind() != reflect.Struct {
		return
	}
	for f := range t.Fields() {
		if f.Anonymous && !f.IsExported() {
			panic("httpapi: operation " + op.ID + " embeds " + f.Name + ": its type must be exported")
		}
	}
}

func register[I, O any](a *API, op Op, handler func(ctx context.Context, who Principal, in *I) (*O, error)) {
	op.check()
	checkEmbedded(op, reflect.TypeFor[I]())
	checkEmbedded(op, reflect.TypeFor[O]())
	a.names.tag = op.Tag
	h := a.describe(op)
	// One more than what is allowed, since huma refuses a body that fills the limit.
	h.MaxBodyBytes = op.maxBody() + 1
	h.BodyReadTimeout = -1 // patientBody bounds it
	huma.Register(a.huma, h, func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, exchangeOf(ctx).who, in)
		if err != nil {
			return nil, a.toHuma(ctx, err)
		}
		return out, nil
	})
}

func (a *API) stream(op Op, handler StreamHandler) {
	op.check()
	h := a.describe(op)
	a.describeStream(&h, op)
	a.huma.OpenAPI().AddOperation(&h)
	g := gate{}
	if op.Accept != "" {
		g.accepts = []string{op.Accept}
	}
	g.query = op.Query
	if g.query == nil {
		g.query = map[string]string{}
	}
	a.handle(op, g, func(w http.ResponseWriter, r *http.Request) {
		out := &patientWriter{ResponseWriter: w, ctl: http.NewResponseController(w)}
		if err := handler(out, r, exchangeOf(r.Context()).who); err != nil {
			if out.started {
				a.judge(r.Context(), err) // logs what is ours
				panic(http.ErrAbortHandler)
			}
			a.refuseError(w, r, err)
		}
	})
}
