package httpapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"github.com/danielgtaylor/huma/v2"
)

// apiVersion is the version of the REST contract, not of the program: the OpenAPI document changes
// only when the contract does.
const apiVersion = "1.0.0"

// strictCasing sets huma's only switch for this, which is a variable of its package: otherwise
// {"quantity":1,"Quantity":99} is validated by its first field and decoded by its second.
var strictCasing = sync.OnceFunc(func() { huma.ValidateStrictCasing = true })

func (a *API) humaConfig() huma.Config {
	strictCasing()
	registry := huma.NewMapRegistry("#/components/schemas/", a.names.name)
	problem := registry.Schema(reflect.TypeFor[Problem](), true, "")
	responses := map[string]*huma.Response{}
	for status, text := range refusals {
		responses[responseName(status)] = &huma.Response{
			Description: text, Content: map[string]*huma.MediaType{problemType: {Schema: problem}},
		}
	}
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Steward", Version: apiVersion,
				Description: "Every device from purchase order to disposal certificate. Refusals are problem documents " +
					"(RFC 9457). Lists are cut into pages by cursor. POST operations take an Idempotency-Key. " +
					"The extension x-role names the least role that an operation needs.",
			},
			Components: &huma.Components{
				Schemas: registry, Responses: responses,
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer": {Type: "http", Scheme: "bearer", BearerFormat: "stp_…", Description: "An API token, for programs"},
					"cookie": {Type: "apiKey", In: "cookie", Name: "__Host-steward", Description: "The console's session; its name is steward without TLS"},
				},
			},
		},
		Formats:                      formats(),
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{transform},
	}
}

// refusals are the problems that operations share.
var refusals = map[int]string{
	http.StatusBadRequest:            "The request can't be read, as with broken JSON",
	http.StatusUnauthorized:          "Neither a valid token nor a session",
	http.StatusForbidden:             "The role or scope does not suffice",
	http.StatusNotFound:              "There is no such thing in your scope",
	http.StatusConflict:              "The state of the thing forbids it",
	http.StatusPreconditionFailed:    "It was changed meanwhile; see If-Match",
	http.StatusRequestEntityTooLarge: "The body is too large",
	http.StatusUnsupportedMediaType:  "The body is of the wrong media type",
	http.StatusUnprocessableEntity:   "The input is not valid; errors names each field",
	http.StatusTooManyRequests:       "Too many requests; see Retry-After",
	http.StatusInternalServerError:   "Something went wrong on the server",
	http.StatusServiceUnavailable:    "Not possible just now; see Retry-After",
}

func responseName(status int) string {
	return "Problem" + strconv.Itoa(status)
}

// describe begins the description of an operation.
func (a *API) describe(op Op) huma.Operation {
	statuses := []int{http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusTooManyRequests,
		http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusForbidden}
	if op.Role > Nobody {
		statuses = append(statuses, http.StatusUnauthorized)
	}
	if strings.Contains(op.Path, "{") {
		statuses = append(statuses, http.StatusNotFound)
	}
	if op.Method != http.MethodGet && op.Method != http.MethodHead {
		statuses = append(statuses, http.StatusConflict)
	}
	if op.Method == http.MethodPut || op.Method == http.MethodPatch || op.Method == http.MethodDelete {
		statuses = append(statuses, http.StatusPreconditionFailed)
	}
	if op.Method == http.MethodPost || op.Method == http.MethodPut || op.Method == http.MethodPatch {
		statuses = append(statuses, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
	}
	responses := map[string]*huma.Response{}
	for _, s := range statuses {
		responses[strconv.Itoa(s)] = &huma.Response{Ref: "#/components/responses/" + responseName(s)}
	}
	h := huma.Operation{
		OperationID: op.ID, Method: op.Method, Path: prefix + op.Path, Summary: op.Summary,
		Description: op.Detail, Tags: []string{op.Tag}, DefaultStatus: op.Status,
		Responses: responses, Metadata: map[string]any{opKey: op},
		Extensions: map[string]any{"x-role": op.Role.String()},
		Security:   []map[string][]string{{"bearer": {}}, {"cookie": {}}},
	}
	if op.Role == Nobody {
		h.Security = []map[string][]string{}
	}
	if op.takesKey() && op.Role > Nobody {
		h.Parameters = append(h.Parameters, keyParam())
	}
	return h
}

var pathValue = regexp.MustCompile(`\{([^}.]+)(\.\.\.)?\}`)

// describeStream adds what huma can't know of a stream.
func (a *API) describeStream(h *huma.Operation, op Op) {
	text := &huma.Schema{Type: huma.TypeString}
	for _, m := range pathValue.FindAllStringSubmatch(op.Path, -1) {
		h.Parameters = append(h.Parameters, &huma.Param{Name: m[1], In: "path", Required: true, Schema: text})
	}
	h.Path = strings.ReplaceAll(h.Path, "...}", "}")
	for _, name := range slices.Sorted(maps.Keys(op.Query)) {
		h.Parameters = append(h.Parameters, &huma.Param{Name: name, In: "query", Description: op.Query[name], Schema: text})
	}
	binary := &huma.Schema{Type: huma.TypeString, Format: "binary"}
	if op.Accept != "" {
		h.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{op.Accept: {Schema: binary}}}
	}
	status := op.Status
	if status == 0 {
		status = http.StatusOK
	}
	ok := &huma.Response{Description: http.StatusText(status)}
	if op.Produce != "" {
		ok.Content = map[string]*huma.MediaType{op.Produce: {Schema: binary}}
	}
	h.Responses[strconv.Itoa(status)] = ok
}

