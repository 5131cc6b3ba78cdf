package httpapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"steward/internal/fault"
	"steward/internal/sqldb"
)

// Idempotency keys. A caller who sends the header Idempotency-Key with a POST may send the request
// again when its answer got lost:
//
//	            insert row                handler              store answer
//	(no row) ───────────────→ running ───────────────→ running ───────────────→ answered
//	                             │                                                  │
//	 the same again: 409, Retry-After while the lease lasts          the same again: the kept answer
//	                 409 "unknown" afterwards                        other request:  422
//
// What holds, per principal and key, for 24 hours:
//   - The operation runs at most once, on whatever node, also when servers are killed.
//   - A refusal (4xx, 503) frees the key: nothing was done, the caller may try again with it.
//   - Once the operation's answer is stored, the same request gets the same answer.
//   - When the server is killed after the operation's commit and before the answer is stored, the
//     outcome is unknown to us, and the repetition says so (409) and does not run it again; except
//     when the operation called Settle in its transaction: then change and answer are stored
//     together, and the repetition gets the answer.
//
// The header is ignored on other methods, which are idempotent by themselves, on public operations
// without a principal, and where bodies may be larger than 16 MiB: such uploads are named by their
// content, so that sending one again is harmless.
//
// An answer may hold a secret that is shown once (a token). It is encrypted under a key derived from
// the Idempotency-Key, of which the database has only a hash: whoever reads the database reads no answer.

const (
	keyHeader      = "Idempotency-Key"
	replayedHeader = "Idempotent-Replayed"

	keepAnswers = 24 * time.Hour
	// leaseSlack is added to an operation's timeout before a running row is taken for a dead one.
	leaseSlack = 30 * time.Second
	// streamLease is for streams, which have no timeout.
	streamLease = 10 * time.Minute
	// storeTimeout bounds storing the answer after the operation is done.
	storeTimeout = 10 * time.Second
	// maxKeptAnswer and maxKeyedBody bound what is held in memory, in bytes.
	maxKeptAnswer = 1 << 20
	maxKeyedBody  = 16 << 20
	// maxLiveKeys bounds how many rows one principal may have.
	maxLiveKeys = 10_000
)

const (
	stateRunning  = 0
	stateAnswered = 1
)

// keyPattern: visible ASCII, long enough that a random one can't be guessed.
var keyPattern = regexp.MustCompile(`^[!-~]{8,128}$`)

func keyParam() *huma.Param {
	minLength, maxLength := 8, 128
	return &huma.Param{
		Name: keyHeader, In: "header",
		Description: "Any random text, such as a UUID. The same request with the same key within 24 hours gets the first " +
			"one's answer (with Idempotent-Replayed: true) and is not done again; another request with it is refused with 422, " +
			"one that comes while the first is being worked on with 409 and Retry-After.",
		Schema: &huma.Schema{Type: huma.TypeString, MinLength: &minLength, MaxLength: &maxLength},
	}
}

// settlement is the row of the request that is being served.
type settlement struct {
	row    string
	secret []byte
	status int
}

// kept is an answer as it is stored, before encryption.
type kept struct {
	Status int         `json:"status"`
	Header http.Header `json:"header"`
	Body   []byte      `json:"body"`
}

// Settle stores the operation's answer in the operation's own transaction, when the request carries an
// idempotency key (else it does nothing): from then on neither a kill of the server nor a lost
// connection separates the change from its answer. body is the Body of the output that the operation
// will return. Use it where doing it twice, or not knowing, would hurt.
func Settle(ctx context.Context, tx *sqldb.Tx, body any) error {
	s := exchangeOf(ctx).settle
	if s == nil {
		return nil
	}
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	k := kept{Status: s.status, Header: http.Header{"Content-Type": {"application/json"}}, Body: append(text, '\n')}
	if body == nil {
		k = kept{Status: http.StatusNoContent}
	}
	return s.store(ctx, tx, k)
}

func (s *settlement) store(ctx context.Context, tx *sqldb.Tx, k kept) error {
	plain, err := json.Marshal(k)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	_, err = tx.Exec(ctx, "UPDATE httpapi_idempotency SET state = $1, answer = $2 WHERE key = $3",
		stateAnswered, seal(s.secret, s.row, plain), s.row)
	if err != nil {
		return fmt.Errorf("store the answer: %w", err)
	}
	return nil
}