// OpenAPI returns the document that describes all registered operations, as YAML; the same for the
// same operations, so that the file in the repository can be compared with it.
func (a *API) OpenAPI() ([]byte, error) {
	a.tidySchemas()
	b, err := a.huma.OpenAPI().YAML()
	if err != nil {
		return nil, fmt.Errorf("write the OpenAPI document: %w", err)
	}
	return b, nil
}

// tidySchemas takes out huma's own error document, which we never send.
func (a *API) tidySchemas() {
	a.tidy.Do(func() {
		schemas := a.huma.OpenAPI().Components.Schemas.Map()
		delete(schemas, a.names.byType[reflect.TypeFor[huma.ErrorModel]()])
		delete(schemas, a.names.byType[reflect.TypeFor[huma.ErrorDetail]()])
	})
}

// serveOpenAPI answers a document that is made once: anybody may ask for it, and making it takes some
// milliseconds of a core. Operations are registered before the first request.
func (a *API) serveOpenAPI(mediaType string, make func() ([]byte, error)) http.HandlerFunc {
	document := sync.OnceValues(make)
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := document()
		a.serveDocument(w, r, mediaType, body, err)
	}
}

func (a *API) openAPIJSON() ([]byte, error) {
	a.tidySchemas()
	return json.Marshal(a.huma.OpenAPI())
}

func (a *API) serveDocument(w http.ResponseWriter, r *http.Request, mediaType string, body []byte, err error) {
	exchangeOf(r.Context()).op = "openapi"
	if err != nil {
		a.refuseError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	_, _ = w.Write(body) // the caller may be gone
}

// schemaNames gives each type of the API its name in the OpenAPI document: package and type, as in
// PurchaseOrder, so that rooms can't collide. Only used while operations are registered.
type schemaNames struct {
	tag    string // room of the operation that is being registered
	byType map[reflect.Type]string
	used   map[string]bool
}

func newSchemaNames() *schemaNames {
	return &schemaNames{byType: map[reflect.Type]string{}, used: map[string]bool{}}
}

func (n *schemaNames) name(t reflect.Type, hint string) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return huma.DefaultSchemaNamer(t, hint) // not kept by huma
	}
	if known, ok := n.byType[t]; ok {
		return known
	}
	base := upperFirst(n.tag) + upperFirst(hint)
	if t.Name() != "" {
		base = qualified(t.PkgPath() + "." + t.Name())
	}
	name := base
	for i := 2; n.used[name]; i++ {
		name = base + strconv.Itoa(i)
	}
	n.byType[t], n.used[name] = name, true
	return name
}

// qualified turns "steward/internal/httpapi.List[steward/internal/purchase.Order]" into
// "ListPurchaseOrder".
func qualified(full string) string {
	var out strings.Builder
	for _, part := range strings.FieldsFunc(full, func(r rune) bool { return strings.ContainsRune("[]*,", r) }) {
		part = part[strings.LastIndexByte(part, '/')+1:]
		pkg, name, hasPkg := strings.Cut(part, ".")
		if !hasPkg {
			pkg, name = "", pkg
		}
		if pkg != "httpapi" && !strings.HasPrefix(strings.ToLower(name), pkg) {
			out.WriteString(upperFirst(pkg))
		}
		out.WriteString(upperFirst(name))
	}
	return out.String()
}

func upperFirst(s string) string {
	if s == "" {
		return ""
	}
	r := []rune(s)
	r[0] = unicode.ToUpper(r[0])
	return string(r)
}