// takesKey tells whether an idempotency key has a meaning for the operation.
func (op Op) takesKey() bool { return op.Method == http.MethodPost && op.maxBody() <= maxKeyedBody }

// once serves a POST that carries an idempotency key.
func (a *API) once(w http.ResponseWriter, r *http.Request, op Op, serve http.HandlerFunc) {
	ex := exchangeOf(r.Context())
	s, print, err := a.prepare(r, op)
	if err != nil {
		a.refuseError(w, r, err)
		return
	}
	answered, err := a.claim(r.Context(), s.row, principalKey(ex.who), print, op)
	switch {
	case err != nil:
		a.refuseError(w, r, err)
	case answered != nil:
		a.replay(w, r, s, answered)
	default:
		ex.settle = s
		a.runOnce(w, r, s, serve)
		ex.settle = nil
	}
}

// prepare reads the body and derives the row's key and the request's fingerprint.
func (a *API) prepare(r *http.Request, op Op) (*settlement, string, error) {
	ex := exchangeOf(r.Context())
	key := r.Header.Get(keyHeader)
	switch {
	case a.cfg.DB == nil:
		return nil, "", errNoKeys
	case !keyPattern.MatchString(key):
		return nil, "", fault.Bad("header."+keyHeader, "want 8 to 128 visible ASCII characters; a UUID is best")
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, "", fmt.Errorf("read the body: %w", err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	print := sha256.New()
	for _, part := range []string{r.Method, r.URL.Path, r.URL.RawQuery, string(ex.who.Scope.Tenant), r.Header.Get("Content-Type")} {
		fmt.Fprintf(print, "%d %s ", len(part), part)
	}
	print.Write(body)
	sum := sha256.Sum256([]byte(principalKey(ex.who) + "\x00" + key))
	status := op.Status
	if status == 0 {
		status = http.StatusOK
	}
	return &settlement{row: hex.EncodeToString(sum[:]), secret: []byte(key), status: status}, hex.EncodeToString(print.Sum(nil)), nil
}

func principalKey(who Principal) string {
	return string(who.Scope.Tenant) + "/" + string(who.Actor.Kind) + "/" + who.Actor.ID
}

var errNoKeys = errors.New("idempotency keys are not switched on")

// claim makes the row. It returns the encrypted answer when there is one already, and an error when
// the request must not run.
func (a *API) claim(ctx context.Context, row, principal, print string, op Op) (answered []byte, err error) {
	now := a.cfg.Now()
	lease := streamLease
	if timeout := max(op.Timeout, a.cfg.Timeout); op.Accept == "" && op.Produce == "" {
		lease = timeout + leaseSlack
	}
	err = a.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		answered = nil
		if _, err := tx.Exec(ctx, "DELETE FROM httpapi_idempotency WHERE expires < $1", sqldb.Micros(now)); err != nil {
			return fmt.Errorf("delete old idempotency keys: %w", err)
		}
		var live int
		if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM (SELECT 1 FROM httpapi_idempotency WHERE principal = $1 LIMIT $2) AS live",
			principal, maxLiveKeys).Scan(&live); err != nil {
			return fmt.Errorf("count idempotency keys: %w", err)
		}
		n, err := tx.Exec(ctx, `INSERT INTO httpapi_idempotency (key, principal, fingerprint, state, lease, expires)
			VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key) DO NOTHING`,
			row, principal, print, stateRunning, sqldb.Micros(now.Add(lease)), sqldb.Micros(now.Add(keepAnswers)))
		switch {
		case err != nil:
			return fmt.Errorf("claim the idempotency key: %w", err)
		case n == 1 && live >= maxLiveKeys:
			return &Later{After: time.Hour, Err: fault.New(fault.TooMany, "more than %d idempotency keys in 24 hours", maxLiveKeys)}
		case n == 1:
			return nil
		}
		answered, err = a.existing(ctx, tx, row, print)
		return err
	})
	return answered, err
}

// existing judges a request whose key has a row.
func (a *API) existing(ctx context.Context, tx *sqldb.Tx, row, print string) ([]byte, error) {
	var (
		state  int
		known  string
		lease  time.Time
		answer []byte
	)
	err := tx.QueryRowContext(ctx, "SELECT state, fingerprint, lease, answer FROM httpapi_idempotency WHERE key = $1", row).
		Scan(&state, &known, sqldb.ScanMicros(&lease), &answer)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the idempotency key: %w", err)
	case known != print:
		return nil, fault.Bad("header."+keyHeader, "this key was used for another request; make a new one for each")
	case state == stateAnswered:
		return answer, nil
	case a.cfg.Now().Before(lease):
		return nil, &Later{After: 2 * time.Second, Err: fault.New(fault.Conflict, "the same request is being worked on; ask again for its answer")}
	}
	return nil, fault.New(fault.Conflict, "the server stopped while it worked on this request, so whether it took effect is "+
		"unknown and it is not done again: look at the result, and use a new key if it is missing")
}

func (a *API) replay(w http.ResponseWriter, r *http.Request, s *settlement, sealed []byte) {
	plain, err := open(s.secret, s.row, sealed)
	var k kept
	if err == nil {
		err = json.Unmarshal(plain, &k)
	}
	if err != nil {
		a.refuseError(w, r, fmt.Errorf("read the kept answer: %w", err))
		return
	}
	for name, values := range k.Header {
		w.Header()[name] = values
	}
	w.Header().Set(replayedHeader, "true")
	w.WriteHeader(k.Status)
	_, _ = w.Write(k.Body) // the caller may be gone
}

// runOnce serves the request, stores its answer and only then sends it. The operation is not ended by
// the caller's leaving, so that its outcome can be told later.
func (a *API) runOnce(w http.ResponseWriter, r *http.Request, s *settlement, serve http.HandlerFunc) {
	held := &heldAnswer{to: w, header: w.Header().Clone()}
	ctx := context.WithoutCancel(r.Context())
	if deadline, ok := r.Context().Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	// After a panic the row stays as it is: whether it took effect is unknown, as after a kill.
	serve(held, r.WithContext(ctx))
	if err := a.keep(ctx, s, held); err != nil {
		a.cfg.Log.ErrorContext(ctx, "answer of an idempotency key not stored", keyRequest, RequestID(ctx), keyError, err)
	}
	held.send()
}

func (a *API) keep(ctx context.Context, s *settlement, held *heldAnswer) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	return a.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		if refused := held.status >= 400 && held.status < 500 || held.status == http.StatusServiceUnavailable; refused {
			// Settled rows stay: their change is committed, whatever was answered.
			_, err := tx.Exec(ctx, "DELETE FROM httpapi_idempotency WHERE key = $1 AND state = $2", s.row, stateRunning)
			return err
		}
		if held.passed {
			return nil // too large to keep: the row stays and a repetition is refused
		}
		return s.store(ctx, tx, kept{Status: held.statusOr200(), Header: keptHeader(held.header), Body: held.body.Bytes()})
	})
}

// keptHeader leaves out what belongs to one answer only.
func keptHeader(h http.Header) http.Header {
	out := http.Header{}
	for _, name := range []string{"Content-Type", "ETag", "Location", "Content-Disposition"} {
		if v := h.Values(name); len(v) > 0 {
			out[http.CanonicalHeaderKey(name)] = v
		}
	}
	return out
}

// heldAnswer holds an answer back until it is stored; one that is too large passes through.
type heldAnswer struct {
	to     http.ResponseWriter
	header http.Header
	status int
	body   bytes.Buffer
	passed bool
}

func (h *heldAnswer) Header() http.Header { return h.header }

func (h *heldAnswer) WriteHeader(status int) {
	if h.status == 0 && status >= http.StatusOK {
		h.status = status
	}
}

func (h *heldAnswer) Write(b []byte) (int, error) {
	h.WriteHeader(http.StatusOK)
	if !h.passed && h.body.Len()+len(b) > maxKeptAnswer {
		h.send()
		h.passed = true
	}
	if h.passed {
		return h.to.Write(b)
	}
	return h.body.Write(b)
}

func (h *heldAnswer) statusOr200() int {
	if h.status == 0 {
		return http.StatusOK
	}
	return h.status
}

// send passes on what is held.
func (h *heldAnswer) send() {
	if h.passed {
		return
	}
	for name, values := range h.header {
		h.to.Header()[name] = values
	}
	h.to.WriteHeader(h.statusOr200())
	_, _ = h.to.Write(h.body.Bytes()) // the caller may be gone
}

// Unwrap lets http.ResponseController reach the connection's deadlines.
func (h *heldAnswer) Unwrap() http.ResponseWriter { return h.to }
